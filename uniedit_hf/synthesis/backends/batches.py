"""Groups simultaneous requests into batches for a local model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any


WAIT = 0.02  # seconds for others to join


class Batches:
    """Runs `work` on lists of requests, one list at a time, in its own thread.

    Args:
        work: Maps a list of requests to a list of replies.
        size: Maximum number of requests in a batch.
        kind: The key that all requests of a batch must share.
    """

    def __init__(self, work: Callable[[Sequence[Any]], Sequence[Any]], size: int, kind: Callable[[Any], Hashable]):
        self.work, self.size, self.kind = work, size, kind
        self.waiting: list[tuple[Any, asyncio.Future]] = []
        self.thread = ThreadPoolExecutor(1)
        self.running: asyncio.Task | None = None

    async def reply(self, request: Any) -> Any:
        """The reply to one request. Raises what `work` raises."""
        future = asyncio.get_running_loop().create_future()
        self.waiting.append((request, future))
        if self.running is None or self.running.done():
            self.running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while self.waiting:
            if len(self.waiting) < self.size:
                await asyncio.sleep(WAIT)
            kind = self.kind(self.waiting[0][0])
            batch = [entry for entry in self.waiting if self.kind(entry[0]) == kind][: self.size]
            self.waiting = [entry for entry in self.waiting if entry not in batch]
            try:
                replies = await asyncio.get_running_loop().run_in_executor(
                    self.thread, self.work, [request for request, _ in batch]
                )
            except Exception as error:  # passed on to the waiting requests
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), reply in zip(batch, replies, strict=True):
                if not future.done():
                    future.set_result(reply)

    def close(self) -> None:
        self.thread.shutdown()
