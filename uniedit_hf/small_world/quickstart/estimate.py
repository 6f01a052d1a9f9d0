"""Estimates the time of a run: times a few edits, one training step and a few items, and extrapolates."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from heapq import heapify, heapreplace
from itertools import cycle, islice
from pathlib import Path

import torch

from uniedit_hf.arithmetic import Arithmetic, one_thread
from uniedit_hf.models.loading import load_model, load_processor
from uniedit_hf.pipeline import UniEditPipeline
from uniedit_hf.recipes import edit_sample
from uniedit_hf.small_world.easy_vqa import load_easy_vqa
from uniedit_hf.small_world.edits import intelligent_edits
from uniedit_hf.small_world.suite import ask, batches
from uniedit_hf.small_world.suite_items import test_items
from uniedit_hf.synthesis.records import Record, record_to_row

from .tuning import replay_settings, small_world


SOME_EDITS, SOME_ITEMS = 20, 4
# Making an edit is followed by its plain counterpart, Parquet files, reports and contact sheets.
ALL_OF_AN_EDIT = 2.5
PAGE = 4.0  # seconds


@dataclass(frozen=True)
class Speed:
    """Seconds per unit of each part, with all processes running.

    Args:
        edit: Making an edit and its plain counterpart.
        step: A training step.
        item: Answering, drawing or editing a test item.
        start: Starting a process.
    """

    edit: float
    step: float
    item: float
    start: float


def measured_speed(base: Path, arithmetic: Arithmetic, start: float) -> Speed:
    """Times a few units of every part with the model in `base`.

    Args:
        base: Folder of the model.
        arithmetic: The arithmetic of training.
        start: Seconds that this process took to start.
    """
    with one_thread():
        rows = load_easy_vqa("train")
        results = (each for each in intelligent_edits(rows, seed=0, size=2 * SOME_EDITS) if isinstance(each, Record))
        records = list(islice(results, SOME_EDITS))  # the first ones also pay for reading the data set
        edit = ALL_OF_AN_EDIT * _seconds(lambda: records.extend(results)) / SOME_EDITS
        model = load_model(base, attn_implementation="eager").to(arithmetic.device)
        processor = load_processor(base, model.config)
        largest = (small_world(base) | replay_settings(base))["max_tokens_per_pack"]
        step = _step_seconds(model, processor, records, arithmetic, largest)
        item = _item_seconds(UniEditPipeline(model, processor))
    slower = _slowdown(arithmetic.jobs)
    return Speed(edit, step * slower, item * slower, start)


def makespan(durations: Sequence[float], jobs: int) -> float:
    """Seconds until all tasks are done, if they are started in order, `jobs` at a time."""
    loads = [0.0] * jobs
    heapify(loads)
    for duration in durations:
        heapreplace(loads, loads[0] + duration)
    return max(loads)


def in_words(seconds: float) -> str:
    """A readable duration: `40 s`, `3 min 20 s`, `12 min`."""
    if seconds < 90:
        return f"{max(5, 5 * round(seconds / 5))} s"
    minutes, rest = divmod(10 * round(seconds / 10), 60)
    return f"{minutes} min {rest} s" if rest and minutes < 10 else f"{minutes + (rest >= 30)} min"


def _step_seconds(model, processor, records: Sequence[Record], arithmetic: Arithmetic, max_tokens: int) -> float:
    """The second of two steps on a pack of the usual size."""
    samples = [edit_sample(record_to_row(record), conditioning=processor.conditioning) for record in records]
    size = processor.pack(samples, 0)["input_ids"].shape[1] / len(samples)
    model.train()
    trained = [weight for name, weight in model.named_parameters() if "language_model" in name]
    optimizer = torch.optim.AdamW(trained, lr=0.0)

    def step() -> None:
        pack = processor.pack(list(islice(cycle(samples), max(1, int(max_tokens / size)))), 0)
        with arithmetic.autocast():
            losses = model(**pack.to(model.device))
            (losses.image_sum / losses.image_count).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    return _seconds(step)


def _item_seconds(pipeline: UniEditPipeline) -> float:
    items = test_items(SOME_ITEMS)
    pipeline.batch_size = len(items)

    def ask_all() -> None:
        for indices in batches(items, len(items)):
            ask(pipeline, [items[i] for i in indices], [0] * len(indices))

    return _seconds(ask_all) / len(items)


def _slowdown(jobs: int) -> float:
    """The slowdown of work while the other core does the same work."""
    if jobs == 1:
        return 1.0
    matrix = torch.ones(384, 384)

    def work(_=None) -> float:
        return _seconds(lambda: [matrix @ matrix for _ in range(20)])

    with one_thread(), ThreadPoolExecutor(jobs) as pool:
        work()
        alone = min(work() for _ in range(3))
        together = min(max(pool.map(work, range(jobs))) for _ in range(3))
    return max(1.0, together / alone)


def _seconds(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun
