"""What is tuned on beside intelligent edits, and the plans that intelligent instructions come down to."""

from __future__ import annotations

import pytest
from datasets import Dataset

from uniedit_hf.small_world import suite_items
from uniedit_hf.small_world.easy_vqa import load_easy_vqa
from uniedit_hf.small_world.edits import intelligent_edits
from uniedit_hf.small_world.replay import plans, with_replay
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


def test_plans_are_questions_and_answers():
    asked, told = rows(records("question", 5)), rows(records("plan", 5))
    found = plans(asked, told)
    assert found["question"] == asked["instruction"] and found["answer"] == told["instruction"]
    assert set(found["id"]).isdisjoint(asked["id"])
    with pytest.raises(ValueError, match="not the same"):
        plans(asked, told.select([1, 0, 2]))


def test_shares_of_zero_are_left_out():
    asked, told = rows(records("question", 5)), rows(records("plan", 5))
    parts = with_replay(asked, asked, told, shares=(0, 2, 1, 0, 3, 1))
    assert [part.weight for part in parts] == [2, 1, 3, 1]
    assert [part.recipe.name for part in parts] == ["generate", "answer", "answer", "edit"]


def test_planned_items_are_the_intelligent_ones_once_more():
    items = suite_items.test_items(3)
    intelligent = [item for item in items if item.kind == "intelligent"]
    again = suite_items.planned(items)
    assert [item.prompt for item in again] == [item.prompt for item in intelligent]
    assert {item.ability for item in again} == {"planned editing"}
    assert {item.name for item in again}.isdisjoint(item.name for item in items)
