"""Sizes: what an editor is asked for, and how its result is fitted to the source."""

from __future__ import annotations

import math

from PIL import Image

from uniedit_hf.synthesis.settings import Edit


def size_to_ask(source: tuple[int, int], settings: Edit) -> tuple[int, int]:
    """(width, height) of about `settings.pixels`, in the proportions of the source, in multiples of
    `settings.multiple`."""
    width, height = source
    scale = math.sqrt(settings.pixels / (width * height))
    return tuple(max(1, round(side * scale / settings.multiple)) * settings.multiple for side in (width, height))


def nearest_ratio(size: tuple[int, int], ratios: dict[str, float]) -> str:
    """The name of the proportion that a size differs from least."""
    return min(ratios, key=lambda name: abs(math.log(size[0] / size[1] / ratios[name])))


def fitted(result: Image.Image, source: tuple[int, int], settings: Edit) -> tuple[Image.Image, str] | None:
    """The result in the proportions of the source, and what was done to it: "none", "stretch" or "crop"; None if it
    differs too much. A pixel of rounding is no difference."""
    width, height = result.size
    ratio = source[0] / source[1]
    if abs(width - height * ratio) <= 1 or abs(height - width / ratio) <= 1:
        return result, "none"
    stretch = width / height / ratio
    if max(stretch, 1 / stretch) - 1 <= settings.max_stretch:
        size = (width, max(1, round(width / ratio))) if stretch > 1 else (max(1, round(height * ratio)), height)
        return result.resize(size, Image.Resampling.LANCZOS), "stretch"
    if settings.misfit == "reject":
        return None
    if stretch > 1:
        kept = max(1, round(height * ratio))
        left = (width - kept) // 2
        return result.crop((left, 0, left + kept, height)), "crop"
    kept = max(1, round(width / ratio))
    top = (height - kept) // 2
    return result.crop((0, top, width, top + kept)), "crop"
