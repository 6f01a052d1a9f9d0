"""A bounded queue in front of the model, and the thread that joins waiting jobs into batches.

The oldest job decides the kind of a batch; younger ones of the same kind join it, with any settings, up to the maximum
number of jobs and tokens in a batch. So every job gets its turn, and only one thread runs the model.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence

from .api_error import ApiError, closing, timed_out
from .job import Job
from .limits import Limits
from .prometheus import Metrics


logger = logging.getLogger("uniedit.serving")
FAILURES = 3  # consecutive failed batches after which the server reports itself as unhealthy


class Stopped(Exception):
    """Raised to end a batch when every client of it has left."""


class Batcher:
    """Runs jobs on the model.

    Args:
        run: Runs jobs of one kind and sends each its result.
        size: Maximum number of jobs in a batch.
        limits: `batch_tokens`, `batch_wait` and `max_requests` are used here.
        metrics: Receives the figures.
    """

    def __init__(self, run: Callable[[Sequence[Job]], None], size: int, limits: Limits, metrics: Metrics):
        self.run, self.size, self.limits, self.metrics = run, size, limits, metrics
        self.waiting: list[Job] = []
        self.changed = threading.Condition()
        self.closed = False
        self.failures = 0
        self.batch_seconds = 1.0  # moving average
        self.thread = threading.Thread(target=self._serve, name="uniedit-model", daemon=True)
        self.thread.start()

    @property
    def healthy(self) -> bool:
        """Whether the model's thread is alive and its last batches did not all fail."""
        return self.thread.is_alive() and self.failures < FAILURES

    def submit(self, jobs: Sequence[Job]) -> None:
        """Puts jobs into the queue, all or none.

        Raises:
            ApiError: If the queue is full, the server is shutting down, or a job alone has too many tokens.
        """
        for job in jobs:
            if job.tokens > self.limits.batch_tokens:
                raise ApiError(
                    400,
                    f"The request takes {job.tokens:,} tokens (texts, images and the longest answer), but the server "
                    f"runs at most {self.limits.batch_tokens:,} at a time: shorten it.",
                    code="context_length_exceeded",
                )
        with self.changed:
            if self.closed:
                raise closing()
            self.waiting = self._still_wanted()
            if len(self.waiting) + len(jobs) > self.limits.max_requests:
                raise self.busy()
            self.waiting += jobs
            self.metrics.waiting.set(len(self.waiting))
            self.changed.notify()

    def busy(self) -> ApiError:
        """The error for a full queue, with an estimate of when to try again."""
        batches = len(self.waiting) / self.size
        wait = min(60, max(1, math.ceil(batches * self.batch_seconds)))
        return ApiError(
            429,
            f"The server is busy: {self.limits.max_requests} requests are under way. Try again in {wait} s.",
            code="server_busy",
            headers={"Retry-After": str(wait)},
        )

    def close(self) -> None:
        """Refuses waiting and new jobs; the running batch is finished."""
        with self.changed:
            self.closed = True
            waiting, self.waiting = self.waiting, []
            self.metrics.waiting.set(0)
            self.changed.notify()
        for job in waiting:
            job.tell(closing())

    # --- the model's thread -------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while (batch := self._next_batch()) is not None:
            if not batch:
                continue
            verb, begun = batch[0].asked.verb, time.monotonic()
            for job in batch:
                self.metrics.wait_seconds.observe(begun - job.made)
            self.metrics.running.set(len(batch))
            self.metrics.batch_size.labels(verb).observe(len(batch))
            self._run(batch)
            seconds = time.monotonic() - begun
            self.batch_seconds = 0.7 * self.batch_seconds + 0.3 * seconds
            self.metrics.batch_seconds.labels(verb).observe(seconds)
            self.metrics.running.set(0)

    def _next_batch(self) -> list[Job] | None:
        """The next batch: waits for jobs and drops those whose client left. None once the queue is closed."""
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or self.closed)
            if len(self.waiting) < self.size and not self.closed:
                self.changed.wait_for(lambda: self.closed, timeout=self.limits.batch_wait)
            batch, left, tokens = [], [], 0
            for job in self._still_wanted():
                if not batch or self._joins(job, batch, tokens):
                    batch.append(job)
                    tokens += job.tokens
                else:
                    left.append(job)
            self.waiting = left
            self.metrics.waiting.set(len(left))
            return batch if batch or not self.closed else None

    def _joins(self, job: Job, batch: list[Job], tokens: int) -> bool:
        return (
            job.asked.kind == batch[0].asked.kind
            and len(batch) < self.size
            and tokens + job.tokens <= self.limits.batch_tokens
        )

    def _still_wanted(self) -> list[Job]:
        """The waiting jobs that are still wanted; the others receive a timeout error."""
        for job in (gone := [job for job in self.waiting if job.gone]):
            self.metrics.cancelled.inc()
            job.tell(timed_out(job.seconds))
        return [job for job in self.waiting if job not in gone]

    def _run(self, batch: list[Job]) -> None:
        """Runs a batch. If it fails, runs each of its jobs alone, so that one job cannot fail the others."""
        try:
            self.run(batch)
            self.failures = 0
        except Stopped:
            pass
        except Exception as error:
            if len(batch) > 1:
                for job in batch:
                    self._run([job])
            elif not batch[0].gone:
                batch[0].tell(self._as_api_error(error))
            return
        self.metrics.cancelled.inc(sum(not job.ended for job in batch))

    def _as_api_error(self, error: Exception) -> ApiError:
        """The pipeline raises ValueError for errors in a request; any other error is the server's."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, ValueError):
            return ApiError(400, str(error))
        self.failures += 1
        self.metrics.failed.inc()
        logger.error("A batch failed.", exc_info=error)
        return ApiError(500, "The model failed at this request; the server's log says why.", code="internal_error")
