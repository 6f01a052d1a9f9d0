"""Sizes: which size to request from an editor, and how to fit its result to the source.

Some editors support only a few aspect ratios. For these the source is letterboxed to the nearest ratio, and the bars
are cropped from the result, so nothing is stretched or moved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from PIL import Image

from uniedit_hf.synthesis.settings import Edit


BARS = (128, 128, 128)


def size_to_ask(source: tuple[int, int], settings: Edit) -> tuple[int, int]:
    """(width, height) with about `settings.pixels` pixels, in the aspect ratio of the source, in multiples of
    `settings.multiple`.
    """
    width, height = source
    scale = math.sqrt(settings.pixels / (width * height))
    return tuple(max(1, round(side * scale / settings.multiple)) * settings.multiple for side in (width, height))


def nearest_ratio(size: tuple[int, int], ratios: Mapping[str, float]) -> str:
    """The name of the aspect ratio closest to a size."""
    return min(ratios, key=lambda name: abs(math.log(size[0] / size[1] / ratios[name])))


def frame_for(source: tuple[int, int], ratios: Mapping[str, float], settings: Edit) -> tuple[int, int]:
    """(width, height) of the image to send: the source's, or with bars that of the nearest supported ratio, if this
    ratio differs from the source's by more than a result may.
    """
    if not ratios:
        return source
    width, height = source
    ratio = ratios[nearest_ratio(source, ratios)]
    stretch = width / height / ratio
    if max(stretch, 1 / stretch) - 1 <= settings.max_stretch:
        return source
    return max(width, round(height * ratio)), max(height, round(width / ratio))


def with_bars(image: Image.Image, frame: tuple[int, int]) -> Image.Image:
    """The image centered in a frame."""
    framed = Image.new("RGB", frame, BARS)
    framed.paste(image, ((frame[0] - image.width) // 2, (frame[1] - image.height) // 2))
    return framed


def without_bars(result: Image.Image, source: tuple[int, int], frame: tuple[int, int]) -> Image.Image:
    """The part of a drawn frame that corresponds to the source."""
    corners = []
    for drawn, side, whole in zip(result.size, source, frame):
        start = (whole - side) // 2
        corners.append((round(start * drawn / whole), round((start + side) * drawn / whole)))
    (left, right), (top, bottom) = corners
    return result.crop((left, top, right, bottom))


def fitted(result: Image.Image, source: tuple[int, int], settings: Edit) -> tuple[Image.Image, str] | None:
    """The result in the aspect ratio of the source, and the operation: "none", "stretch" or "crop"; None if it differs
    too much. One pixel of rounding is ignored.
    """
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
