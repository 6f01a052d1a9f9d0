"""The three things that stages of synthesis exchange: a draft, a finished record, or a rejection."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic.dataclasses import dataclass

from uniedit_hf.calls.messages import EncodedImage
from uniedit_hf.schema import SCORES, stable_id


STAGES = ("source", "inspect", "duplicates", "classify", "balance", "instruct", "screen", "edit", "verify")


@dataclass(frozen=True)
class Record:
    """One edit, as stored in the data set. Unknown values are None.

    Args:
        id: A stable hash of source, question, answer and instruction.
        source_image: The image before the edit, as encoded bytes.
        instruction: The instruction for the model.
        target_image: The image after the edit, as encoded bytes.
        task_category: One of `uniedit_hf.schema.TASK_CATEGORIES`.
        question: The question that the instruction embeds.
        answer: Its answer on the source.
        variant: All random choices, as "name=value,name=value".
        source: The source of the question.
        editor: The model that drew the target.
        judge: The model that verified it.
        scores: Any of `uniedit_hf.schema.SCORES`.
        license: The license of the source image.
        source_size: (width, height) of the source in pixels.
        target_size: (width, height) of the target in pixels.
        split: The split of the source image. Not a column: only training images go into a training set.
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
    judge: str | None
    scores: dict[str, float]
    license: str | None
    source_size: tuple[int, int]
    target_size: tuple[int, int]
    split: str


@dataclass(frozen=True)
class Rejection:
    """A row that did not become a record.

    Args:
        reason: The reason, in a few words, to be counted.
        id: The row's stable id.
        stage: The stage that rejected it.
        detail: The finding.
        reply: The verbatim reply of the model.
        question: The row's question.
        position: The row in the source, and the turn in the row.
    """

    reason: str
    id: str
    stage: str = ""
    detail: str = ""
    reply: str = ""
    question: str = ""
    position: tuple[int, int] = (0, 0)


class Draft(BaseModel):
    """A row on its way from a question to an edit; every stage adds its fields.

    Args:
        position: Number of the row in the source and of the turn in it; the order of the result.
        id: A stable hash of image, question and answer.
        image: The image.
        question: As the source asks it.
        answer: As the source answers it.
        source: The data set of the question.
        license: The license of the image.
        split: The split of the image.
        hashes: The hash of the pixels, and the perceptual hash if it is meaningful.
        row: The row itself, for the rules of easy-VQA.
        scene: The scene that the rules read from the image.
        plan: The plan of the instruction, if the source plans it.
        draw: Distinguishes drafts of one row and plan.
        category: One of `uniedit_hf.schema.TASK_CATEGORIES`.
        short_answer: The bare answer.
        choices: All random choices.
        instruction: The instruction for the model.
        rephrased: The text that replaces the instruction, if the edit is asked for in another way; the id is that of
            `instruction`.
        expected: The correct result in words, for editors and judges.
        text: Text that the result should contain, if any.
        canvas: Whether the edit stays in the scene or draws a new image.
        unchanged: Whether the right result is the source itself.
        program: The meaning of the instruction, if it was written by rules.
        target: The result.
        editor: The model that drew it.
        judge: The models that verified it.
        scores: Any of `uniedit_hf.schema.SCORES`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    position: tuple[int, int]
    id: str
    image: EncodedImage
    question: str | None
    answer: str | None
    source: str
    license: str | None = None
    split: str = "train"
    hashes: tuple[bytes, bytes | None] | None = None
    row: Any = None
    scene: Any = None
    plan: Any = None
    draw: int | str = 0
    category: str | None = None
    short_answer: str | None = None
    choices: dict[str, str | int | bool] = {}
    instruction: str | None = None
    rephrased: str | None = None
    expected: str | None = None
    text: str | None = None
    canvas: Literal["scene", "new"] = "scene"
    unchanged: bool = False
    program: Any = None
    target: EncodedImage | None = None
    editor: str | None = None
    judge: str | None = None
    scores: dict[str, float] = {}

    def with_(self, **changes: Any) -> Draft:
        """The draft with some fields changed."""
        return self.model_copy(update=changes)

    def rejected(self, stage: str, reason: str, detail: str = "", reply: str = "") -> Rejection:
        """The draft as a rejection."""
        return Rejection(reason, self.id, stage, detail, reply, self.question or "", self.position)


def record_id(draft: Draft) -> str:
    """The id of the record that a draft with an instruction becomes."""
    return stable_id(draft.image.data, draft.question or "", draft.short_answer or "", draft.instruction)


def finished(draft: Draft) -> Record:
    """The record of a draft that passed every stage."""
    return Record(
        id=record_id(draft),
        source_image=draft.image.data,
        instruction=draft.rephrased or draft.instruction,
        target_image=draft.target.data,
        task_category=draft.category,
        question=draft.question,
        answer=draft.short_answer,
        variant=variant_text(**draft.choices),
        source=draft.source,
        editor=draft.editor,
        judge=draft.judge,
        scores=draft.scores,
        license=draft.license,
        source_size=draft.image.size,
        target_size=draft.target.size,
        split=draft.split,
    )


def variant_text(**choices: object) -> str:
    """The `variant` column: the random choices, in the order given."""
    return ",".join(f"{name}={str(value).lower()}" for name, value in choices.items())


def variant_choices(variant: str) -> dict[str, str]:
    """Parses a `variant` column."""
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
