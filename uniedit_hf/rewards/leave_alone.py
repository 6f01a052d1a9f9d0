"""Rows whose instruction asks for no change ("if there is a cat, paint it; otherwise leave the image as it is")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from .reward_columns import changed_pixels, opened, rows


def leave_alone(images: Sequence[Any], sources: Sequence[Any], **columns: Any) -> list[float | None]:
    """The share of pixels that look as in the source, where nothing is to change; `None` where something is.

    Nothing is to change where the column `leave_alone` is true, or without this column where `target_image` is the
    source. It punishes a model that edits whatever it is told, and costs no judge.
    """
    found = rows(len(images), columns, "leave_alone", "target_image")
    return [
        _untouched(opened(image), opened(source)) if image is not None and _is_left(source, flag, target) else None
        for image, source, (flag, target) in zip(images, sources, found)
    ]


def _is_left(source: Any, flag: bool | None, target: Any) -> bool:
    if flag is not None:
        return bool(flag)
    before, after = opened(source), opened(target)
    return before is not None and after is not None and before.tobytes() == after.tobytes()


def _untouched(image: Image.Image | None, source: Image.Image) -> float:
    return 0.0 if image is None else float((~changed_pixels(source, image)).mean())
