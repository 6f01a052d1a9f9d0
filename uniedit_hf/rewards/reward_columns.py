"""Shared parts of rewards: opening images that a model may have broken, and comparing pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from uniedit_hf.images import ImageError, open_image


VISIBLE = 16  # gray levels of any channel by which two pixels look different


def opened(image: Any) -> Image.Image | None:
    """An image in RGB, or `None` if it cannot be opened."""
    if image is None:
        return None
    try:
        return open_image(image)
    except ImageError:
        return None


def rows(count: int, columns: dict[str, Sequence[Any]], *names: str) -> Iterator[tuple]:
    """The values of these columns for each image, `None` where a column is missing."""
    return zip(*(columns.get(name) or [None] * count for name in names))


def changed_pixels(image: Image.Image, other: Image.Image) -> np.ndarray:
    """Which pixels of an image look different in another, which is resized if its size differs: (height, width)."""
    if other.size != image.size:
        other = other.resize(image.size, Image.Resampling.LANCZOS)
    one, two = (np.asarray(each.convert("RGB"), dtype=np.int16) for each in (image, other))
    return (np.abs(one - two) > VISIBLE).any(-1)
