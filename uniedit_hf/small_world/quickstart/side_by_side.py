"""Runs tasks in parallel in processes of one thread each, and stops them cleanly on Ctrl-C and SIGTERM."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import contextmanager
from queue import Empty


# Called with the name of a task, of its part, and how many units of that part are done.
Tell = Callable[[str, str, int], None]
Task = Callable[[Tell], None]

# In a worker: the queue for its progress, whether it runs a task, and whether it was told to stop.
_events = None
_busy = _stopped = False


def run_side_by_side(tasks: Sequence[Task], jobs: int, tell: Tell) -> None:
    """Runs all tasks, `jobs` at a time, in order.

    Args:
        tasks: Picklable if `jobs` is more than 1.
        jobs: Processes; with 1 the tasks run in this one.
        tell: Called with the progress, in this process.

    Raises:
        Exception: The error of the first failing task.
        KeyboardInterrupt: After Ctrl-C, when the workers have saved their state.
    """
    if jobs == 1:
        for task in tasks:
            task(tell)
        return
    context = multiprocessing.get_context("spawn")
    events = context.Queue()
    with (
        _sigterm_raises(),
        ProcessPoolExecutor(jobs, context, _begin_worker, (events,)) as pool,
    ):
        with _workers_ignore_ctrl_c():
            waiting = {pool.submit(_run, task) for task in tasks}
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0.5, return_when="FIRST_EXCEPTION")
                _pass_on(events, tell)
                for each in done:
                    each.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()  # a trainer saves a checkpoint first
            raise


def _run(task: Task) -> None:
    global _busy, _stopped
    if _stopped:  # a task that was handed out already
        raise SystemExit(128 + signal.SIGTERM)
    _busy = True
    try:
        task(lambda *progress: _events.put(progress))
    except (SystemExit, KeyboardInterrupt):  # of a trainer, which has handlers of its own
        _stopped = True
        raise
    finally:
        _busy = False


def _stop(number, frame) -> None:
    """Ends the task. A worker without one waits for the end of the pool: it may hold the lock of the queue of tasks,
    and the other workers would wait for that lock forever if it ended here.
    """
    global _stopped
    _stopped = True
    if _busy:
        raise SystemExit(128 + number)


def _begin_worker(events) -> None:
    global _events
    _events = events
    signal.signal(signal.SIGTERM, _stop)
    os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported; the parent shows one line for all
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends a worker if its parent was killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _pass_on(events, tell: Tell) -> None:
    while True:
        try:
            tell(*events.get_nowait())
        except Empty:
            return


@contextmanager
def _workers_ignore_ctrl_c() -> Iterator[None]:
    """The terminal sends Ctrl-C to workers as well; processes started in this context leave it to their parent."""
    with _handler(signal.SIGINT, signal.SIG_IGN):
        yield


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    def stop(number, frame):
        raise SystemExit(128 + number)

    with _handler(signal.SIGTERM, stop):
        yield


@contextmanager
def _handler(number: signal.Signals, handler) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # Python handles signals only in the main thread
        yield
        return
    previous = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, previous)
