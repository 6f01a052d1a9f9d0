"""Opens the images of requests: uploads, base64, data URLs and, where allowed, addresses. Files that are not images,
have too many pixels or several frames are refused before they are decoded."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re

from PIL import Image

from uniedit_hf.images import ImageError, open_image

from .api_error import ApiError
from .image_fetcher import ImageFetcher


DATA_URL = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(;[\w-]+=[^;,]*)*(?P<base64>;base64)?,", re.ASCII)
AT_A_TIME = 2  # images decoded at the same time: each may take 100 MB


class ImageReader:
    """Opens the images of requests.

    Args:
        max_pixels: Maximum of width times height of an image.
        fetcher: Gets images from addresses; None refuses them.
    """

    def __init__(self, max_pixels: int, fetcher: ImageFetcher | None = None):
        self.max_pixels, self.fetcher = max_pixels, fetcher
        self.turn = asyncio.Semaphore(AT_A_TIME)

    async def open(self, data: bytes, name: str) -> Image.Image:
        """Opens an encoded image, upright and in RGB.

        Raises:
            ApiError: If it is not one, damaged, too large or an animation.
        """
        async with self.turn:
            try:
                return await asyncio.to_thread(
                    open_image, data, name=name, max_pixels=self.max_pixels, animations=False
                )
            except ImageError as error:
                raise ApiError(400, str(error), code="invalid_image", param=name) from None

    async def read(self, reference: str, name: str) -> Image.Image:
        """Opens an image from a data URL, bare base64, or a URL.

        Raises:
            ApiError: As `open`, and if the reference is none of these or addresses are not allowed.
        """
        if reference[:5].lower() == "data:":
            found = DATA_URL.match(reference[:200])
            if found is None or not found["base64"]:
                raise ApiError(
                    400, f"{name} is a data URL that is not base64: send data:image/png;base64,....", param=name
                )
            return await self.open(_decoded(reference[found.end() :], name), name)
        if re.match(r"[a-z][a-z0-9+.-]*:", reference[:40], re.IGNORECASE):
            if self.fetcher is None:
                raise ApiError(
                    400,
                    f"{name} is an address, and this server fetches nothing: send the image itself as a data URL.",
                    code="address_not_allowed",
                    param=name,
                )
            return await self.open(await self.fetcher.fetch(reference, name), name)
        return await self.open(_decoded(reference, name), name)


def _decoded(text: str, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(
            400, f"{name} is not valid base64: send the bytes of the image file as base64.", param=name
        ) from None
