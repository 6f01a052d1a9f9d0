"""What the stages of synthesis hand to each other: a record, or a rejection with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from uniedit_hf.schema import SCORES


@dataclass(frozen=True)
class Record:
    """One edit, as the data set stores it. What is not known is None.

    Args:
        id: A stable hash of source, question, answer and instruction.
        source_image: The picture before the edit, as encoded bytes.
        instruction: What the model is asked to do.
        target_image: The picture after the edit, as encoded bytes.
        task_category: One of `uniedit_hf.schema.TASK_CATEGORIES`.
        question: The question that the instruction embeds.
        answer: Its answer on the source.
        variant: Every choice that was drawn, as "name=value,name=value".
        source: Where the question comes from.
        editor: The model that drew the target.
        judge: The model that verified it.
        scores: Any of `uniedit_hf.schema.SCORES`.
        license: The licence of the source picture.
        source_size: (width, height) of the source in pixels.
        target_size: (width, height) of the target in pixels.
        split: The split of the source picture; it decides where a record may be used and is no column.
    """

    id: str
    source_image: bytes
    instruction: str
    target_image: bytes
    task_category: str | None
    question: str | None
    answer: str | None
    variant: str
    source: str
    editor: str
    judge: str
    scores: dict[str, float]
    license: str | None
    source_size: tuple[int, int]
    target_size: tuple[int, int]
    split: str


@dataclass(frozen=True)
class Rejection:
    """A row that became no record.

    Args:
        reason: Why, in words that can be counted.
        id: The row's stable id.
    """

    reason: str
    id: str


def variant_text(**choices: object) -> str:
    """The `variant` column: the choices that were drawn, in the order given."""
    return ",".join(f"{name}={str(value).lower()}" for name, value in choices.items())


def variant_choices(variant: str) -> dict[str, str]:
    """The choices behind a `variant` column."""
    return dict(choice.split("=", 1) for choice in variant.split(",")) if variant else {}


def record_to_row(record: Record) -> dict[str, Any]:
    """The record as one row of `uniedit_hf.schema.row_features`, images as encoded bytes."""
    return {
        "id": record.id,
        "source_image": {"bytes": record.source_image, "path": None},
        "instruction": record.instruction,
        "target_image": {"bytes": record.target_image, "path": None},
        "task_category": record.task_category,
        "question": record.question,
        "answer": record.answer,
        "variant": record.variant,
        "source": record.source,
        "editor": record.editor,
        "judge": record.judge,
        "scores": {name: record.scores.get(name) for name in SCORES},
        "license": record.license,
        "source_size": list(record.source_size),
        "target_size": list(record.target_size),
    }
