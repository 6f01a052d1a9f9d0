"""Data that the small base knows already, to tune on beside intelligent edits: images with prompts, questions with
answers, and plain edits, all of easy-VQA's training images; and plans, which say what an intelligent instruction comes
down to."""

from __future__ import annotations

from collections.abc import Mapping

from datasets import Dataset

from uniedit_hf.randomness import python_random
from uniedit_hf.recipes import NamedRecipe
from uniedit_hf.segments import DRAWING, UNDERSTANDING
from uniedit_hf.small_world.easy_vqa import load_easy_vqa, load_image, one_row_per_image
from uniedit_hf.small_world.questions import composed_questions, drawing_of
from uniedit_hf.small_world.reader import read
from uniedit_hf.training import TrainingPart


QUESTION_STEP = 4  # every fourth question: twice as many as images
COMPOSED_OF_AN_IMAGE = 4
EDIT = NamedRecipe("edit")
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


def composed() -> Dataset:
    """Composed questions about every image, with their answers."""
    rows = []
    for row in one_row_per_image(load_easy_vqa("train")):
        image = load_image(row.image_path)
        asked = composed_questions(read(image))
        drawn = python_random("composed", row.image_id).sample(asked, min(COMPOSED_OF_AN_IMAGE, len(asked)))
        rows += [
            {"id": f"composed-{row.image_id}-{i}", "source_image": image, "question": each.text, "answer": each.answer}
            for i, each in enumerate(drawn)
        ]
    return Dataset.from_list(rows)


def embedded(edits: Dataset) -> Dataset:
    """The questions that intelligent edits ask about their images, with their answers."""
    columns = [name for name in ("source_image", "source_size", "question", "answer") if name in edits.column_names]
    asked = edits.select_columns(columns).add_column("id", [f"embedded-{each}" for each in edits["id"]])
    return asked.select([row for row, question in enumerate(edits["question"]) if question])


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
    edits: Dataset, plain: Dataset, told: Dataset | None = None, *, shares: Mapping[str, float]
) -> list[TrainingPart]:
    """Intelligent edits with what the base knows beside them; train them with a text loss.

    Args:
        edits: Intelligent edits.
        plain: Plain edits.
        told: The intelligent edits with a plan in place of the instruction.
        shares: Shares in the samples, by name. Of edits: `edits`, and `planned` after a plan. Of texts: `plans`, and
            `embedded` for the questions that instructions ask. Of what the base knows: `drawings`, `questions` of
            easy-VQA, `composed` ones, and `plain` edits.

    Raises:
        ValueError: If a name is unknown, or there are no plans for `plans` or `planned`.
    """
    parts = {
        "edits": lambda: (edits, EDIT),
        "drawings": lambda: (drawings(), NamedRecipe("generate")),
        "questions": lambda: (questions(), NamedRecipe("answer")),
        "composed": lambda: (composed(), NamedRecipe("answer")),
        "embedded": lambda: (embedded(edits), NamedRecipe("answer")),
        "plain": lambda: (plain, EDIT_BY_EITHER_VIEW),
    }
    if told is not None:
        parts["plans"] = lambda: (plans(edits, told), NamedRecipe("answer"))
        parts["planned"] = lambda: (told, EDIT_BY_EITHER_VIEW)
    if unknown := [name for name in shares if name not in parts]:
        raise ValueError(f"There are no samples of {', '.join(unknown)}: choose from {', '.join(parts)}.")
    return [TrainingPart(*parts[name](), share) for name, share in shares.items() if share]
