"""Rows to packs: what the trainer's data loaders iterate over.

    rows --recipe--> samples --dropout--> lengths --planner--> packs --processor--> what the model's forward takes

A data set of known length is planned whole before training (`plan_run`, `PackedDataset`), a stream over a window
(`PackStream`). A row that cannot be used raises, or is left out and reported with the pack it was meant for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from datasets import Dataset, Image, IterableDataset
from torch.utils.data import get_worker_info

from uniedit_hf.images import ImageError
from uniedit_hf.packing import OversizedSampleError, PackPlan, StreamPacker, plan_packs, split_over_ranks
from uniedit_hf.randomness import derive_seed
from uniedit_hf.recipes import MixedRow, RowError, draw_dropout, mix
from uniedit_hf.segments import Sample, TextSegment


Recipe = Callable[[Mapping[str, Any]], Sample]
BAD_ROW_ERRORS = (RowError, ImageError, OSError)


@dataclass
class TrainingPart:
    """A data set, what its rows become, and its share of the samples.

    Args:
        dataset: A `datasets.Dataset` or `IterableDataset` in the row schema of `uniedit-148k`.
        recipe: From a row to a `Sample`.
        weight: Share of the samples, relative to the other parts.
    """

    dataset: Dataset | IterableDataset
    recipe: Recipe
    weight: float = 1.0

    def __post_init__(self):
        self.dataset = undecoded(self.dataset)


def undecoded(dataset):
    """The data set with its images as bytes or paths, so that they are opened once, by us, with our errors."""
    for name, feature in (dataset.features or {}).items():
        if isinstance(feature, Image) and feature.decode:
            dataset = dataset.cast_column(name, Image(decode=False))
    return dataset


@dataclass(frozen=True)
class BadRow:
    """A row that was left out, and why."""

    id: str
    reason: str


@dataclass
class RunPlan:
    """The packs of a whole run, epoch after epoch.

    Args:
        packs: Per pack its rows.
        tokens: Per pack its tokens.
        epochs: Per pack the epoch it belongs to.
        bad_rows: Rows that were left out while planning.
    """

    packs: list[list[MixedRow]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    bad_rows: list[BadRow] = field(default_factory=list)


class PartLengths:
    """Tokens of every segment of every row of a part, without the pixels.

    Image columns are not read where the sizes stand in columns of their own.
    """

    def __init__(self, part: TrainingPart, processor, keep_bad_rows: bool):
        self.samples: list[Sample | None] = []
        self.tokens: list[tuple[int, ...]] = []
        self.bad_rows: list[BadRow] = []
        images = [name for name, feature in part.dataset.features.items() if isinstance(feature, Image)]
        sized = [name for name in images if name.replace("image", "size") in part.dataset.column_names]
        for index, row in enumerate(part.dataset.remove_columns(sized)):
            try:
                sample = part.recipe(row)
                tokens = tuple(processor.segment_tokens(segment) for segment in sample.segments)
            except BAD_ROW_ERRORS as error:
                if not keep_bad_rows:
                    raise
                self.bad_rows.append(BadRow(_row_id(row, index), str(error)))
                sample, tokens = None, ()
            self.samples.append(None if sample is None else _without_content(sample))
            self.tokens.append(tokens)

    def length(self, row: int, seed: int, epoch: int) -> int:
        """Tokens of a row in an epoch, after its dropout."""
        segments = draw_dropout(self.samples[row], seed, epoch).segments
        return sum(tokens for tokens, segment in zip(self.tokens[row], segments) if not segment.dropped)

    @property
    def has_text_loss(self) -> bool:
        """Whether any row learns text."""
        return any(
            isinstance(segment, TextSegment) and segment.loss
            for sample in self.samples
            if sample is not None
            for segment in sample.segments
        )


def plan_run(
    parts: Sequence[TrainingPart],
    lengths: Sequence[PartLengths],
    *,
    seed: int,
    max_tokens: int,
    window: int,
    packs_per_step: int,
    num_epochs: float,
    max_steps: int,
    skip_bad_rows: bool,
) -> RunPlan:
    """Plans all packs of a run: `max_steps` steps of it, or `num_epochs` epochs if `max_steps` is not positive.

    Raises:
        OversizedSampleError: A sample is longer than a pack, and `skip_bad_rows` is off.
        ValueError: There is no usable row, or too few for one step.
    """
    run = RunPlan(bad_rows=[bad for part in lengths for bad in part.bad_rows])
    for epoch in itertools.count():
        if max_steps > 0 and len(run.packs) >= max_steps * packs_per_step or max_steps <= 0 and epoch >= num_epochs:
            break
        rows = [
            row
            for row in mix([len(part.samples) for part in lengths], [part.weight for part in parts], seed, epoch)
            if lengths[row.part].samples[row.row] is not None
        ]
        if not rows:
            raise ValueError("No row of the training data can be used: see the reasons, or set bad_rows='raise'.")
        plan = plan_packs(
            [lengths[row.part].length(row.row, seed, row.epoch) for row in rows],
            max_tokens,
            seed=derive_seed(seed, "plan", epoch),
            window=window,
            multiple_of=packs_per_step,
            oversized="skip" if skip_bad_rows else "raise",
        )
        count = len(plan.packs) if epoch + 1 <= num_epochs or max_steps > 0 else _part_of(plan, num_epochs - epoch)
        run.packs += [[rows[index] for index in pack] for pack in plan.packs[:count]]
        run.tokens += plan.tokens[:count]
        run.epochs += [epoch] * count
        for index in plan.skipped:
            sample = lengths[rows[index].part].samples[rows[index].row]
            run.bad_rows.append(BadRow(sample.id, f"longer than max_tokens_per_pack={max_tokens}"))
    if max_steps > 0:
        for column in (run.packs, run.tokens, run.epochs):
            del column[max_steps * packs_per_step :]
    return run


def _part_of(plan: PackPlan, share: float) -> int:
    return max(1, round(len(plan.packs) * share))


def packs_of_rank(run: RunPlan, rank: int, num_ranks: int, max_tokens: int) -> list[int]:
    """Numbers of the packs of one rank, one for every pack of the others."""
    plan = PackPlan(tuple((index,) for index in range(len(run.packs))), tuple(run.tokens), max_tokens)
    return list(split_over_ranks(plan, num_ranks)[rank])


class PackReader:
    """Rows to a pack of tensors, with what could not be read set aside."""

    def __init__(self, processor, *, seed: int, posterior: str, keep_bad_rows: bool):
        self.processor = processor
        self.seed = seed
        self.posterior = posterior
        self.keep_bad_rows = keep_bad_rows

    def read(self, rows: Sequence[tuple[Recipe, Mapping[str, Any], int]]) -> dict[str, Any]:
        """The features of a pack and, under `pack`, what the trainer wants to know of it.

        Args:
            rows: Recipe, row and epoch of each sample.
        """
        samples, epochs, bad_rows = [], [], []
        for index, (recipe, row, epoch) in enumerate(rows):
            try:
                sample = self.processor.with_pixels(draw_dropout(recipe(row), self.seed, epoch))
            except BAD_ROW_ERRORS as error:
                if not self.keep_bad_rows:
                    raise (
                        error if isinstance(error, RowError) else RowError(_row_id(row, index), str(error))
                    ) from error
                bad_rows.append(BadRow(_row_id(row, index), str(error)))
                continue
            samples.append(sample)
            epochs.append(epoch)
        # a pack all of whose rows are bad still takes part in its step, without a loss
        filler = [] if samples else [Sample([TextSegment([])])]
        features = dict(self.processor.pack(samples + filler, self.seed, epochs or [0], self.posterior))
        features["pack"] = {
            "ids": [sample.id for sample in samples],
            "tokens": features["input_ids"].shape[1],
            "bad_rows": bad_rows,
        }
        return features


class PackedDataset(torch.utils.data.Dataset):
    """The packs of a plan, read one by one."""

    def __init__(self, parts: Sequence[TrainingPart], run: RunPlan, reader: PackReader):
        self.parts = list(parts)
        self.run = run
        self.reader = reader

    def __len__(self) -> int:
        return len(self.run.packs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rows = [
            (self.parts[row.part].recipe, self.parts[row.part].dataset[row.row], row.epoch)
            for row in self.run.packs[index]
        ]
        features = self.reader.read(rows)
        features["pack"] |= {"epoch": self.run.epochs[index], "index": index}
        return features


class PackStream(torch.utils.data.IterableDataset):
    """The packs of a stream, endlessly, over a window of rows.

    Every pack carries the state after it, so that the state of what was trained on is known however far a loader has
    read ahead. The state holds a position in the stream and the names of the rows that wait, not the rows: on resuming
    they are read again.

    Args:
        part: The stream and its recipe.
        reader: Reads packs.
        packer: Its settings are taken, its state is not shared.
        states: Per worker the state to go on from.
        first_worker: The worker whose turn is next.
    """

    def __init__(
        self,
        part: TrainingPart,
        reader: PackReader,
        *,
        max_tokens: int,
        window: int,
        states: Mapping[str, dict] | None = None,
        first_worker: int = 0,
    ):
        self.part = part
        self.reader = reader
        self.max_tokens = max_tokens
        self.window = window
        self.states = dict(states or {})
        self.first_worker = first_worker

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        count = info.num_workers if info else 1
        worker = (info.id + self.first_worker) % count if info else 0
        yield from _StreamOfPacks(self, worker, count).packs()


class _StreamOfPacks:
    """One worker's pass over its share of the stream."""

    def __init__(self, stream: PackStream, worker: int, num_workers: int):
        self.stream = stream
        self.worker = worker
        self.num_workers = num_workers
        self.packer = StreamPacker(stream.max_tokens, stream.window)
        self.rows: dict[str, tuple[dict, Mapping, int]] = {}  # key -> position before the row, row, epoch
        self.bad_rows: list[BadRow] = []
        self.epoch = 0
        self.state = stream.states.get(str(worker))

    def packs(self) -> Iterator[dict[str, Any]]:
        """Yields features of pack after pack."""
        dataset = self._share(self.stream.part.dataset)
        waiting: set[str] = set()
        until = None
        if self.state is not None:
            self.epoch = self.state["epoch"]
            if self.state["position"] is not None:
                dataset.load_state_dict(self.state["position"])
            waiting, until = {key for key, _ in self.state["packer"]["waiting"]}, self.state["read_until"]
        number = self.state["number"] if self.state else 0
        while True:
            dataset.set_epoch(self.epoch)
            position = self.state["position"] if until is not None else None  # None: the beginning of the epoch
            before = {"position": position, "epoch": self.epoch, "number": number}
            empty = True
            for row in dataset:
                empty = False
                after = {"position": dataset.state_dict(), "epoch": self.epoch, "number": number + 1}
                key, number = f"{number}:{_row_id(row, number)}", number + 1
                if until is None or number > until:
                    if until is not None and waiting - self.rows.keys():
                        raise _changed_stream(waiting - self.rows.keys())
                    if until is not None:
                        self.packer.load_state_dict(self.state["packer"])
                        until = None
                    yield from self._add(key, row, before, after)
                elif key in waiting:
                    self.rows[key] = (before, row, self.epoch)
                before = after
            if empty:
                raise ValueError("The training stream has no rows: check its name, split and filters.")
            self.epoch += 1

    def _share(self, dataset: IterableDataset) -> IterableDataset:
        """The worker's part of the stream: whole shards where there are enough, else every n-th row."""
        return dataset.shard(self.num_workers, self.worker) if self.num_workers > 1 else dataset

    def _add(self, key: str, row: Mapping, before: dict, after: dict) -> Iterator[dict[str, Any]]:
        reader, recipe = self.stream.reader, self.stream.part.recipe
        try:
            sample = draw_dropout(recipe(row), reader.seed, self.epoch)
            length = reader.processor.num_tokens(sample)
            self.rows[key] = (before, row, self.epoch)
            pack = self.packer.add(key, length)
        except (*BAD_ROW_ERRORS, OversizedSampleError) as error:
            self.rows.pop(key, None)
            if not reader.keep_bad_rows:
                raise
            self.bad_rows.append(BadRow(_row_id(row, before["number"]), str(error)))
            return
        if pack is None:
            return
        rows = [self.rows.pop(item) for item in pack.items]
        features = reader.read([(recipe, row, epoch) for _, row, epoch in rows])
        features["pack"]["bad_rows"] += self.bad_rows
        self.bad_rows = []
        oldest = next(iter(self.rows.values()))[0] if self.rows else after
        state = {**oldest, "read_until": after["number"], "packer": self.packer.state_dict()}
        features["pack"] |= {"epoch": self.epoch, "worker": self.worker, "state": state}
        yield features


def _changed_stream(missing: set[str]) -> ValueError:
    return ValueError(
        f"{len(missing)} rows that were waiting at the checkpoint, {sorted(missing)[0]!r} first, do not come again: the "
        "stream is another one, or is shuffled through a buffer, whose contents no state holds; shuffle the files once, "
        "or stream with shuffle(buffer_size=1), which shuffles shards alone."
    )


def _row_id(row: Mapping[str, Any], index: int) -> str:
    return str(row.get("id") or f"(row {index}, no id)")


def _without_content(sample: Sample) -> Sample:
    """The segments with their dropouts, without texts and images."""
    return sample.with_segments(
        [
            replace(segment, text="") if isinstance(segment, TextSegment) else replace(segment, image=None)
            for segment in sample.segments
        ]
    )
