"""What is tuned on beside intelligent edits, and the plans that intelligent instructions come down to."""

from __future__ import annotations

import re

import pytest
from datasets import Dataset

from uniedit_hf.small_world import suite_items
from uniedit_hf.small_world.easy_vqa import QUESTION_TEMPLATES, load_easy_vqa
from uniedit_hf.small_world.edits import intelligent_edits
from uniedit_hf.small_world.program import ALL_CONDITIONS
from uniedit_hf.small_world.questions import question_texts
from uniedit_hf.small_world.replay import embedded, plans, with_replay
from uniedit_hf.small_world.wording import asks, question_of
from uniedit_hf.synthesis.records import Record


def records(asking: str, size: int = 60) -> list[Record]:
    made = intelligent_edits(load_easy_vqa("train"), seed=3, size=size, asking=asking)
    return [each for each in made if isinstance(each, Record)]


def rows(made: list[Record]) -> Dataset:
    image = {"source_image": b"", "target_image": b""}
    return Dataset.from_list([{"id": each.id, "instruction": each.instruction, **image} for each in made])


def test_a_plan_ends_in_an_edit_and_says_whether_each_condition_holds():
    for question, answer, plan in zip(records("question"), records("answer"), records("plan")):
        assert (question.id, question.target_image) == (plan.id, plan.target_image)
        *steps, last = plan.instruction.split(", ")
        verdicts = [each for each in steps if each in ("yes", "no")]
        depth = int(dict(part.split("=") for part in question.variant.split(","))["depth"])
        assert last.startswith("so ") and 1 <= len(verdicts) <= depth
        assert steps[1] in ("yes", "no") and len(steps) >= 2 * len(verdicts)
        assert answer.instruction != plan.instruction


def test_thinking_asks_and_answers_in_words_of_the_base():
    """Every question is one of easy-VQA, a composed one, or a test of the answer just given."""
    known = set(question_texts()) | {question_of(each) for each in ALL_CONDITIONS if asks(each)}
    known |= {template for template in QUESTION_TEMPLATES if "{" not in template}
    for plan, thinking in zip(records("plan"), records("thinking")):
        assert plan.target_image == thinking.target_image
        *_, last = thinking.instruction.split(", ")
        assert last == plan.instruction.split(", ")[-1]
        asked = re.findall(r"[^,?]+\?", thinking.instruction)
        answers = re.findall(r"\? (yes|no)\b", thinking.instruction)
        assert answers == [each for each in plan.instruction.split(", ") if each in ("yes", "no")]
        for question in map(str.strip, asked):
            question = question.removeprefix("yes ").removeprefix("no ")
            assert question in known or len(question.split()) <= 3


def test_plans_are_questions_and_answers():
    asked, told = rows(records("question", 5)), rows(records("plan", 5))
    found = plans(asked, told)
    assert found["question"] == asked["instruction"] and found["answer"] == told["instruction"]
    assert set(found["id"]).isdisjoint(asked["id"])
    with pytest.raises(ValueError, match="not the same"):
        plans(asked, told.select([1, 0, 2]))


def test_shares_of_zero_are_left_out():
    asked, told = rows(records("question", 5)), rows(records("plan", 5))
    shares = {"edits": 0, "drawings": 2, "questions": 1, "composed": 4, "plain": 0, "plans": 3, "planned": 1}
    parts = with_replay(asked, asked, told, shares=shares)
    assert [part.weight for part in parts] == [2, 1, 4, 3, 1]
    assert [part.recipe.name for part in parts] == ["generate", "answer", "answer", "answer", "edit"]


def test_unknown_samples_and_missing_plans_are_refused():
    asked = rows(records("question", 5))
    with pytest.raises(ValueError, match="no samples of drawing: choose from edits, drawings"):
        with_replay(asked, asked, shares={"drawing": 1})
    with pytest.raises(ValueError, match="no samples of plans"):
        with_replay(asked, asked, shares={"plans": 1})


def test_embedded_questions_are_those_with_an_answer():
    asked = rows(records("question", 5)).add_column("question", ["what color is the shape?", None, "a?", "b?", None])
    found = embedded(asked.add_column("answer", ["red", None, "yes", "no", None]))
    assert found["answer"] == ["red", "yes", "no"]
    assert set(found["id"]).isdisjoint(asked["id"])


def test_planned_items_are_the_intelligent_ones_once_more():
    items = suite_items.test_items(3)
    intelligent = [item for item in items if item.kind == "intelligent"]
    again = suite_items.planned(items)
    assert [item.prompt for item in again] == [item.prompt for item in intelligent]
    assert {item.ability for item in again} == {"planned editing"}
    assert {item.name for item in again}.isdisjoint(item.name for item in items)
