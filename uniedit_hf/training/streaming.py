"""The packs of a stream, over a window of rows, with a state from which they resume exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from datasets import IterableDataset
from torch.utils.data import get_worker_info

from uniedit_hf.packing import OversizedSampleError, StreamedPack, StreamPacker
from uniedit_hf.recipes import draw_dropout
from uniedit_hf.row_error import RowError

from .data import BAD_ROW_ERRORS, DataError, PackReader, TrainingPart, row_error, row_name, stop_at


class Place(NamedTuple):
    """A place between two rows of a worker's stream.

    Args:
        epoch: The pass over the data.
        position: The state of the `IterableDataset` there; `None` at the beginning of an epoch.
        number: Number of rows before it, over all epochs.
    """

    epoch: int
    position: dict | None
    number: int


class StreamedRow(NamedTuple):
    """A row with the places before and after it. `key` identifies it, also among rows of other epochs."""

    key: str
    row: Mapping[str, Any]
    before: Place
    after: Place


@dataclass
class PackStream(torch.utils.data.IterableDataset):
    """The packs of a stream, endlessly. An item is the features of a pack, or the `DataError` that ended the stream.

    Every pack carries the state after it, so that the state of what was trained on is known however far a worker has
    read ahead. The state contains a place in the stream and the names of the waiting rows, not the rows themselves:
    when the run resumes they are read again.

    Args:
        part: The stream of this process and its recipe.
        reader: Reads packs.
        max_tokens: Maximum number of tokens in a pack.
        window: Number of rows to choose from while packs are filled.
        num_workers: Number of workers, each with its own files; 1 also means reading in the main process.
        states: The state to resume from for each worker.
        first_worker: The worker whose turn is next: a data loader asks its workers in turn, from the first one.
    """

    part: TrainingPart
    reader: PackReader
    max_tokens: int
    window: int
    num_workers: int
    states: dict[str, dict]
    first_worker: int

    def __iter__(self) -> Iterator[dict[str, Any] | DataError]:
        info = get_worker_info()
        worker = ((info.id if info else 0) + self.first_worker) % self.num_workers
        try:
            yield from _WorkerStream(self, worker).packs()
        except DataError as error:
            yield error


class _WorkerStream:
    """One worker's pass over its share of the stream."""

    def __init__(self, stream: PackStream, worker: int):
        self.stream = stream
        self.worker = worker
        self.dataset: IterableDataset = stream.part.dataset.shard(stream.num_workers, worker)
        self.packer = StreamPacker(stream.max_tokens, stream.window)
        self.waiting: dict[str, StreamedRow] = {}
        self.bad_rows: list[RowError] = []
        self.num_packs = 0

    def packs(self) -> Iterator[dict[str, Any]]:
        """Yields features of pack after pack."""
        state = self.stream.states.get(str(self.worker))
        rows = self._rows(Place(0, None, 0) if state is None else Place(**state["start"]))
        if state is not None:
            self._read_again(rows, state)
        for row in rows:
            pack = self._add(row)
            if pack is not None:
                yield self._read(pack, row)

    def _rows(self, place: Place) -> Iterator[StreamedRow]:
        """Row after row, epoch after epoch."""
        if place.position is not None:
            self.dataset.load_state_dict(place.position)
        while True:
            self.dataset.set_epoch(place.epoch)
            before_epoch = place.number
            # `iter` and not a plain loop, which in a worker would split the files among the workers once more
            for batch in self.dataset.iter(batch_size=1):
                row = {name: values[0] for name, values in batch.items()}
                after = Place(place.epoch, self.dataset.state_dict(), place.number + 1)
                yield StreamedRow(f"{place.number}:{row_name(row, place.number)}", row, place, after)
                place = after
            if place.number == before_epoch and place.position is None:
                raise DataError("The training stream has no rows: check its name, split and filters.")
            if not self.waiting and not self.num_packs:
                reason = f"row {self.bad_rows[0].row_id!r}: {self.bad_rows[0].reason}"
                raise DataError(f"No row of the training stream can be used; {reason}")
            place = Place(place.epoch + 1, None, place.number)

    def _read_again(self, rows: Iterator[StreamedRow], state: dict[str, Any]) -> None:
        """Refills the window with the rows that it contained."""
        self.num_packs = state["num_packs"]
        keys = {key for key, _ in state["packer"]["waiting"]}
        last = None
        with suppress(
            KeyError, IndexError, TypeError
        ):  # from `datasets`, if the state belongs to another kind of stream
            for row in rows:
                last = row.key
                if row.key in keys:
                    self.waiting[row.key] = row
                if row.after.number >= state["num_rows"]:
                    break
        if last != state["last"] or len(self.waiting) < len(keys):
            raise DataError(
                "Cannot resume the training stream: it gives other rows than when the checkpoint was written. Use "
                "the same stream, not shuffled through a buffer, whose contents no state stores: shuffle the rows "
                "once and store them."
            )
        try:
            self.packer.load_state_dict(state["packer"])
        except ValueError as error:  # another max_tokens_per_pack or window
            raise DataError(str(error)) from error

    def _add(self, row: StreamedRow) -> StreamedPack | None:
        """Adds a row to the window and returns the pack that it completes, if any."""
        reader = self.stream.reader
        try:
            sample = draw_dropout(self.stream.part.recipe(row.row), reader.seed, row.before.epoch)
            length = reader.processor.num_tokens(sample)
            self.waiting[row.key] = row
            return self.packer.add(row.key, length)
        except OversizedSampleError as error:
            del self.waiting[row.key]
            reason = f"has {error.length:,} tokens, more than max_tokens_per_pack={error.max_tokens:,}; raise it."
            bad = RowError(reason, row_id=row_name(row.row, row.before.number))
            if not reader.keep_bad_rows:
                raise stop_at(bad) from error
        except BAD_ROW_ERRORS as error:
            bad = row_error(row.row, row.before.number, error)
            if not reader.keep_bad_rows:
                raise stop_at(bad) from error
        self.bad_rows.append(bad)
        return None

    def _read(self, pack: StreamedPack, last: StreamedRow) -> dict[str, Any]:
        """The features of a pack, with the state after it in its notes."""
        rows = [self.waiting.pop(key) for key in pack.items]
        recipe = self.stream.part.recipe
        name = f"{self.num_packs} of stream {self.worker}"
        features = self.stream.reader.read(
            [(recipe, row.row, row.before.epoch) for row in rows], name, epoch=last.before.epoch
        )
        self.num_packs += 1
        notes = features["pack"]
        notes.bad_rows += self.bad_rows
        self.bad_rows = []
        notes.worker = self.worker
        # the last row is always read again, to check that the stream is the same
        first = next(iter(self.waiting.values()), last)
        notes.state = {
            "start": first.before._asdict(),
            "num_rows": last.after.number,
            "last": last.key,
            "packer": self.packer.state_dict(),
            "num_packs": self.num_packs,
        }
        return features
