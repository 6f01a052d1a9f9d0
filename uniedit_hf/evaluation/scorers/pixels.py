"""Compares an edit with a known target, pixel by pixel: for edits drawn by rule, where only one result is right."""

from __future__ import annotations

import numpy as np
from PIL import Image


VISIBLE = 16  # gray levels of any channel by which two pixels look different


def score_edit(image: Image.Image, source: Image.Image, target: Image.Image) -> dict[str, float | None]:
    """Shares of pixels, `None` without such pixels: `success`, the share of those to be changed that equal the target;
    `preservation`, the share of all others that equal the source.

    Raises:
        ValueError: If the images differ in size.
    """
    sizes = {"image": image.size, "source": source.size, "target": target.size}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"The images differ in size ({sizes}): resize them to one size first.")
    result, before, after = (np.asarray(each.convert("RGB")).astype(int) for each in (image, source, target))
    changed, right = _differ(before, after), ~_differ(result, after)
    return {
        "success": float(right[changed].mean()) if changed.any() else None,
        "preservation": float((~_differ(result, before))[~changed].mean()) if (~changed).any() else None,
    }


def _differ(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (abs(one - other) > VISIBLE).any(-1)
