"""Opens images from any source: the result is an upright 8-bit RGB `PIL.Image`, or a clear error.

Why limits exist. The header of an image of a few hundred bytes can claim any size, and a decoder believes it: 50,000
x 50,000 pixels are 10 GB of memory in every data worker. So the claimed size is checked before anything is decoded,
only a short list of formats is accepted (others run interpreters or have no signature to recognize them by), and
nothing is fetched
from a network. A truncated image is refused because its missing part would be learned as gray.

Pillow's own globals (`MAX_IMAGE_PIXELS`, `LOAD_TRUNCATED_IMAGES`) are never changed here,
so opening is safe from many threads.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError


if TYPE_CHECKING:
    import torch

# The largest image that Pillow opens without a warning. At four bytes per pixel that is at most 358 MB.
MAX_PIXELS = 89_478_485

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
READABLE = "PNG, JPEG, WebP, AVIF, GIF, BMP, TIFF, PPM or JPEG 2000"

# Errors of Pillow's readers on damaged data, found by mutating files of every format: RuntimeError comes from AVIF,
# TypeError from TIFF.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, TypeError, struct.error)

URL = re.compile(r"^([a-z][a-z0-9+.-]+://|data:)", re.IGNORECASE)

# EXIF orientation -> the transform that turns the stored pixels upright; 5 to 8 swap width and height.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """An image that cannot be used; the message names the image, what was found, what was expected and the remedy."""


def open_image(
    image: Any, *, name: str = "image", max_pixels: int = MAX_PIXELS, animations: bool = True
) -> Image.Image:
    """Opens an image as a viewer would show it, in 8-bit RGB.

    EXIF orientation is applied; transparency is composited on white; gray of more than 8 bits is scaled by its real
    depth; an animation gives its first frame. Color profiles are not applied, as in the reference.

    Args:
        image: A `PIL.Image.Image`, encoded bytes, a path, `{"bytes": ..., "path": ...}` as `datasets` stores it, or a
            uint8 array (height, width) or (height, width, 1, 3 or 4 channels).
        name: Name of the image in errors, e.g. `"source_image of row 7"`.
        max_pixels: Maximum of width times height; above 178,956,970 Pillow's `MAX_IMAGE_PIXELS` must be raised as
            well.
        animations: Whether an animation is accepted (its first frame) or refused.

    Returns:
        A new image in mode RGB, without metadata; the image passed in is not changed.

    Raises:
        ImageError: If the image does not exist, or is damaged, too large, empty, of an unknown format, or a URL.
    """
    with _opened(image, name, max_pixels) as opened:
        if not animations and is_animation(opened):
            raise ImageError(f"{name} is an animation of {opened.n_frames} frames: save one as PNG or JPEG.")
        turn = TURNS.get(_orientation(opened))
        opened.load()
        upright = _rgb(opened, name)
        upright.info.clear()  # with its EXIF it would be turned again by the next program that opens it
        return upright if turn is None else upright.transpose(turn)


def image_size(image: Any, *, name: str = "image", max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """`(width, height)` in pixels of the image that `open_image` would return, from the header alone.

    Args and errors are those of `open_image`, but damage after the header is not detected.
    """
    with _opened(image, name, max_pixels) as opened:
        width, height = opened.size
        return (height, width) if _orientation(opened) in (5, 6, 7, 8) else (width, height)


def pixels_to_pil(pixels: torch.Tensor) -> Image.Image:
    """Converts pixels (3, height, width) in [-1, 1] to an image. Values are rounded and clamped.

    Raises:
        ValueError: If a value is NaN or infinite, as from a model that has overflowed or diverged.
    """
    if pixels.isnan().any():
        raise ValueError(
            "The pixels hold values that are not numbers: the model that drew them has overflowed or diverged; draw "
            "in fp32 or bf16, or go back to an earlier checkpoint."
        )
    values = ((pixels.detach().float().cpu() + 1) * 127.5 + 0.5).floor().clamp(0, 255)
    return Image.fromarray(values.byte().permute(1, 2, 0).contiguous().numpy())


def is_animation(image: Image.Image) -> bool:
    """Whether an opened file has several frames. A JPEG with further images of the same scene (MPO), as saved by
    phones and stereo cameras, does not count.
    """
    return getattr(image, "n_frames", 1) > 1 and image.format != "MPO"


@contextmanager
def _opened(image: Any, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """Yields the image with its header checked and its pixels not yet decoded; converts Pillow's errors to ours."""
    source, label = _source(image, name)
    try:
        if isinstance(source, Image.Image):
            _check_size(source, label, max_pixels)
            yield source
        else:
            with Image.open(source, formats=FORMATS) as opened:
                _check_size(opened, label, max_pixels)
                yield opened
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{label} does not exist: check the path, or the folder that it is relative to.") from None
    except IsADirectoryError:
        raise ImageError(f"{label} is a folder: expected the path of one image file.") from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{label} begins with {_first_bytes(source)} and is not an image that can be read here: expected a "
            f"complete {READABLE} file; fetch it again, or save it as PNG or JPEG."
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{label} is larger than the limit of {max_pixels:,} pixels ({error}): save it smaller, or raise "
            "max_pixels and PIL.Image.MAX_IMAGE_PIXELS if its size is meant."
        ) from error
    except DECODE_ERRORS as error:
        raise ImageError(
            f"{label} cannot be read ({error}): expected a complete image; it is probably damaged or cut short, so "
            "fetch or save it again."
        ) from error


def _source(image: Any, name: str) -> tuple[Any, str]:
    """The source for Pillow (or an already opened image), and its name in messages."""
    if isinstance(image, dict):
        path = image.get("path")
        label = f"{name} ({_short(path)})" if path else name
        if image.get("bytes") is not None:
            return _source(image["bytes"], label)
        if path is None:
            raise ImageError(
                f"{name} is a dictionary without an image (keys: {', '.join(map(str, image)) or 'none'}): expected "
                "'bytes' or 'path' to be set, as datasets stores images."
            )
        return _source(path, name)
    if isinstance(image, Image.Image):
        return image, name
    if isinstance(image, (bytes, bytearray, memoryview)):
        return BytesIO(image), name
    if isinstance(image, (str, os.PathLike)):
        path = os.fspath(image)
        label = f"{name} ({_short(path)})"
        if isinstance(path, str) and URL.match(path):
            raise ImageError(
                f"{label} is an address, and nothing is fetched from a network here: expected a local path; download "
                "the image first and pass its path or bytes."
            )
        return path, label
    if isinstance(image, np.ndarray):
        return _from_array(image, name), name
    raise ImageError(
        f"{name} is of type {type(image).__name__}: expected a PIL image, bytes, a path, a dictionary with 'bytes' or "
        "'path', or a uint8 array (height, width, channels)."
    )


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise ImageError(
            f"{name} is an array of {array.dtype} with shape {array.shape}: expected uint8 values 0 to 255 with shape "
            "(height, width) or (height, width, 1, 3 or 4); rescale, convert or transpose it."
        )
    if array.size == 0:
        height, width = array.shape[:2]
        raise ImageError(f"{name} is {width} x {height} pixels: expected at least 1 x 1; leave it out.")
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and channels == 1 else array)


def _check_size(image: Image.Image, label: str, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{label} is {width} x {height} pixels: expected at least 1 x 1; leave it out.")
    if width * height > max_pixels:
        raise ImageError(
            f"{label} is {width:,} x {height:,} pixels, more than the limit of {max_pixels:,}: save it smaller, or "
            "raise max_pixels if its size is meant."
        )


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation that still has to be applied, 1 to 8, from the header of an image not yet decoded."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return 1  # Pillow turns a TIFF itself while decoding, and its size is the upright one
    try:
        # PngImageFile.getexif would decode the whole image to find EXIF after the pixels, where browsers ignore it
        return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except DECODE_ERRORS:
        return 1  # damaged EXIF does not make an image unreadable: it is shown as stored, as browsers do


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_gray(image, name)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _gray(image: Image.Image, name: str) -> np.ndarray:
    """Gray of more than 8 bits as uint8 (height, width): black is 0, white the largest value of its depth."""
    values = np.asarray(image).astype(np.float32)
    largest = float(values.max())
    if not np.isfinite(largest):
        raise ImageError(f"{name} holds values that are not finite: expected numbers; replace them or leave it out.")
    gray = np.rint(values * (255 / _full_scale(image, largest))).clip(0, 255).astype(np.uint8)
    if "transparency" in image.info:
        gray[values == image.info["transparency"]] = 255
    return gray


def _full_scale(image: Image.Image, largest: float) -> float:
    """The value that means white."""
    if image.mode.startswith("I;16"):
        tiff = isinstance(image, TiffImagePlugin.TiffImageFile)
        return 2 ** (image.tag_v2[TiffImagePlugin.BITSPERSAMPLE][0] if tiff else 16) - 1
    if image.format in ("PNG", "PPM") and image.mode == "I":
        return 2**16 - 1
    # 32-bit integers and floats do not state their depth: take the smallest usual one that fits every value
    depths = (1, 2**8 - 1, 2**16 - 1, 2**31 - 1) if image.mode == "F" else (2**8 - 1, 2**16 - 1, 2**31 - 1)
    return next((white for white in depths if largest <= white), largest)


def _first_bytes(source: Any) -> str:
    if isinstance(source, BytesIO):
        head = source.getvalue()[:16]
    else:
        with open(source, "rb") as file:
            head = file.read(16)
    return repr(head) if head else "nothing (0 bytes)"


def _short(path: Any) -> str:
    text = str(path)
    return text if len(text) <= 200 else text[:200] + "..."
