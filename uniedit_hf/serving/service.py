"""The parts of a server that the routes use."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import Request

from uniedit_hf import UniEditPipeline

from .api_error import ApiError
from .batcher import Batcher
from .image_fetcher import ImageFetcher
from .image_reader import ImageReader
from .limits import Limits
from .preparing import Preparer
from .prometheus import Metrics
from .runner import Runner
from .server_settings import ServerSettings


Value = TypeVar("Value")


class ClientLeft(Exception):
    """The client closed the connection before it was answered."""


class Service:
    """The model with its queue, and the preparation of requests.

    Args:
        pipe: The pipeline; from now on only the batcher's thread runs it.
        settings: Settings of the server.
        limits: Limits of requests.
    """

    def __init__(self, pipe: UniEditPipeline, settings: ServerSettings, limits: Limits):
        pipe.batch_size = settings.batch_size
        self.settings, self.limits = settings, limits
        fetcher = None
        if settings.fetch_images:
            fetcher = ImageFetcher(limits.max_bytes, limits.upload_seconds)
        self.metrics = Metrics()
        self.preparer = Preparer(pipe, limits, ImageReader(limits.max_pixels, fetcher))
        self.batcher = Batcher(Runner(pipe, self.metrics), settings.batch_size, limits, self.metrics)

    def check_model(self, name: str | None) -> None:
        """Raises `ApiError` with status 404 if a request names another model."""
        if name is not None and name != self.settings.name:
            raise ApiError(
                404,
                f"There is no such model here: use {self.settings.name!r}, or leave model out.",
                code="model_not_found",
                param="model",
            )


async def while_connected(request: Request, work: Awaitable[Value]) -> Value:
    """The result of `work`, which is cancelled when the client leaves. The request's body must have been read.

    Raises:
        ClientLeft: If the client leaves.
    """
    working, left = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait([working, left], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeft
    finally:
        for task in (working, left):
            task.cancel()
        await asyncio.gather(working, left, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
