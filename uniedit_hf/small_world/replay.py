"""Data that the small base knows already, to tune on beside intelligent edits: images with prompts, questions with
answers, and plain edits, all of easy-VQA's training images; and plans, which say what an intelligent instruction comes
down to."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import Dataset

from uniedit_hf.recipes import NamedRecipe
from uniedit_hf.segments import DRAWING, UNDERSTANDING
from uniedit_hf.small_world.easy_vqa import load_easy_vqa, load_image, one_row_per_image
from uniedit_hf.small_world.questions import drawing_of
from uniedit_hf.small_world.reader import read
from uniedit_hf.training import TrainingPart


QUESTION_STEP = 8  # every eighth question: as many as images
EDIT = NamedRecipe("edit")
EDIT_BY_BOTH_VIEWS = NamedRecipe("edit", {"source_views": [UNDERSTANDING, DRAWING]})
EDIT_BY_EITHER_VIEW = NamedRecipe("edit", {"source_views": [UNDERSTANDING, DRAWING], "drawing_dropout": 0.5})


def questions() -> Dataset:
    """Questions with their images and answers."""
    rows = load_easy_vqa("train")
    images = {row.image_id: load_image(row.image_path) for row in one_row_per_image(rows)}
    return Dataset.from_list(
        [
            {
                "id": f"question-{i}",
                "source_image": images[row.image_id],
                "question": row.question,
                "answer": row.answer,
            }
            for i, row in enumerate(rows[::QUESTION_STEP])
        ]
    )


def drawings() -> Dataset:
    """A prompt for every image."""
    rows = []
    for row in one_row_per_image(load_easy_vqa("train")):
        image = load_image(row.image_path)
        prompts = drawing_of(read(image)).prompts()
        prompt = prompts[row.image_id % len(prompts)]
        rows.append({"id": f"prompt-{row.image_id}", "prompt": prompt, "target_image": image})
    return Dataset.from_list(rows)


def plans(edits: Dataset, told: Dataset) -> Dataset:
    """Instructions as questions, and what they come down to as answers.

    Args:
        edits: Intelligent edits.
        told: The same edits with a plan in place of the instruction (`uniedit_hf/small_world/asking.py`).

    Raises:
        ValueError: The two are not of the same edits.
    """
    if edits["id"] != told["id"]:
        raise ValueError("The edits that are asked for and those that are told are not the same.")
    columns = [name for name in ("source_image", "source_size") if name in told.column_names]
    rows = told.select_columns(columns).add_column("id", [f"plan-{each}" for each in told["id"]])
    return rows.add_column("question", edits["instruction"]).add_column("answer", told["instruction"])


def with_replay(
    edits: Dataset, plain: Dataset, told: Dataset | None = None, *, shares: Sequence[float]
) -> list[TrainingPart]:
    """Intelligent edits with what the base knows beside them; train them with a text loss.

    Args:
        edits: Intelligent edits.
        plain: Plain edits, whose source is shown by both views.
        told: The intelligent edits with a plan in place of the instruction.
        shares: Shares of edits, drawings, questions and plain edits in the samples; with `told` also the shares of
            plans and of edits after a plan.
    """
    parts = [
        (edits, EDIT),
        (drawings(), NamedRecipe("generate")),
        (questions(), NamedRecipe("answer")),
        (plain, EDIT_BY_BOTH_VIEWS),
    ]
    if told is not None:
        parts += [(plans(edits, told), NamedRecipe("answer")), (told, EDIT_BY_EITHER_VIEW)]
    return [TrainingPart(rows, recipe, share) for (rows, recipe), share in zip(parts, shares) if share]
