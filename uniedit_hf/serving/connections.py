"""HTTP connections that a stalling client cannot keep open: uvicorn's protocol with time limits for the head of a
request and for reading the response.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol


def bounded_protocol(send_seconds: float, begin_seconds: float) -> type[H11Protocol]:
    """The class of such connections.

    Args:
        send_seconds: A client that has not read the sent data by then is disconnected.
        begin_seconds: A client that has not sent the head of a request by then is disconnected.
    """

    class BoundedProtocol(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:
            self.begin, self.send = _Cut(transport, begin_seconds), _Cut(transport, send_seconds)
            transport.set_write_buffer_limits(high=0)  # so that unread data is noticed
            super().connection_made(transport)
            self.begin.start()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            # between requests, what arrives is part of a head, or of a body that was answered before it had arrived
            if self.cycle is None or self.cycle.response_complete:
                self.begin.start()
            else:
                self.begin.stop()

        def pause_writing(self) -> None:
            super().pause_writing()
            self.send.start()

        def resume_writing(self) -> None:
            super().resume_writing()
            self.send.stop()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self.begin.stop()
            self.send.stop()

    return BoundedProtocol


class _Cut:
    """Disconnects after some seconds, unless it is cancelled before."""

    def __init__(self, transport: asyncio.Transport, seconds: float):
        self.transport, self.seconds = transport, seconds
        self.timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        if self.timer is None:
            self.timer = asyncio.get_running_loop().call_later(self.seconds, self.transport.abort)

    def stop(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
