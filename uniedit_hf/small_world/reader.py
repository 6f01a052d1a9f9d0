"""Reads scenes from pixels. Every target and every score of the small world is judged by this reader.

The background is the median of the border. Pixels that differ from it are cut into regions along empty rows and
columns. In each region, alpha is the projection of the pixel on the line from the background to the shape's color;
area and second moments of alpha give one sub-pixel box for each possible shape, and the shape that overlaps best when
it is drawn again is the answer. Moments, unlike edges, move little under blur and noise.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from uniedit_hf.small_world.scene import FILL, PALETTE, SHAPES, SIDE, Box, Scene, ShapeName, coverage


FOREGROUND = 48.0  # distance to the background, in gray levels, from which a pixel belongs to a shape
SMALLEST_AREA = 12  # foreground pixels; the smallest shape of the data set covers 27
STRAY_PIXELS = 12  # foreground pixels outside every region that still count as noise
LEAST_OVERLAP = 0.7  # intersection over union with the redrawn shape
MOST_MISFITS = 2  # pixels that the redrawn shape leaves unexplained
COVERAGE_TOLERANCE = 0.5  # blur moves the coverage of edge pixels by less, another shape's pixels by more
COLOR_TOLERANCE = 60.0  # distance to the palette; its two nearest colors are 125 apart
FILTER_VARIANCE = 1 / 6  # what the renderer's triangle filter adds to each second moment, in square pixels
VARIANCE_ACROSS = {"circle": 1 / 16, "rectangle": 1 / 12, "triangle": 1 / 24}  # of a shape of width 1
VARIANCE_DOWN = {"circle": 1 / 16, "rectangle": 1 / 12, "triangle": 1 / 18}  # of a shape of height 1
CENTROID_DOWN = {"circle": 1 / 2, "rectangle": 1 / 2, "triangle": 2 / 3}  # from the top of a shape of height 1

Window = tuple[int, int, int, int]
_PALETTE_NAMES = tuple(PALETTE)
_PALETTE_COLORS = np.array(list(PALETTE.values()), dtype=np.float32)
_CENTERS = np.arange(SIDE, dtype=np.float32) + 0.5


def read(image: Image.Image | np.ndarray) -> Scene | None:
    """The only shape of an image, or None if there is none, more than one, or none that can be recognized.

    Args:
        image: 64 x 64, a `PIL.Image.Image` or uint8 RGB (64, 64, 3).

    Raises:
        ValueError: The image has another size.
    """
    scenes = read_all(image)
    return scenes[0] if len(scenes) == 1 else None


def read_all(image: Image.Image | np.ndarray) -> list[Scene]:
    """All shapes of an image, by rows and then columns; empty if the image is blank or any part of it cannot be
    recognized. Shapes must be separated by an empty row or column.

    Args:
        image: 64 x 64, a `PIL.Image.Image` or uint8 RGB (64, 64, 3).

    Raises:
        ValueError: The image has another size.
    """
    pixels = as_pixels(image)
    background = border_color(pixels)
    distance = np.sqrt(((pixels - background) ** 2).sum(axis=2))
    mask = distance > FOREGROUND
    scenes, stray = [], int(mask.sum())
    for window in _regions(mask):
        area = int(mask[window[1] : window[3], window[0] : window[2]].sum())
        if area < SMALLEST_AREA:
            continue
        scene = _read_region(pixels, distance, background, window)
        if scene is None:
            return []
        scenes.append(scene)
        stray -= area
    return scenes if stray <= STRAY_PIXELS else []


def as_pixels(image: Image.Image | np.ndarray) -> np.ndarray:
    """float32 (64, 64, 3) in 0 to 255. Raises ValueError for another size."""
    pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image, dtype=np.float32)
    if pixels.shape != (SIDE, SIDE, 3):
        raise ValueError(f"The reader expects a {SIDE} x {SIDE} RGB image, found an array of shape {pixels.shape}")
    return pixels


def border_color(pixels: np.ndarray) -> np.ndarray:
    """The median color of the outermost pixels, float32 (3,)."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    return np.median(border, axis=0).astype(np.float32)


def _regions(mask: np.ndarray, left: int = 0, top: int = 0) -> Iterator[Window]:
    """Cuts a mask along its empty rows, the pieces along their empty columns, and so on until nothing can be cut."""
    rows = _runs(mask.any(axis=1))
    for first, last in rows:
        band = mask[first:last]
        columns = _runs(band.any(axis=0))
        for start, end in columns:
            if len(rows) == 1 and len(columns) == 1:
                yield left + start, top + first, left + end, top + last
            else:
                yield from _regions(band[:, start:end], left + start, top + first)


def _runs(filled: np.ndarray) -> list[tuple[int, int]]:
    """The stretches of True in a boolean vector as (start, end)."""
    edges = np.flatnonzero(np.diff(filled, prepend=False, append=False)).tolist()
    return list(zip(edges[::2], edges[1::2]))


def _read_region(pixels: np.ndarray, distance: np.ndarray, background: np.ndarray, window: Window) -> Scene | None:
    """The shape in one region, or None."""
    # One more pixel on each side includes the faint outer edge.
    left, top, right, bottom = max(window[0] - 1, 0), max(window[1] - 1, 0), *np.minimum(np.add(window[2:], 1), SIDE)
    part, apart = pixels[top:bottom, left:right], distance[top:bottom, left:right]
    color = np.median(part[apart >= 0.9 * np.percentile(apart, 95)], axis=0)
    to_palette = np.sqrt(((_PALETTE_COLORS - color) ** 2).sum(axis=1))
    nearest = int(to_palette.argmin())
    if to_palette[nearest] > COLOR_TOLERANCE:
        return None
    axis = color - background
    alpha = np.clip((part - background) @ axis / (axis @ axis), 0, 1)
    boxes = {shape: _box_by_moments(alpha, shape, left, top) for shape in SHAPES}
    redrawn = {s: coverage(s, box, (left, top, right, bottom)) for s, box in boxes.items()}
    overlaps = {s: _overlap(alpha, mask) for s, mask in redrawn.items()}
    shape = max(overlaps, key=overlaps.get)
    off_color = np.abs(part - background - alpha[..., None] * axis).max(axis=2) > COLOR_TOLERANCE
    misfits = off_color | (np.abs(alpha - redrawn[shape]) > COVERAGE_TOLERANCE)
    if overlaps[shape] < LEAST_OVERLAP or misfits.sum() > MOST_MISFITS:
        return None
    return Scene(shape, _PALETTE_NAMES[nearest], boxes[shape], tuple(int(c) for c in np.rint(background)))


def _box_by_moments(alpha: np.ndarray, shape: ShapeName, left: int, top: int) -> Box:
    """The box of the given shape with the area, the centroid and the proportions of alpha (height, width)."""
    columns, rows, area = alpha.sum(axis=0), alpha.sum(axis=1), float(alpha.sum())
    x, y = _CENTERS[left : left + len(columns)], _CENTERS[top : top + len(rows)]
    middle_x, middle_y = float(columns @ x) / area, float(rows @ y) / area
    variance_x = max(float(columns @ (x - middle_x) ** 2) / area - FILTER_VARIANCE, 1e-3)
    variance_y = max(float(rows @ (y - middle_y) ** 2) / area - FILTER_VARIANCE, 1e-3)
    proportion = np.sqrt(variance_x / VARIANCE_ACROSS[shape] / (variance_y / VARIANCE_DOWN[shape]))
    width = float(np.sqrt(area / FILL[shape] * proportion))
    height = float(np.sqrt(area / FILL[shape] / proportion))
    upper = middle_y - CENTROID_DOWN[shape] * height
    return middle_x - width / 2, upper, middle_x + width / 2, upper + height


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two soft masks."""
    return float(np.minimum(a, b).sum() / np.maximum(a, b).sum())
