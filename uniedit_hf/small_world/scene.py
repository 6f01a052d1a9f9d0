"""Scenes: the content of an image of the easy-VQA world, and how it is drawn.

A `Scene` is one flat shape on a flat background; an image with several shapes is a list of scenes that share their
background. Lengths are pixels, x grows to the right and y downwards, and boxes are (left, top, right, bottom) with
sub-pixel precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image


ShapeName = Literal["circle", "rectangle", "triangle"]
Box = tuple[float, float, float, float]

SIDE = 64
SHAPES: tuple[ShapeName, ...] = ("circle", "rectangle", "triangle")
PALETTE = {
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "teal": (0, 128, 128),
    "brown": (165, 42, 42),
}
CORNERS = {"circle": 0, "triangle": 3, "rectangle": 4}
FILL = {"circle": math.pi / 4, "rectangle": 1.0, "triangle": 0.5}  # the share of its box that a shape covers
HEIGHT_OVER_WIDTH = {"circle": 1.0, "rectangle": 1.0, "triangle": math.sqrt(3) / 2}  # triangles are equilateral
SUPERSAMPLING = 4


@dataclass(frozen=True)
class Scene:
    """One shape on a background.

    Args:
        shape: One of `SHAPES`.
        color: One of the names in `PALETTE`.
        box: (left, top, right, bottom) in pixels, sub-pixel.
        background: The RGB color behind the shape, 0 to 255.
    """

    shape: ShapeName
    color: str
    box: Box
    background: tuple[int, int, int]

    @property
    def width(self) -> float:
        return self.box[2] - self.box[0]

    @property
    def height(self) -> float:
        return self.box[3] - self.box[1]

    @property
    def center(self) -> tuple[float, float]:
        """The center of the box, (x, y)."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def size(self) -> float:
        """The side of a square with the area of the box."""
        return math.sqrt(self.width * self.height)

    @property
    def corners(self) -> int:
        return CORNERS[self.shape]

    def at(self, center: tuple[float, float], size: float | None = None) -> Scene:
        """The same shape elsewhere, with the same proportions, moved inside the image if it would stick out."""
        scale = 1.0 if size is None else size / self.size
        width, height = self.width * scale, self.height * scale
        left = min(max(center[0] - width / 2, 0.0), SIDE - width)
        top = min(max(center[1] - height / 2, 0.0), SIDE - height)
        return replace(self, box=(left, top, left + width, top + height))

    def turned_into(self, shape: ShapeName) -> Scene:
        """Another regular shape in the same place with the same size."""
        # `at` moves and scales this box; only its proportions count.
        regular = replace(self, shape=shape, box=(0.0, 0.0, 1.0, HEIGHT_OVER_WIDTH[shape]))
        return regular.at(self.center, self.size)


def coverage(shape: ShapeName, box: Box, window: tuple[int, int, int, int] = (0, 0, SIDE, SIDE)) -> np.ndarray:
    """The coverage of each pixel by a shape, as drawn in the data set: hard edges at a higher resolution, reduced by
    a triangle filter one pixel wide to either side.

    Args:
        shape: One of `SHAPES`.
        box: The shape's box in pixels.
        window: The requested pixels, (left, top, right, bottom).

    Returns:
        float32 (window height, window width) in [0, 1].
    """
    left, top, right, bottom = window
    x = (np.arange((right - left) * SUPERSAMPLING, dtype=np.float32) + 0.5) / SUPERSAMPLING + left
    y = (np.arange((bottom - top) * SUPERSAMPLING, dtype=np.float32) + 0.5) / SUPERSAMPLING + top
    # From -1 to 1 across the box; a degenerate box covers nothing.
    across = (2 * x - box[0] - box[2]) / max(box[2] - box[0], 1e-6)
    down = (2 * y - box[1] - box[3]) / max(box[3] - box[1], 1e-6)
    inside = np.abs(down)[:, None] <= 1
    if shape == "circle":
        inside = across[None] ** 2 + (down**2)[:, None] <= 1
    elif shape == "triangle":
        inside = inside & (np.abs(across)[None] <= (down[:, None] + 1) / 2)
    else:
        inside = inside & (np.abs(across)[None] <= 1)
    fine = Image.fromarray(inside.astype(np.float32))
    return np.asarray(fine.resize((right - left, bottom - top), Image.Resampling.BILINEAR))


def render(*scenes: Scene) -> Image.Image:
    """Draws scenes that share a background, 64 x 64 RGB. Raises ValueError if there are none or backgrounds differ."""
    if len({scene.background for scene in scenes}) != 1:
        raise ValueError(f"render() needs scenes with one background, got {[scene.background for scene in scenes]}")
    pixels = np.broadcast_to(np.float32(scenes[0].background), (SIDE, SIDE, 3))
    for scene in scenes:
        alpha = coverage(scene.shape, scene.box)[..., None]
        pixels = pixels + alpha * (np.float32(PALETTE[scene.color]) - pixels)
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def mirrored(scene: Scene, *, across: bool = True, down: bool = False) -> Scene:
    """The scene with its shape at the mirrored position; the shape itself is not mirrored."""
    x, y = scene.center
    return scene.at((SIDE - x if across else x, SIDE - y if down else y))


def overlap(boxes: Sequence[Box]) -> bool:
    """Whether any two boxes touch."""
    return any(
        a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
        for index, a in enumerate(boxes)
        for b in boxes[index + 1 :]
    )
