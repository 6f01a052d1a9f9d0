"""Middleware for every request: log line and metrics, API key, number of requests, size and duration of the upload."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .api_error import ApiError, closing
from .service import ClientLeft, Service


logger = logging.getLogger("uniedit.serving")
OPEN = ("/health", "/metrics")  # without a key


class Watched:
    """Counts and logs responses. A log line has the route, never the requested URL, which may contain a key."""

    def __init__(self, app: ASGIApp, service: Service):
        self.app, self.metrics = app, service.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begun, status = time.monotonic(), 499  # nginx's status for a request whose client disconnected

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except ClientLeft:
            pass
        except Exception:
            status = 500
            raise
        finally:
            seconds = time.monotonic() - begun
            route = getattr(scope.get("route"), "path", "none")
            self.metrics.requests.labels(route, status).inc()
            self.metrics.request_seconds.labels(route).observe(seconds)
            logger.info("%s %s %d %.3f s", scope["method"] if route != "none" else "-", route, status, seconds)


class Keyed:
    """Lets in requests that carry one of the keys, as `Authorization: Bearer KEY`. Without keys, all are let in."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]):
        self.app, self.hashes = app, [_hash(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.hashes and scope["path"] not in OPEN and not self._knows(scope):
            error = ApiError(
                401,
                "A key is missing or wrong: send it as `Authorization: Bearer KEY`.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
            return await error.response(scope, receive, send)
        await self.app(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        sent = _hash(key.strip().encode("latin-1"))  # the bytes as they were sent
        found = [hmac.compare_digest(sent, known) for known in self.hashes]  # compares all keys, in constant time
        return scheme.lower() == "bearer" and any(found)


class Bounded:
    """Limits the number of requests under way, and the size and upload time of each."""

    def __init__(self, app: ASGIApp, service: Service):
        self.app, self.service, self.limits = app, service, service.limits
        self.count = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        batcher, in_flight = self.service.batcher, self.service.metrics.in_flight
        if batcher.closed:
            return await closing().response(scope, receive, send)
        if self.count >= self.limits.max_requests:
            return await batcher.busy().response(scope, receive, send)
        self.count += 1
        in_flight.inc()
        try:
            await self.app(scope, self._limited(scope, receive), send)
        finally:
            self.count -= 1
            in_flight.dec()

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        most = self.limits.max_bytes
        too_large = ApiError(413, f"The request is larger than {most / 1e6:g} MB: send smaller images.")
        stated = Headers(scope=scope).get("content-length", "")
        count, whole, end = 0, False, time.monotonic() + self.limits.upload_seconds

        async def limited() -> Message:
            nonlocal count, whole
            if whole:
                return await receive()
            if stated.isdecimal() and len(stated) < 20 and int(stated) > most:
                raise too_large
            try:
                async with asyncio.timeout(end - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                raise ApiError(408, f"The request did not arrive within {self.limits.upload_seconds:g} s.") from None
            if message["type"] == "http.disconnect":
                raise ClientLeft
            count += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if count > most:
                raise too_large
            return message

        return limited


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
