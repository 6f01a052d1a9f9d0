"""The items on which the small base is measured: questions, prompts and plain edits of easy-VQA's test images."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from uniedit_hf.small_world.easy_vqa import VqaRow
from uniedit_hf.small_world.instructions import Instruction, draw_plain_edit
from uniedit_hf.small_world.program import apply
from uniedit_hf.small_world.questions import DrawingPrompt, composed_questions, drawing_of
from uniedit_hf.small_world.scene import Scene
from uniedit_hf.small_world.topics import PLAIN_KINDS


@dataclass(frozen=True)
class QuestionItem:
    """A question about a test image.

    Args:
        image: The image's number in the split.
        kind: `"open"` or `"yes/no"` of easy-VQA, or `"composed"`.
    """

    image: int
    question: str
    answer: str
    kind: str


@dataclass(frozen=True)
class DrawingItem:
    """A prompt and its meaning."""

    prompt: str
    drawing: DrawingPrompt


@dataclass(frozen=True)
class EditItem:
    """An instruction for a test image, and the correct result.

    Args:
        image: The image's number in the split.
        kind: One of `PLAIN_KINDS`.
    """

    image: int
    instruction: str
    target: tuple[Scene, ...]
    kind: str


def question_items(
    rows: Sequence[VqaRow], scenes: Sequence[Scene], count: int, rng: random.Random
) -> list[QuestionItem]:
    """Questions of a split: a third each open, yes/no and composed.

    Args:
        rows: The split's own questions.
        scenes: The scenes of its images, by number.
        count: Number of items.
        rng: Draws every choice.
    """
    rows_of = {"open": [row for row in rows if row.is_open], "yes/no": [row for row in rows if not row.is_open]}
    kinds = (*rows_of, "composed")
    items = []
    for index in range(count):
        kind = kinds[index % len(kinds)]
        if kind == "composed":
            image = rng.randrange(len(scenes))
            question = rng.choice(composed_questions(scenes[image]))
            items.append(QuestionItem(image, question.text, question.answer, kind))
        else:
            row = rng.choice(rows_of[kind])
            items.append(QuestionItem(row.image_id, row.question, row.answer, kind))
    return items


def drawing_items(scenes: Sequence[Scene], count: int, rng: random.Random) -> list[DrawingItem]:
    """Prompts that test images fulfill."""
    drawings = [drawing_of(rng.choice(scenes)) for _ in range(count)]
    return [DrawingItem(rng.choice(drawing.prompts()), drawing) for drawing in drawings]


def plain_edit_items(scenes: Sequence[Scene], count: int, rng: random.Random) -> list[EditItem]:
    """Direct instructions, all kinds equally often."""
    items: list[EditItem] = []
    while len(items) < count:
        image, kind = rng.randrange(len(scenes)), PLAIN_KINDS[len(items) % len(PLAIN_KINDS)]
        instruction = draw_plain_edit(scenes[image], kind, rng)
        if isinstance(instruction, Instruction):
            target = tuple(apply(instruction.program, scenes[image]))
            items.append(EditItem(image, instruction.text, target, kind))
    return items
