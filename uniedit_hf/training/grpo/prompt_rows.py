"""Rows to prompts: which rows every generation batch draws for, and what of a row is drawn from."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from datasets import Image

from uniedit_hf.images import open_image
from uniedit_hf.randomness import python_random
from uniedit_hf.recipes import MixedRow, mix
from uniedit_hf.row_error import RowError
from uniedit_hf.segments import ImageSegment, Sample, TextSegment

from ..data import BAD_ROW_ERRORS, DataError, TrainingPart, row_error


# What a row without a target has in its place; it is drawn or written instead of read.
PLACEHOLDERS = {"target_size": [64, 64], "answer": "?"}


@dataclass
class PromptPlan:
    """The rows of every generation batch of a run, in place of a plan of packs.

    Args:
        batches: Per generation batch its rows.
        ids: Per part the ids of its rows.
        num_steps: Optimizer steps of the run.
        steps_per_batch: Optimizer steps that train on one generation batch.
        packs_per_step: Packs of a step, in which the trainer counts.
        batches_per_epoch: Generation batches that make one pass over the data.
    """

    batches: list[list[MixedRow]]
    ids: list[list[str]]
    num_steps: int
    steps_per_batch: int
    packs_per_step: int
    batches_per_epoch: float
    bad_rows: list[RowError] = field(default_factory=list)

    def __len__(self) -> int:
        return self.num_steps * self.packs_per_step

    def epoch_after(self, num_packs: int) -> float:
        """Passes over the data after so many packs."""
        return num_packs / (self.packs_per_step * self.steps_per_batch * self.batches_per_epoch)

    def digest(self, num_packs: int) -> str:
        """A fingerprint of the rows that the first packs were drawn for."""
        count = math.ceil(num_packs / (self.packs_per_step * self.steps_per_batch))
        digest = hashlib.blake2b(digest_size=16)
        for batch in self.batches[:count]:
            digest.update(repr([(self.ids[row.part][row.row], row.epoch) for row in batch]).encode())
        return digest.hexdigest()


def plan_prompts(parts: Sequence[TrainingPart], args) -> PromptPlan:
    """The rows of the whole run: every epoch in a new order, as a function of the seed.

    Raises:
        DataError: There are fewer rows than one generation batch needs, or a row has no id.
    """
    lengths, weights = [len(part.dataset) for part in parts], [part.weight for part in parts]
    size, per_batch = args.prompts_per_generation, args.steps_per_generation * args.num_iterations
    per_epoch = len(mix(lengths, weights, args.draw_seed, 0)) / size
    if per_epoch < 1:
        raise DataError(
            f"The data has {round(per_epoch * size)} rows, but a generation batch of {args.generation_batch_size} "
            f"completions, {args.num_generations} for each prompt, needs {size}: lower generation_batch_size, or add "
            "rows."
        )
    num_steps = args.max_steps
    if num_steps <= 0:
        num_steps = max(1, math.floor(args.num_train_epochs * per_epoch)) * per_batch
    wanted, rows, epoch = math.ceil(num_steps / per_batch), [], 0
    while len(rows) < wanted * size:
        mixed = mix(lengths, weights, args.draw_seed, epoch)
        python_random(args.draw_seed, "prompts", epoch).shuffle(mixed)
        rows += mixed
        epoch += 1
    batches = [rows[start : start + size] for start in range(0, wanted * size, size)]
    return PromptPlan(batches, [_ids(part) for part in parts], num_steps, per_batch, args.packs_per_step, per_epoch)


def _ids(part: TrainingPart) -> list[str]:
    if "id" not in part.dataset.column_names:
        raise DataError(
            f"The data has no column 'id', by which random draws are told apart, there are "
            f"{', '.join(part.dataset.column_names)}: add it."
        )
    return part.dataset.select_columns(["id"]).with_format(None)["id"][:]


@dataclass
class Prompt:
    """A prompt that completions are drawn or written for.

    Args:
        id: The id of the row.
        condition: The sample up to what is drawn or written.
        draws: Whether an image follows, else a text.
        size: (width, height) of the image that is drawn.
        instruction: The last text of the condition.
        source: The first image of the condition, if there is one.
        columns: The columns of the row, with images opened.
    """

    id: str
    condition: Sample
    draws: bool
    size: tuple[int, int] | None
    instruction: str
    source: Any
    columns: dict[str, Any]


def read_prompt(part: TrainingPart, number: int, processor, default_size: tuple[int, int]) -> Prompt:
    """The prompt of a row. Conditions are whole: dropout belongs to training with targets.

    Raises:
        DataError: The row cannot be used.
    """
    row = part.row(number)
    try:
        given = {name: value for name, value in row.items() if value is not None and name != "thinking"}
        sample = part.recipe(PLACEHOLDERS | given)
        columns = _opened(row, part)
        segments = [_opened_segment(segment, processor) for segment in sample.segments if not segment.loss]
    except BAD_ROW_ERRORS as error:
        raise DataError(str(row_error(row, number, error))) from error
    draws = isinstance(sample.segments[-1], ImageSegment)
    source = next((segment.image for segment in segments if isinstance(segment, ImageSegment)), None)
    size = None
    if draws:
        size = _target_size(row) or (default_size if source is None else processor.output_size(source))
    texts = [segment.text for segment in segments if isinstance(segment, TextSegment)]
    return Prompt(sample.id, Sample(segments, sample.id), draws, size, texts[-1] if texts else "", source, columns)


def _target_size(row: Mapping[str, Any]) -> tuple[int, int] | None:
    """The stated size of a prompt's drawing; an edit is as large as its source."""
    return tuple(row["target_size"]) if row.get("target_size") and row.get("source_image") is None else None


def _opened_segment(segment, processor):
    """The segment with its dropout taken off and its image opened as the pipeline opens it."""
    segment = replace(segment, dropout=0.0, joint_dropout=0.0)
    if isinstance(segment, ImageSegment):
        segment = replace(segment, image=processor.open_source(segment.image, name="source_image"), size=None)
    return segment


def _opened(row: Mapping[str, Any], part: TrainingPart) -> dict[str, Any]:
    """The row with its images opened."""
    images = {name for name, feature in part.dataset.features.items() if isinstance(feature, Image)}
    return {
        name: open_image(value, name=name) if name in images and value is not None else value
        for name, value in row.items()
    }
