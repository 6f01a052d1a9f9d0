"""Streamed responses, as server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from starlette.responses import StreamingResponse
from starlette.types import Send

from .api_error import ApiError
from .job import Job


DONE = "data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class EventResponse(StreamingResponse):
    """A stream of events of a job. The job ends with the stream, also when the client leaves.

    Args:
        events: The events as text; an error is sent as the last one.
        job: The job behind them.
    """

    def __init__(self, events: AsyncIterator[str], job: Job):
        super().__init__(_with_error(events), media_type="text/event-stream", headers=HEADERS)
        self.job = job

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        finally:
            self.job.left = True  # closing the generators would wait, which a cancelled task cannot do


def event(content: dict, name: str | None = None) -> str:
    """One event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(content, separators=(',', ':'))}\n\n"


async def _with_error(events: AsyncIterator[str]) -> AsyncIterator[str]:
    try:
        async for each in events:
            yield each
    except ApiError as error:
        yield event(error.body, "error")


async def begun(events: AsyncIterator) -> AsyncIterator:
    """The same events, after waiting for the first one, so that an error before it has its own HTTP status."""
    first = await anext(events)

    async def again() -> AsyncIterator:
        yield first
        async for each in events:
            yield each

    return again()
