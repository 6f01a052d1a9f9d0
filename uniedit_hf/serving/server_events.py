"""Responses that come piece by piece, as server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from starlette.responses import StreamingResponse
from starlette.types import Send

from .api_error import ApiError


DONE = "data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def event(content: dict, name: str | None = None) -> str:
    """One event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(content, separators=(',', ':'))}\n\n"


class EventResponse(StreamingResponse):
    """A stream of events that is closed, and with it the work behind it, however the response ends."""

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        finally:
            await self.body_iterator.aclose()


def event_stream(events: AsyncIterator[str]) -> EventResponse:
    """The response of a stream of events; what goes wrong on the way is its last event."""
    return EventResponse(_with_error(events), media_type="text/event-stream", headers=HEADERS)


async def _with_error(events: AsyncIterator[str]) -> AsyncIterator[str]:
    try:
        async for each in events:
            yield each
    except ApiError as error:
        yield event(error.body, "error")
    finally:
        await events.aclose()


async def begun(events: AsyncIterator) -> AsyncIterator:
    """The same events, the first one waited for, so that what goes wrong before it has a status of its own."""
    first = await anext(events)

    async def again() -> AsyncIterator:
        try:
            yield first
            async for each in events:
                yield each
        finally:
            await events.aclose()

    return again()
