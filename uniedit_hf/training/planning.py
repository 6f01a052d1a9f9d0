"""Plans the packs of a whole run before its first step, from sizes and texts, without opening an image."""

from __future__ import annotations

import hashlib
import itertools
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from datasets import Image
from tqdm.auto import tqdm

from uniedit_hf.packing import OversizedSampleError, PackPlan, plan_packs, split_over_ranks
from uniedit_hf.randomness import derive_seed
from uniedit_hf.recipes import STORED_COLUMNS, MixedRow, draw_drops, mix
from uniedit_hf.row_error import RowError
from uniedit_hf.segments import ImageSegment, Sample, Segment, TextSegment

from .data import BAD_ROW_ERRORS, DataError, TrainingPart, row_error, stop_at


CHUNK = 1000  # rows whose texts are tokenized together


class PartLengths:
    """Counts the tokens of every segment of every row of a part.

    Image columns are not read if there are columns with the sizes.

    Args:
        part: A data set of known length with its recipe.
        processor: The model's processor.
        keep_bad_rows: Whether rows that cannot be used are listed in `bad_rows`; else they raise a `DataError`.
        show_progress: Whether to draw a progress bar.

    Attributes:
        ids: The sample's id for each row, `None` for a bad row.
        segments: The segments of each row, without texts and images.
        tokens: The tokens of the segments of each row.
    """

    def __init__(self, part: TrainingPart, processor, keep_bad_rows: bool, show_progress: bool = False):
        self.ids: list[str | None] = []
        self.segments: list[tuple[Segment, ...]] = []
        self.tokens: list[tuple[int, ...]] = []
        self.bad_rows: list[RowError] = []
        self._keep_dropped = processor.dropped_segments_keep_tokens
        self._shapes: dict[tuple, tuple[Segment, ...]] = {}
        rows = enumerate(_rows_without_images(part))
        with tqdm(total=len(part.dataset), desc="lengths", unit="row", disable=not show_progress) as progress:
            while chunk := list(itertools.islice(rows, CHUNK)):
                self._add(chunk, part.recipe, processor, keep_bad_rows)
                progress.update(len(chunk))

    def _add(self, chunk: list[tuple[int, Mapping]], recipe, processor, keep_bad_rows: bool) -> None:
        samples: list[Sample | None] = []
        lengths: list[list[tuple[int, str]]] = []
        for number, row in chunk:
            try:
                sample = recipe(row)
                _check_images(sample)
                length = processor.segment_lengths(sample)
            except BAD_ROW_ERRORS as error:
                bad = row_error(row, number, error)
                if not keep_bad_rows:
                    raise stop_at(bad) from error
                self.bad_rows.append(bad)
                sample, length = None, []
            samples.append(sample)
            lengths.append(length)
        counts = iter(processor.count_text_tokens([text for length in lengths for _, text in length if text]))
        for sample, length in zip(samples, lengths):
            segments = () if sample is None else sample.segments
            self.ids.append(None if sample is None else sample.id)
            self.tokens.append(tuple(tokens + (next(counts) if text else 0) for tokens, text in length))
            key = tuple(map(_kind, segments))
            if key not in self._shapes:  # few differ, so each is stored once
                self._shapes[key] = tuple(map(_without_content, segments))
            self.segments.append(self._shapes[key])

    def length(self, row: int, seed: int, epoch: int) -> int:
        """Number of tokens of a row in an epoch, after its dropout."""
        if self._keep_dropped:
            return sum(self.tokens[row])
        drops = draw_drops(self.segments[row], self.ids[row], seed, epoch)
        return sum(tokens for tokens, dropped in zip(self.tokens[row], drops) if not dropped)

    @property
    def has_text_loss(self) -> bool:
        """Whether any row has a text loss."""
        return any(each.loss and not _is_image(each) for shape in self._shapes.values() for each in shape)

    @property
    def has_image_loss(self) -> bool:
        """Whether any row has an image loss."""
        return any(each.loss and _is_image(each) for shape in self._shapes.values() for each in shape)


def _rows_without_images(part: TrainingPart) -> Iterator[dict[str, Any]]:
    """Rows with empty bytes in place of the images whose sizes are known."""
    dataset = part.dataset
    size_of = {
        name: name.replace("image", "size")
        for name, feature in dataset.features.items()
        if isinstance(feature, Image) and name.replace("image", "size") in dataset.column_names
    }
    number = 0
    stored = [name for name in STORED_COLUMNS if size_of and name in dataset.column_names]
    for table in dataset.remove_columns([*size_of, *stored]).iter(batch_size=CHUNK):
        for row in table.to_pylist():
            unknown = any(row[size] is None for size in size_of.values())
            yield part.row(number) if unknown else row | dict.fromkeys(size_of, b"")
            number += 1


def _is_image(segment: Segment) -> bool:
    return isinstance(segment, ImageSegment)


def _check_images(sample: Sample) -> None:
    """Checks that images exist: recipes plan from sizes alone, but training needs the image."""
    if any(segment.image is None for segment in sample.segments if _is_image(segment)):
        raise RowError("has the size of an image but no column with the image itself; add it.", row_id=sample.id)


def _kind(segment: Segment) -> tuple:
    """A key that distinguishes segments without content."""
    view = segment.view if _is_image(segment) else None
    return view, segment.loss, segment.dropout, segment.dropped, segment.joint_dropout


def _without_content(segment: Segment) -> Segment:
    """A segment without text and image, which still decides dropout and loss."""
    if isinstance(segment, TextSegment):
        return replace(segment, text="")
    return replace(segment, image=None, size=None, tokens=None, stored=None)


@dataclass
class RunPlan:
    """The packs of a whole run, epoch after epoch.

    Args:
        packs: The rows of each pack.
        tokens: The number of tokens of each pack.
        epoch_ends: Number of packs done after each epoch; the run may end before the last of them.
        bad_rows: Rows that were left out.
        ids: The sample ids of the rows of each part.
    """

    packs: list[list[MixedRow]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    epoch_ends: list[int] = field(default_factory=list)
    bad_rows: list[RowError] = field(default_factory=list)
    ids: list[list[str | None]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.packs)

    def epoch_after(self, num_packs: int) -> float:
        """Passes over the data after so many packs."""
        epoch = bisect_left(self.epoch_ends, num_packs)
        first = self.epoch_ends[epoch - 1] if epoch else 0
        return epoch + (num_packs - first) / (self.epoch_ends[epoch] - first)

    def digest(self, num_packs: int) -> str:
        """A fingerprint of the first packs: equal for two plans if and only if they train on the same samples."""
        digest = hashlib.blake2b(digest_size=16)
        for pack in self.packs[:num_packs]:
            digest.update(repr([(self.ids[row.part][row.row], row.epoch) for row in pack]).encode())
        return digest.hexdigest()

    def of_rank(self, rank: int, num_ranks: int) -> list[int]:
        """Numbers of the packs of one rank, in order; each rank has as many."""
        plan = PackPlan(tuple((number,) for number in range(len(self.packs))), tuple(self.tokens), max(self.tokens))
        return list(split_over_ranks(plan, num_ranks)[rank])


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
    skip_oversized: bool,
) -> RunPlan:
    """Plans all packs of a run of `max_steps` steps, or of `num_epochs` epochs if `max_steps` is not positive.

    Raises:
        DataError: A sample is longer than a pack and `skip_oversized` is off, or there is no row to train on.
        ValueError: There are too few rows for one step.
    """
    run = RunPlan(ids=[part.ids for part in lengths], bad_rows=[bad for part in lengths for bad in part.bad_rows])
    oversized: dict[str, None] = {}
    for epoch in itertools.count():
        if max_steps > 0 and len(run.packs) >= max_steps * packs_per_step or max_steps <= 0 and epoch >= num_epochs:
            break
        mixed = mix([len(part.ids) for part in lengths], [part.weight for part in parts], seed, epoch)
        rows = [row for row in mixed if run.ids[row.part][row.row] is not None]
        if not rows:
            raise DataError(
                f"No row of the data can be used; row {run.bad_rows[0].row_id!r}: {run.bad_rows[0].reason}"
            )
        plan = _plan_epoch(
            [lengths[row.part].length(row.row, seed, row.epoch) for row in rows],
            [run.ids[row.part][row.row] for row in rows],
            max_tokens,
            seed=derive_seed(seed, "plan", epoch),
            window=window,
            multiple_of=packs_per_step,
            oversized="skip" if skip_oversized else "raise",
        )
        if not plan.packs:
            raise DataError(f"Every row is longer than max_tokens_per_pack={max_tokens}: raise it.")
        steps = len(plan) // packs_per_step
        if max_steps <= 0 and num_epochs < epoch + 1:
            steps = max(1, round(steps * (num_epochs - epoch)))
        run.packs += [[rows[index] for index in pack] for pack in plan.packs[: steps * packs_per_step]]
        run.tokens += plan.tokens[: steps * packs_per_step]
        run.epoch_ends.append((run.epoch_ends[-1] if run.epoch_ends else 0) + len(plan))
        oversized |= dict.fromkeys(run.ids[rows[index].part][rows[index].row] for index in plan.skipped)
    run.bad_rows += [RowError(f"longer than max_tokens_per_pack={max_tokens}", row_id=each) for each in oversized]
    if max_steps > 0:
        del run.packs[max_steps * packs_per_step :], run.tokens[max_steps * packs_per_step :]
    return run


def _plan_epoch(lengths: list[int], ids: list[str], max_tokens: int, **options) -> PackPlan:
    try:
        return plan_packs(lengths, max_tokens, **options)
    except OversizedSampleError as error:
        raise DataError(
            f"{len(error.items):,} sample(s) are longer than a pack: row {ids[error.items[0]]!r} has {error.length:,} "
            f"tokens, max_tokens_per_pack is {max_tokens:,}. Raise max_tokens_per_pack, or set bad_rows='quarantine' "
            "to leave such rows out."
        ) from error
