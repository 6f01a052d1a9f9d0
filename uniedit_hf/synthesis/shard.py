"""Makes one shard: its rows go from the source through every stage into files, in the order of the source, many at a
time, and every row is accounted for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

from uniedit_hf.calls.budget import Budget, BudgetReached
from uniedit_hf.calls.cache import CallCache, Spent
from uniedit_hf.calls.caller import Caller
from uniedit_hf.randomness import python_random
from uniedit_hf.small_world.rules import classify_by_rules, draw_exactly, instruct_by_rules, read_back
from uniedit_hf.synthesis.backends.making import make_backend
from uniedit_hf.synthesis.benchmark_hashes import benchmark_hashes
from uniedit_hf.synthesis.ocr import TextReader
from uniedit_hf.synthesis.progress_bars import Passed, Progress
from uniedit_hf.synthesis.records import Draft, Rejection
from uniedit_hf.synthesis.settings import BudgetSettings, PlainEdits, Settings
from uniedit_hf.synthesis.sources.reading import count_source, drafts_of
from uniedit_hf.synthesis.stages.balance import Balancer, quotas
from uniedit_hf.synthesis.stages.classify import classify
from uniedit_hf.synthesis.stages.draw import edit
from uniedit_hf.synthesis.stages.duplicates import SeenBefore
from uniedit_hf.synthesis.stages.inspection import ImageInspection
from uniedit_hf.synthesis.stages.instruct import instruct
from uniedit_hf.synthesis.stages.screen import screen
from uniedit_hf.synthesis.stages.verify import verify
from uniedit_hf.synthesis.writer import ShardFiles, ShardWriter, fingerprint


NOT_REACHED = "not reached"

Result = Draft | Rejection


def make_shard(
    settings: Settings, number: int, budget: BudgetSettings | None = None, earlier: Sequence[Spent] = ()
) -> dict[str, Any]:
    """Makes a shard, or resumes it; a finished one is not changed.

    Args:
        settings: Settings of the run.
        number: Number of the shard.
        budget: Limits; those of the run by default.
        earlier: The amount that other shards have spent.

    Returns:
        The summary of the shard.

    Raises:
        ValueError: If the source cannot be read, a backend cannot answer, or another run uses the folder.
    """
    files = ShardFiles(settings.output_dir, number)
    summary = files.read_summary()
    if summary is not None and summary["complete"] and summary["fingerprint"] == fingerprint(settings):
        return summary
    return _finished(Shard(settings, number, budget or settings.budget, earlier).make(files))


class Shard:
    """The stages of one shard and what they share."""

    def __init__(self, settings: Settings, number: int, budget: BudgetSettings, earlier: Sequence[Spent]):
        self.settings, self.number = settings, number
        self.limits, self.earlier = budget, earlier
        self.stopped: str | None = None
        self.passed: dict[str, Passed] = {}
        self.wanted = places = None
        if settings.balance.size is not None:
            self.wanted = quotas(settings.balance.size, dict.fromkeys(range(settings.shards), 1.0))[number]
            places = None if settings.planned else quotas(self.wanted, settings.balance.weights)
        self.balance = Balancer(places, lag=2 * settings.window + 8)
        self.outcomes: dict[tuple[int, int], asyncio.Future[Result]] = {}

    async def make(self, files: ShardFiles) -> dict[str, Any]:
        settings, work = self.settings, self.settings.output_dir / "work"
        async with AsyncExitStack() as closing:
            cache = CallCache(calls_of(settings.output_dir, self.number), work / "pictures")
            closing.callback(cache.close)
            spent = cache.spent()
            of_backends = [spent[name] for name in spent if name in settings.backends]  # reading text costs nothing
            self.budget = Budget(self.limits, [*of_backends, *self.earlier])
            self.callers = {}
            for name in self._used():
                backend = make_backend(name, settings.backends[name])
                closing.push_async_callback(backend.close)
                self.callers[name] = Caller(name, backend, settings.backends[name], cache, self.budget)
                closing.push_async_exit(self.callers[name].finish)
            self.reader = TextReader(cache) if settings.verify.ocr else None
            benchmarks = benchmark_hashes(settings.decontaminate, work / "benchmarks")
            inspection = ImageInspection(benchmarks, near=settings.decontaminate.near_duplicates)
            seen = SeenBefore(work / "seen" / f"{self.number:05d}.sqlite", settings.screen.similarity)
            closing.callback(seen.close)
            title = f"Shard {self.number + 1} of {settings.shards}" if settings.shards > 1 else "Synthesis"
            rows = count_source(settings.source) if self.wanted is None else None
            self.progress = Progress(title, rows, self.wanted)
            closing.callback(self.progress.close)
            watching = asyncio.create_task(self.progress.watch(self.passed, self.callers, self.budget))
            closing.push_async_callback(_cancel, watching)
            return await self._write(self._flow(inspection, seen), files, cache)

    def _flow(self, inspection: ImageInspection, seen: SeenBefore) -> AsyncGenerator[Result]:
        """Chains the stages: those that depend on earlier rows take one row at a time, the others many."""
        window = self.settings.window
        rows = self._source()
        rows = at_once(rows, inspection, window, self._counted("inspect"))
        # Planned edits may use an image again, and a control has an edit for every row, even if two are identical.
        planned, control = self.settings.planned, isinstance(self.settings.source, PlainEdits)
        rows = in_turn(rows, _same if planned else seen.question, self._counted("duplicates"))
        rows = at_once(rows, self._until_spent(self._classify), window, self._counted("classify"))
        rows = in_turn(rows, self.balance, self._counted("balance"))
        rows = at_once(rows, self._until_spent(self._instruct), window, self._counted("instruct"))
        rows = in_turn(rows, _same if control else seen.instruction, self._counted("screen"))
        return at_once(rows, self._until_spent(self._draw), window, self._counted("edit, verify"))

    async def _source(self) -> AsyncGenerator[Result]:
        rows, became = drafts_of(self.settings, self.number), None
        while self.balance.end is None and self.stopped is None:
            try:
                row = rows.send(became)
            except StopIteration:
                return
            if self.settings.planned:
                outcome = self.outcomes[row.position] = asyncio.get_running_loop().create_future()
            yield row
            self.progress.read = row.position[0] + 1
            became = await outcome if self.settings.planned else None

    async def _classify(self, draft: Draft) -> Result:
        section, seed = self.settings.classify, self.settings.seed
        if draft.plan is not None:
            return draft.with_(short_answer=draft.answer)
        if section is not None and section.backend == "rules":
            weights = self.settings.balance.weights
            return classify_by_rules(draft, weights, python_random(seed, draft.id, "category"))
        return await classify(draft, None if section is None else self.callers[section.backend])

    async def _instruct(self, draft: Draft) -> Result:
        settings = self.settings
        if settings.instruct.backend == "rules":
            return instruct_by_rules(draft, settings.instruct, settings.seed)
        caller = self.callers[settings.instruct.backend]
        written = await instruct(draft, caller, settings.instruct, settings.seed)
        return screen(written, settings.screen) if isinstance(written, Draft) else written

    async def _draw(self, draft: Draft) -> Result:
        section, settings = self.settings.verify, self.settings
        if settings.edit.backend == "exact":
            drawn = draw_exactly(draft)
        else:
            drawn = await edit(draft, self.callers[settings.edit.backend], settings.edit, settings.seed)
        if isinstance(drawn, Rejection):
            return drawn
        if section.judge == "rules":
            return read_back(drawn)
        judge, quality = (self.callers.get(name) for name in (section.judge, section.quality))
        return await verify(drawn, judge, quality, self.reader, section)

    async def _write(self, rows: AsyncGenerator[Result], files: ShardFiles, cache: CallCache) -> dict[str, Any]:
        writer, not_reached, count, read = ShardWriter(files), 0, 0, 0
        async for result in rows:
            count += 1
            self.balance.finish(result)
            if self.settings.planned:
                self.outcomes.pop(result.position).set_result(result)
            if self.balance.end is not None and result.position >= self.balance.end:
                continue  # read ahead, beyond the actual end
            if isinstance(result, Rejection) and result.stage == NOT_REACHED:
                not_reached += 1
            else:
                writer.write(result)
                self.progress.made = writer.num_records
                read = result.position[0] + 1
        _check_counts(self.passed, count)
        self.progress.show(self.passed, self.callers, self.budget)
        spent, failed = cache.spent(), sum(caller.failed for caller in self.callers.values())
        summary = {
            # Failed calls may succeed later, so the next run processes this shard again.
            "complete": self.stopped is None and not failed,
            "failed": failed,
            "fingerprint": fingerprint(self.settings),
            "stopped": self.stopped,
            "read": read,
            "records": writer.num_records,
            "rejects": writer.num_rejects,
            "not_reached": not_reached,
            "backends": {
                name: {"made": caller.made, "kept": caller.cached, **vars(spent.get(name, Spent()))}
                for name, caller in self.callers.items()
            },
        }
        writer.close(summary)
        return summary

    def _used(self) -> list[str]:
        settings = self.settings
        sections = (settings.classify, settings.instruct, settings.edit)
        names = [*(section.backend for section in sections if section), settings.verify.judge, settings.verify.quality]
        return [name for name in dict.fromkeys(names) if name in settings.backends]

    def _counted(self, name: str) -> Passed:
        return self.passed.setdefault(name, Passed())

    def _until_spent(self, work: Callable[[Draft], Awaitable[Result]]) -> Callable[[Draft], Awaitable[Result]]:
        return partial(self._run_until_spent, work)

    async def _run_until_spent(self, work: Callable[[Draft], Awaitable[Result]], draft: Draft) -> Result:
        try:
            return await work(draft)
        except BudgetReached as reached:
            self.stopped = str(reached)
            return draft.rejected(NOT_REACHED, "the budget is used up")


def calls_of(output_dir: Path, number: int) -> Path:
    """The file of a shard's calls."""
    return output_dir / "work" / "calls" / f"{number:05d}.sqlite"


def _finished(making: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """Runs a coroutine and returns its result; in a notebook, where a loop is already running, in a thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(making)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, making).result()


def _same(draft: Draft) -> Draft:
    return draft


def _check_counts(passed: dict[str, Passed], written: int) -> None:
    """Raises RuntimeError if rows were lost or duplicated in a stage or between two stages."""
    before = None
    for name, counts in passed.items():
        if counts.taken != counts.given or before not in (None, counts.taken):
            raise RuntimeError(f"The stage {name} took {counts.taken} rows of {before} and gave {counts.given}.")
        before = counts.given
    if before != written:
        raise RuntimeError(f"{before} rows came out of the last stage, and {written} were written.")


async def _cancel(task: asyncio.Task) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def at_once(
    rows: AsyncGenerator[Result], work: Callable[[Draft], Awaitable[Result]], window: int, passed: Passed
) -> AsyncGenerator[Result]:
    """Processes up to `window` drafts at the same time and yields results in the order of the drafts.

    Raises:
        Exception: The error that `work` raises, after all work in progress was stopped.
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
    """Processes one draft after another, for stages that depend on earlier drafts."""
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
            if task is not None:  # the error that stops the run is raised once; errors of the other tasks are dropped
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
            try:
                await waiting.put((row, task))
            except asyncio.CancelledError:
                await _cancelled([task] if task else [])
                raise
        await waiting.put(None)
    except Exception as error:  # raised where the rows are consumed, after the rows before it
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
