"""Rows to packs: what the trainer's data loaders iterate over.

    rows --recipe--> samples --dropout--> lengths --planner--> packs --processor--> what the model's forward takes

Data of known length is planned whole before training (`planning.py`), a stream over a window (`streaming.py`). Both
are read by this module. A row that cannot be used stops the run with one sentence, or is left out and reported with
its pack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from datasets import Dataset, Image, IterableDataset, LargeList, List

from uniedit_hf.images import ImageError
from uniedit_hf.models.workload import Workload, workload
from uniedit_hf.recipes import MixedRow, NamedRecipe, draw_dropout
from uniedit_hf.row_error import RowError
from uniedit_hf.segments import Sample, TextSegment


RowRecipe = Callable[[Mapping[str, Any]], Sample]
# Errors that a recipe, an image or its file raises for a bad row.
BAD_ROW_ERRORS = (RowError, ImageError, OSError)


class DataError(ValueError):
    """The training data cannot be used; the message says why in one sentence. Workers pass it on unchanged."""


def row_error(row: Mapping[str, Any], number: int, error: Exception) -> RowError:
    """The error of a recipe, an image or its file as a `RowError` with the row's name."""
    return RowError(error.reason if isinstance(error, RowError) else str(error), row_id=row_name(row, number))


def row_name(row: Mapping[str, Any], number: int) -> str:
    """The name of a row: its id, or its number if it has no id."""
    return str(row.get("id") or f"number {number}, without an id")


def stop_at(bad: RowError) -> DataError:
    """The error that stops a run at a row that cannot be used."""
    return DataError(f"{bad} To train without such rows, set bad_rows='quarantine'.")


@dataclass
class TrainingPart:
    """A data set, its recipe, and its share of the samples.

    Images are left as bytes or paths: they are opened once, by us, with our errors.

    Args:
        dataset: A `datasets.Dataset` or `IterableDataset` with the columns that the recipe reads.
        recipe: Maps a row to a `Sample`.
        weight: Share of the samples, relative to the other parts.

    Raises:
        ValueError: If the data set makes its rows by a transform, which planning cannot see.
    """

    dataset: Dataset | IterableDataset
    recipe: RowRecipe
    weight: float = 1.0

    def __post_init__(self):
        if isinstance(self.dataset, IterableDataset):
            self.dataset = _undecoded(self.dataset.with_format(None))
        elif self.dataset.format["type"] == "custom":
            raise ValueError("The data set makes its rows by set_transform: use map instead, which stores them.")
        else:
            self.dataset = self.dataset.with_format("arrow")

    def for_model(self, processor) -> TrainingPart:
        """The same part; a named recipe uses the processor's conditioning where none was set."""
        if not isinstance(self.recipe, NamedRecipe):
            return self
        return replace(self, recipe=self.recipe.for_processor(processor))

    def row(self, number: int) -> dict[str, Any]:
        """One row of a data set of known length, as it is stored."""
        return self.dataset[number].to_pylist()[0]


def _undecoded(stream: IterableDataset) -> IterableDataset:
    """The stream with its images, at any depth, left as bytes or paths."""
    for name, feature in (stream.features or {}).items():
        stored = _as_stored(feature)
        if stored != feature:
            stream = stream.cast_column(name, stored)
    return stream


def _as_stored(feature):
    if isinstance(feature, dict):
        return {name: _as_stored(inner) for name, inner in feature.items()}
    if isinstance(feature, List):
        return List(_as_stored(feature.feature), length=feature.length)
    if isinstance(feature, LargeList):
        return LargeList(_as_stored(feature.feature))
    return Image(mode=feature.mode, decode=False) if isinstance(feature, Image) else feature


@dataclass
class PackNotes:
    """Facts about a pack that the trainer needs besides its tensors.

    Args:
        name: The pack's name in messages.
        epoch: The pass over the data it belongs to.
        ids: Ids of its samples.
        tokens: Its length in tokens.
        work: Its workload (rows of each matrix product, attention pairs).
        bad_rows: Rows that were left out of this pack, or before it.
        worker: The number of the worker that read it from a stream.
        state: The worker's place in the stream after it.
    """

    name: str
    epoch: int
    ids: list[str]
    tokens: int
    work: Workload
    bad_rows: list[RowError] = field(default_factory=list)
    worker: int = 0
    state: dict[str, Any] | None = None


@dataclass
class PackReader:
    """Turns rows into a pack of tensors, and sets aside rows that cannot be used.

    Args:
        processor: The model's processor, with the image sizes of training.
        seed: Seeds every random draw, together with the epoch and the sample's id.
        posterior: `"sample"` or `"mean"`.
        keep_bad_rows: Whether bad rows are left out and reported; else they raise a `DataError`.
    """

    processor: Any
    seed: int
    posterior: str
    keep_bad_rows: bool

    def read(self, rows: Sequence[tuple[RowRecipe, Mapping[str, Any], int]], name: str, epoch: int) -> dict[str, Any]:
        """The features of a pack and, under `pack`, its notes.

        Args:
            rows: Recipe, row and epoch of each sample.
            name: The pack's name.
            epoch: The pack's epoch.
        """
        samples, epochs, bad_rows = [], [], []
        for number, (recipe, row, row_epoch) in enumerate(rows):
            try:
                sample = self.processor.with_pixels(draw_dropout(recipe(row), self.seed, row_epoch))
            except BAD_ROW_ERRORS as error:
                bad = row_error(row, number, error)
                if not self.keep_bad_rows:
                    raise stop_at(bad) from error
                bad_rows.append(bad)
                continue
            samples.append(sample)
            epochs.append(row_epoch)
        # a pack all of whose rows are bad still takes part in its step, without a loss
        filler = [] if samples else [Sample([TextSegment([])])]
        features = dict(self.processor.pack(samples + filler, self.seed, epochs or [0], self.posterior))
        ids = [sample.id for sample in samples]
        features["pack"] = PackNotes(name, epoch, ids, features["input_ids"].shape[1], workload(features), bad_rows)
        return features


class PackedDataset(torch.utils.data.Dataset):
    """Planned packs, read one by one. An item is the features of a pack, or the `DataError` that reading it raised.

    Args:
        parts: The data sets.
        packs: The rows of each pack.
        reader: Reads packs.
    """

    def __init__(self, parts: Sequence[TrainingPart], packs: Sequence[Sequence[MixedRow]], reader: PackReader):
        self.parts = list(parts)
        self.packs = packs
        self.reader = reader

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: int) -> dict[str, Any] | DataError:
        pack = self.packs[index]
        rows = [(self.parts[row.part].recipe, self.parts[row.part].row(row.row), row.epoch) for row in pack]
        try:
            return self.reader.read(rows, f"{index} of the plan", pack[0].epoch)
        except DataError as error:
            return error


def merge_packs(processor, packs: list[dict[str, Any] | DataError]) -> dict[str, Any] | DataError:
    """Packs of a batch laid end to end; their notes stay a list."""
    for pack in packs:
        if isinstance(pack, DataError):
            return pack
    notes = [pack.pop("pack") for pack in packs]
    return {**processor.merge(packs), "pack": notes}
