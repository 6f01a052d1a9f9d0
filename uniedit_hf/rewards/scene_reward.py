"""Rewards of the small world: its reader looks for the shapes that the target shows, see
`uniedit_hf.small_world.scoring`. They need the column `target_image`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from uniedit_hf.small_world.scene import SIDE
from uniedit_hf.small_world.scoring import EDITED, Score, score_edit

from .reward_columns import opened


NOTHING_READ = Score(0, dict.fromkeys(("changed", "kept", *EDITED), 0))


def small_world(
    images: Sequence[Any], sources: Sequence[Any], target_image: Sequence[Any], **columns: Any
) -> list[float | None]:
    """1 if the image reads as the target does: count, shape, color, place, size and background of every shape."""
    return [_applied(score, lambda each: each.right) for score in _scores(images, sources, target_image)]


def small_world_changed(
    images: Sequence[Any], sources: Sequence[Any], target_image: Sequence[Any], **columns: Any
) -> list[float | None]:
    """1 if everything that the edit changes is right, whatever happens to the rest; `None` where nothing is to
    change."""
    return [
        None if _same(source, target) else _applied(score, lambda each: each.parts["changed"])
        for score, source, target in zip(_scores(images, sources, target_image), sources, target_image)
    ]


def small_world_kept(
    images: Sequence[Any], sources: Sequence[Any], target_image: Sequence[Any], **columns: Any
) -> list[float | None]:
    """1 if everything that the edit leaves alone is as it was. A copy of the source gets 1, so this reward needs
    another one beside it."""
    return [_applied(score, lambda each: each.parts["kept"]) for score in _scores(images, sources, target_image)]


def small_world_parts(
    images: Sequence[Any], sources: Sequence[Any], target_image: Sequence[Any], **columns: Any
) -> list[float | None]:
    """The share of count, shape, color, place, size and background that is right: denser than `small_world`, but a
    copy of the source already gets most of it."""
    share = partial(_share, EDITED)
    return [_applied(score, share) for score in _scores(images, sources, target_image)]


def _share(names: Sequence[str], score: Score) -> float:
    return sum(score.parts[name] for name in names) / len(names)


def _applied(score: Score | None, value) -> float | None:
    return None if score is None else float(value(score))


def _scores(images: Sequence[Any], sources: Sequence[Any], targets: Sequence[Any]) -> list[Score | None]:
    """The score of every image, `None` where a text was written."""
    return [None if image is None else _score(*each) for image, *each in zip(images, images, sources, targets)]


def _score(image: Any, source: Any, target: Any) -> Score:
    image, source, target = opened(image), opened(source), opened(target)
    if image is None or image.size != (SIDE, SIDE):
        return NOTHING_READ
    return score_edit(image, source, target)


def _same(source: Any, target: Any) -> bool:
    return opened(source).tobytes() == opened(target).tobytes()
