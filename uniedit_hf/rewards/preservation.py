"""Preservation: the pixels outside the edited region are as they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from .reward_columns import changed_pixels, opened, rows


def preservation(images: Sequence[Any], sources: Sequence[Any], **columns: Any) -> list[float | None]:
    """The share of pixels outside the edited region that look as in the source.

    The region is the column `region`, (left, top, right, bottom) in pixels of the source, or else wherever the column
    `target_image` differs from the source. `None` without either, or if the region covers the whole image. A copy of
    the source gets 1, so this reward needs another one beside it.
    """
    found = rows(len(images), columns, "region", "target_image")
    return [
        None if image is None else _preserved(opened(image), opened(source), region, opened(target))
        for image, source, (region, target) in zip(images, sources, found)
    ]


def _preserved(image: Image.Image | None, source: Image.Image | None, region, target) -> float | None:
    if source is None or (region is None and target is None):
        return None
    outside = ~_inside(source, region, target)
    if not outside.any():
        return None
    if image is None:
        return 0.0
    return float((~changed_pixels(source, image))[outside].mean())


def _inside(source: Image.Image, region: Sequence[float] | None, target: Image.Image | None) -> np.ndarray:
    """Which pixels of the source are in the edited region: (height, width)."""
    if region is None:
        return changed_pixels(source, target)
    left, top, right, bottom = (round(edge) for edge in region)
    inside = np.zeros((source.height, source.width), dtype=bool)
    inside[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
    return inside
