"""Opening pictures that people made: whatever comes in, an upright 8-bit RGB `PIL.Image` comes out, or a clear error.

Why limits exist. The header of a picture of a few hundred bytes can claim any size, and a decoder believes it: 50,000
x 50,000 pixels are 10 GB of memory in every data worker. So the claimed size is checked before anything is decoded,
the formats are a short list (others run interpreters or have no signature to know them by), and nothing is fetched
from a network. A truncated picture is refused because its missing part would be learned as grey.

Pillow's own globals (`MAX_IMAGE_PIXELS`, `LOAD_TRUNCATED_IMAGES`) are read by Pillow as ever and never changed here,
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

# What Pillow opens without a warning. It keeps four bytes a pixel: at most 358 MB for one picture.
MAX_PIXELS = 89_478_485

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
READABLE = "PNG, JPEG, WebP, AVIF, GIF, BMP, TIFF, PPM or JPEG 2000"

# What Pillow's readers raise on damaged data, found by mutating files of every format: RuntimeError comes from AVIF,
# TypeError from TIFF.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, TypeError, struct.error)

URL = re.compile(r"^([a-z][a-z0-9+.-]+://|data:)", re.IGNORECASE)

# EXIF orientation -> what turns the stored pixels upright; 5 to 8 swap width and height.
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
    """A picture that cannot be used; the message names it, what was found, what was expected and the remedy."""


def open_image(image: Any, *, name: str = "image", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Opens a picture as a person would see it, in 8-bit RGB.

    EXIF orientation is applied; transparency is laid on white; grey of more than 8 bits is scaled by its real depth;
    of an animation the first frame is taken. Colour profiles are not applied, as in the reference.

    Args:
        image: A `PIL.Image.Image`, encoded bytes, a path, `{"bytes": ..., "path": ...}` as `datasets` stores it, or a
            uint8 array (height, width) or (height, width, 1, 3 or 4 channels).
        name: What to call the picture in errors, e.g. `"source_image of row 7"`.
        max_pixels: Width times height at most; above 178,956,970 Pillow's `MAX_IMAGE_PIXELS` must be raised as well.

    Returns:
        A new picture in mode RGB, without metadata; the one passed in is not changed.

    Raises:
        ImageError: If there is no such picture, or it is damaged, too large, empty, of an unknown kind, or an address.
    """
    with _opened(image, name, max_pixels) as picture:
        turn = TURNS.get(_orientation(picture))
        picture.load()
        picture = _rgb(picture, name)
        picture.info.clear()  # with its EXIF it would be turned once more wherever it is opened next
        return picture if turn is None else picture.transpose(turn)


def image_size(image: Any, *, name: str = "image", max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """`(width, height)` in pixels of what `open_image` would return, from the header alone.

    Args and errors are those of `open_image`, but damage behind the header goes unseen.
    """
    with _opened(image, name, max_pixels) as picture:
        width, height = picture.size
        return (height, width) if _orientation(picture) in (5, 6, 7, 8) else (width, height)


def pixels_to_pil(pixels: torch.Tensor) -> Image.Image:
    """Pixels (3, height, width) in [-1, 1] as an image. Values are rounded, outliers clamped.

    Raises:
        ValueError: If a value is not a number, which a model that has overflowed or diverged draws.
    """
    if pixels.isnan().any():
        raise ValueError(
            "The pixels hold values that are not numbers: the model that drew them has overflowed or diverged; draw "
            "in fp32 or bf16, or go back to an earlier checkpoint."
        )
    values = ((pixels.detach().float().cpu() + 1) * 127.5 + 0.5).floor().clamp(0, 255)
    return Image.fromarray(values.byte().permute(1, 2, 0).contiguous().numpy())


@contextmanager
def _opened(image: Any, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """The picture with its header read and checked, its pixels not yet decoded; turns Pillow's errors into ours."""
    source, label = _source(image, name)
    try:
        if isinstance(source, Image.Image):
            _check_size(source, label, max_pixels)
            yield source
        else:
            with Image.open(source, formats=FORMATS) as picture:
                _check_size(picture, label, max_pixels)
                yield picture
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{label} does not exist: check the path, or the folder that it is relative to.") from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{label} begins with {_first_bytes(source)} and is no picture that can be read here: expected a complete "
            f"{READABLE} file; fetch it again, or save it as PNG or JPEG."
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{label} is larger than the limit of {max_pixels:,} pixels ({error}): save it smaller, or raise "
            "max_pixels and PIL.Image.MAX_IMAGE_PIXELS if its size is meant."
        ) from error
    except DECODE_ERRORS as error:
        raise ImageError(
            f"{label} cannot be read ({error}): expected a complete picture; it is probably damaged or cut short, so "
            "fetch or save it again."
        ) from error


def _source(image: Any, name: str) -> tuple[Any, str]:
    """What Pillow opens (or a picture that is open already), and what to call it."""
    if isinstance(image, dict):
        path = image.get("path")
        label = f"{name} ({_short(path)})" if path else name
        if image.get("bytes") is not None:
            return _source(image["bytes"], label)
        if path is None:
            raise ImageError(
                f"{name} is a dictionary without a picture (keys: {', '.join(map(str, image)) or 'none'}): expected "
                "'bytes' or 'path' to be set, as datasets stores pictures."
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
                "the picture first and pass its path or bytes."
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


def _check_size(picture: Image.Image, label: str, max_pixels: int) -> None:
    width, height = picture.size
    if width < 1 or height < 1:
        raise ImageError(f"{label} is {width} x {height} pixels: expected at least 1 x 1; leave it out.")
    if width * height > max_pixels:
        raise ImageError(
            f"{label} is {width:,} x {height:,} pixels, more than the limit of {max_pixels:,}: save it smaller, or "
            "raise max_pixels if its size is meant."
        )


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation that is still to be applied, 1 to 8, from the header of a picture not yet decoded."""
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        return 1  # Pillow turns a TIFF itself while decoding, and its size is the upright one
    try:
        # PngImageFile.getexif would decode the whole picture to find EXIF behind the pixels; browsers ignore it there
        return Image.Image.getexif(picture).get(ExifTags.Base.Orientation, 1)
    except DECODE_ERRORS:
        return 1  # damaged EXIF does not make a picture unreadable: it is shown as stored, as browsers do


def _rgb(picture: Image.Image, name: str) -> Image.Image:
    if picture.mode == "F" or picture.mode.startswith("I"):
        return Image.fromarray(_grey(picture, name)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def _grey(picture: Image.Image, name: str) -> np.ndarray:
    """Grey of more than 8 bits as uint8 (height, width): black is 0, white the largest value of its depth."""
    values = np.asarray(picture).astype(np.float32)
    largest = float(values.max())
    if not np.isfinite(largest):
        raise ImageError(f"{name} holds values that are not finite: expected numbers; replace them or leave it out.")
    grey = np.rint(values * (255 / _full_scale(picture, largest))).clip(0, 255).astype(np.uint8)
    if "transparency" in picture.info:
        grey[values == picture.info["transparency"]] = 255
    return grey


def _full_scale(picture: Image.Image, largest: float) -> float:
    """The value that means white."""
    if picture.mode.startswith("I;16"):
        tiff = isinstance(picture, TiffImagePlugin.TiffImageFile)
        return 2 ** (picture.tag_v2[TiffImagePlugin.BITSPERSAMPLE][0] if tiff else 16) - 1
    if picture.format in ("PNG", "PPM") and picture.mode == "I":
        return 2**16 - 1
    # 32-bit integers and floats do not say their depth: take the smallest usual one that holds every value
    depths = (1, 2**8 - 1, 2**16 - 1, 2**31 - 1) if picture.mode == "F" else (2**8 - 1, 2**16 - 1, 2**31 - 1)
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
