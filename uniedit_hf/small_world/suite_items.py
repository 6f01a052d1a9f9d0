"""The test items of the small world: questions, drawings and edits of test images, the same for every model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from typing import Literal

from PIL import Image

from uniedit_hf.evaluation.items import Item
from uniedit_hf.randomness import derive_seed, python_random
from uniedit_hf.small_world.easy_vqa import Split, VqaRow, load_easy_vqa, load_image, one_row_per_image
from uniedit_hf.small_world.edits import intelligent_edits, plain_edits
from uniedit_hf.small_world.questions import DrawingPrompt, composed_questions, drawing_of
from uniedit_hf.small_world.reader import read
from uniedit_hf.synthesis.records import Record


Ability = Literal["understanding", "generation", "editing", "planned editing"]
SEED = 20260521  # of the items and their noise; the same whatever seed a tuning has


@dataclass(frozen=True)
class SmallWorldItem(Item):
    """One test item: a question, prompt or instruction, its image, if any, and the correct result.

    Its row has the `ability` that it measures; its `kind` within that: `easy-vqa open`, `easy-vqa yes/no`, `composed`,
    `drawing`, `plain`, `intelligent` or `planned`; and by which `view` an edit sees its source: `vit`, the one for
    understanding, or `both`, otherwise None.

    Args:
        expected: The answer, the drawing, or the target image.
    """

    expected: str | DrawingPrompt | Image.Image | None = None

    @property
    def ability(self) -> Ability:
        return self.row["ability"]

    @property
    def kind(self) -> str:
        return self.row["kind"]

    @property
    def view(self) -> str | None:
        return self.row["view"]

    @property
    def source(self) -> Image.Image | None:
        return self.sources[0]() if self.sources else None

    def noise_seed(self, seed: int = 0) -> int:
        """The same for every model; `seed` counts the images of an item."""
        return derive_seed(SEED, self.name, *([seed] if seed else [])) % 2**31


def test_items(num_each: int, split: Split = "test") -> list[SmallWorldItem]:
    """Items on test images: `num_each` questions of easy-VQA, `num_each` composed ones, twice as many drawings,
    `num_each` plain and `num_each` intelligent edits, half of them with each view of the source.

    Choices between recipes are made on the split "train", never on "test".
    """
    rows = load_easy_vqa(split)
    images = _shuffled(one_row_per_image(rows), "pictures")
    return [
        *_easy_questions(_shuffled(rows, "questions")[:num_each]),
        *_composed_questions(images[:num_each]),
        *_drawings(images[-2 * num_each :]),
        *_edits("plain", plain_edits(rows, seed=SEED, size=num_each)),
        *_edits("intelligent", intelligent_edits(rows, seed=SEED, size=num_each)),
    ]


def planned(items: Sequence[SmallWorldItem]) -> list[SmallWorldItem]:
    """The intelligent edits among the items once more: the model first writes what the instruction comes down to, and
    then draws after what it wrote."""
    row = {"ability": "planned editing", "kind": "planned"}
    return [
        replace(item, name=f"planned {item.name}", row=dict(item.row) | row)
        for item in items
        if item.kind == "intelligent"
    ]


def _shuffled(rows: Sequence[VqaRow], purpose: str) -> list[VqaRow]:
    return python_random(SEED, purpose).sample(list(rows), len(rows))


def _item(ability: Ability, kind: str, name: str, prompt: str, expected, source=None, view=None) -> SmallWorldItem:
    row = {"ability": ability, "kind": kind, "view": view}
    return SmallWorldItem(name, prompt, row, [] if source is None else [source], expected=expected)


def _easy_questions(rows: Sequence[VqaRow]) -> list[SmallWorldItem]:
    return [
        _item(
            "understanding",
            "easy-vqa open" if row.is_open else "easy-vqa yes/no",
            f"easy-vqa {row.image_id} {row.question}",
            row.question,
            row.answer,
            partial(load_image, row.image_path),
        )
        for row in rows
    ]


def _composed_questions(rows: Sequence[VqaRow]) -> list[SmallWorldItem]:
    items = []
    for row in rows:
        source = partial(load_image, row.image_path)
        question = python_random(SEED, row.image_id, "composed").choice(composed_questions(read(source())))
        name = f"composed {row.image_id} {question.text}"
        items.append(_item("understanding", "composed", name, question.text, question.answer, source))
    return items


def _drawings(rows: Sequence[VqaRow]) -> list[SmallWorldItem]:
    items = []
    for row in rows:
        drawing = drawing_of(read(load_image(row.image_path)))
        prompt = python_random(SEED, row.image_id, "prompt").choice(drawing.prompts())
        items.append(_item("generation", "drawing", f"drawing {row.image_id}", prompt, drawing))
    return items


def _edits(kind: str, results) -> list[SmallWorldItem]:
    records = [result for result in results if isinstance(result, Record)]
    return [
        _item(
            "editing",
            kind,
            f"{kind} {record.id}",
            record.instruction,
            _open(record.target_image),
            partial(_open, record.source_image),
            view="vit" if index % 2 else "both",
        )
        for index, record in enumerate(records)
    ]


def _open(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data)).convert("RGB")


def blind_answers(items: Sequence[SmallWorldItem]) -> list[str]:
    """Answers from the question alone, without the image: the most frequent answer to it in the training questions, or
    the overall most frequent answer if the question does not occur there.
    """
    by_question: defaultdict[str, Counter] = defaultdict(Counter)
    for row in load_easy_vqa("train"):
        by_question[row.question][row.answer] += 1
    for row in one_row_per_image(load_easy_vqa("train")):
        for question in composed_questions(read(load_image(row.image_path))):
            by_question[question.text][question.answer] += 1
    all_answers = sum(by_question.values(), Counter())
    return [(by_question.get(item.prompt) or all_answers).most_common(1)[0][0] for item in items]
