"""Compares images as scenes; defines what verification and scoring count as right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uniedit_hf.small_world.scene import Scene


@dataclass(frozen=True)
class Tolerance:
    """The allowed difference from the expected scene.

    Args:
        place: Pixels between the centers of the boxes, along each axis.
        size: Pixels between the sizes (`Scene.size`).
        background: Gray levels between the backgrounds, in each channel.
    """

    place: float
    size: float
    background: float


EXACT = Tolerance(place=0.5, size=0.5, background=1.0)  # required of our own renderer
VISIBLE = Tolerance(place=6.0, size=3.0, background=16.0)  # differences that a person would not notice


def mismatches(expected: Sequence[Scene], found: Sequence[Scene], tolerance: Tolerance = VISIBLE) -> list[str]:
    """The differences of the scenes that were found, in the order count, shape, color, place, size, background.

    Shapes are compared in reading order (by rows, then columns). If the count is wrong, nothing else is compared.
    """
    if len(expected) != len(found):
        return ["count"]
    wrong = {
        name
        for a, b in zip(in_reading_order(expected), in_reading_order(found))
        for name in _differences(a, b, tolerance)
    }
    return [name for name in ("shape", "color", "place", "size", "background") if name in wrong]


def in_reading_order(scenes: Sequence[Scene]) -> list[Scene]:
    """By rows of a quarter of the image's height, then from left to right."""
    return sorted(scenes, key=lambda scene: (round(scene.center[1] / 16), scene.center[0]))


def _differences(expected: Scene, found: Scene, tolerance: Tolerance) -> list[str]:
    apart = max(abs(a - b) for a, b in zip(expected.center, found.center))
    behind = max(abs(a - b) for a, b in zip(expected.background, found.background))
    wrong = {
        "shape": expected.shape != found.shape,
        "color": expected.color != found.color,
        "place": apart > tolerance.place,
        "size": abs(expected.size - found.size) > tolerance.size,
        "background": behind > tolerance.background,
    }
    return [name for name, is_wrong in wrong.items() if is_wrong]
