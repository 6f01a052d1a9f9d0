"""Rows flow through the stages in the order of the source, many at a time, and none is lost on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field

from uniedit_hf.synthesis.records import Draft, Rejection


Result = Draft | Rejection


@dataclass
class Passed:
    """How many rows a stage took and gave.

    Args:
        taken: Drafts and rejections that came in.
        given: Drafts and rejections that went out.
        rejected: Drafts that became rejections here, by reason.
    """

    taken: int = 0
    given: int = 0
    rejected: dict[str, int] = field(default_factory=dict)

    def note(self, before: Result, after: Result) -> None:
        self.given += 1
        if isinstance(before, Draft) and isinstance(after, Rejection):
            self.rejected[after.reason] = self.rejected.get(after.reason, 0) + 1


async def at_once(
    rows: AsyncGenerator[Result], work: Callable[[Draft], Awaitable[Result]], window: int, passed: Passed
) -> AsyncGenerator[Result]:
    """Works on up to `window` drafts at the same time and gives results in the order in which drafts came.

    Raises:
        Exception: What `work` raises, after everything under way was stopped.
    """
    waiting: asyncio.Queue[tuple[Result, asyncio.Task | None] | Exception | None] = asyncio.Queue(window)
    feeding = asyncio.create_task(_feed(rows, work, waiting, passed))
    current: asyncio.Task | None = None
    try:
        while (entry := await waiting.get()) is not None:
            if isinstance(entry, Exception):
                raise entry
            row, current = entry
            result = row if current is None else await current
            passed.note(row, result)
            yield result
    finally:
        await _stop(feeding, current, waiting)
        await rows.aclose()


async def in_turn(
    rows: AsyncGenerator[Result], work: Callable[[Draft], Result | Awaitable[Result]], passed: Passed
) -> AsyncGenerator[Result]:
    """Works on one draft after another, for what depends on those before it."""
    try:
        async for row in rows:
            passed.taken += 1
            result = work(row) if isinstance(row, Draft) else row
            if not isinstance(result, (Draft, Rejection)):
                result = await result
            passed.note(row, result)
            yield result
    finally:
        await rows.aclose()


async def _feed(rows, work, waiting: asyncio.Queue, passed: Passed) -> None:
    try:
        async for row in rows:
            passed.taken += 1
            task = asyncio.create_task(work(row)) if isinstance(row, Draft) else None
            try:
                await waiting.put((row, task))
            except asyncio.CancelledError:
                await _cancelled([task] if task else [])
                raise
        await waiting.put(None)
    except Exception as error:  # it is raised where the rows are taken, behind those that came before it
        await waiting.put(error)


async def _stop(feeding: asyncio.Task, current: asyncio.Task | None, waiting: asyncio.Queue) -> None:
    await _cancelled([feeding])
    tasks = [] if current is None else [current]
    while not waiting.empty():
        match waiting.get_nowait():
            case (_, asyncio.Task() as task):
                tasks.append(task)
    await _cancelled(tasks)


async def _cancelled(tasks: list[asyncio.Task]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
