"""All 553 prompts of GenEval, written from `fixtures/geneval/rows.tsv` byte for byte as the benchmark has them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from uniedit_hf.evaluation.scorers.geneval_scores import COLORS, Detection, evaluate
from uniedit_hf.evaluation.suites import geneval


ROWS = Path(__file__).parent / "fixtures" / "geneval" / "rows.tsv"
OFFICIAL = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"  # evaluation_metadata.jsonl
NUMBERS = {"2": "two", "3": "three", "4": "four"}
WHERE = {"left of": (-100, 0), "right of": (100, 0), "above": (0, -100), "below": (0, 100)}


def a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def written(tag: str, *words: str) -> dict:
    """A row of the benchmark from its words."""

    def one(name, **more):
        return {"class": name, "count": 1, **more}

    excluded = {}
    match tag, words:
        case "single_object", [name]:
            include, prompt = [one(name)], a(name)
        case "two_object", [first, second]:
            include, prompt = [one(first), one(second)], f"{a(first)} and {a(second)}"
        case "counting", [number, name]:
            include, prompt = (
                [{"class": name, "count": int(number)}],
                f"{NUMBERS[number]} {name}{'es' if name[-1] == 's' else 's'}",
            )
            excluded = {"exclude": [{"class": name, "count": int(number) + 1}]}
        case "colors", [color, name]:
            include, prompt = [one(name, color=color)], a(f"{color} {name}")
        case "position", [first, place, second]:
            include, prompt = [one(first), one(second, position=[place, 0])], f"{a(second)} {place} {a(first)}"
        case "color_attr", [color, first, other, second]:
            include = [one(first, color=color), one(second, color=other)]
            prompt = f"{a(f'{color} {first}')} and {a(f'{other} {second}')}"
    return {"tag": tag, "include": include, **excluded, "prompt": f"a photo of {prompt}"}


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    rows = [written(*line.split("\t")) for line in ROWS.read_text().splitlines()]
    file = tmp_path_factory.mktemp("geneval") / "evaluation_metadata.jsonl"
    file.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode())
    assert hashlib.sha256(file.read_bytes()).hexdigest() == OFFICIAL
    return geneval.read(str(file))


def test_all_553_prompts_are_read(items):
    assert Counter(item.row["tag"] for item in items) == {
        "single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100,
    }  # fmt: skip
    assert [item.name for item in items] == [f"{number:05d}" for number in range(553)]
    assert len({item.prompt for item in items}) == 553


def test_every_prompt_can_be_right_and_wrong(items):
    for item in items:
        objects, colors = picture_of(item.row)
        assert evaluate(objects, item.row, partial(seen, colors)) == (True, []), item
        for name in objects:  # without one of its objects it is wrong
            right, why = evaluate(objects | {name: []}, item.row, partial(seen, colors))
            assert not right and why, item


def seen(colors: dict, found: list, name: str) -> list:
    return [colors[name]] * len(found)


def picture_of(row: dict) -> tuple[dict, dict]:
    """Detections as the prompt asks for them, apart from each other, and the color of each class."""
    objects, colors = {}, {}
    for number, asked in enumerate(row["include"]):
        x, y = WHERE[asked["position"][0]] if "position" in asked else (0, 300 * number)
        boxes = [(x + 50 * k, y, x + 50 * k + 20, y + 20) for k in range(asked["count"])]
        objects[asked["class"]] = [Detection(box, 0.95) for box in boxes]
        colors[asked["class"]] = asked.get("color", COLORS[0])
    return objects, colors
