"""Scores of the small world: compares answers, drawings and edits with what was asked, by reading pixels.

An edit is right if the image reads as the target does: the same number of shapes, each with the right form and color,
its center within 6 pixels and its size within 3, the background within 16 gray levels (`compare.VISIBLE`). What the
instruction changes and what it leaves unchanged are also scored separately.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

from uniedit_hf.small_world.compare import VISIBLE, mismatches
from uniedit_hf.small_world.questions import DrawingPrompt
from uniedit_hf.small_world.reader import read, read_all


DRAWN = ("shape", "color", "size", "place")
EDITED = ("count", "shape", "color", "place", "size", "background")


@dataclass(frozen=True)
class Score:
    """Whether one result is right as a whole, and in which respects.

    Args:
        right: 1 or 0; a share for an item with several seeds.
        parts: The same for every respect that applies.
    """

    right: float
    parts: Mapping[str, float]


def score_answer(answer: str, expected: str) -> Score:
    """Exact match, ignoring case, blanks and a final period."""
    return Score(int(answer.strip().strip(".").lower() == expected.lower()), {})


def score_drawing(image: Image.Image, expected: DrawingPrompt) -> Score:
    """A drawing against its prompt: shape, color, size and place as stated. An unreadable image scores 0."""
    scene = read(image)
    wrong = DRAWN if scene is None else expected.mismatches(scene)
    parts = {name: int(name not in wrong) for name in DRAWN}
    return Score(int(all(parts.values())), parts)


def score_edit(image: Image.Image, source: Image.Image, target: Image.Image) -> Score:
    """An edit against its target. `changed` is 1 if everything that the edit changes is right, `kept` is 1 if the rest
    is.
    """
    expected, found = read_all(target), read_all(image)
    wrong = set(EDITED) if not found else set(mismatches(expected, found, VISIBLE))
    if "count" in wrong:
        wrong = set(EDITED)  # with another number of shapes nothing else can be compared
    meant = set(mismatches(expected, read_all(source), VISIBLE))
    if "count" in meant:
        meant |= {"place", "size"}  # copies are elsewhere and smaller
    parts = {"changed": int(not wrong & meant), "kept": int(not wrong - meant)}
    return Score(int(not wrong), parts | {name: int(name not in wrong) for name in EDITED})
