"""Rewards: what is right, what is wrong, what only looks right, and images that are broken."""

from __future__ import annotations

import asyncio
from io import BytesIO

import numpy as np
import pytest
from judge_server import JudgeServer
from PIL import Image, ImageDraw, ImageFont
from tiny_models import picture

from uniedit_hf.rewards import (
    REWARDS,
    JudgeReward,
    answer_match,
    leave_alone,
    preservation,
    rendered_text,
    reward_named,
    small_world,
    small_world_changed,
    small_world_kept,
    small_world_parts,
)
from uniedit_hf.small_world.scene import Scene, render


RED_CIRCLE = Scene("circle", "red", (20, 20, 36, 36), (230, 230, 230))
BLUE_CIRCLE = Scene("circle", "blue", (20, 20, 36, 36), (230, 230, 230))
MOVED = Scene("circle", "blue", (40, 20, 56, 36), (230, 230, 230))


def drawn(scene: Scene) -> Image.Image:
    return render(scene)


def answer_as_text(answer: str) -> Image.Image:
    image = drawn(RED_CIRCLE)
    ImageDraw.Draw(image).text((2, 2), answer, fill="black")
    return image


WHITE = Image.new("RGB", (64, 64), "white")
SOURCE, TARGET = drawn(RED_CIRCLE), drawn(BLUE_CIRCLE)
BROKEN = {
    "another size": picture(48, 48),
    "one pixel": Image.new("RGB", (1, 1)),
    "cut": {"bytes": b"\x89PNG\r\n\x1a\nhalf", "path": None},
    "noise": Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)),
}


def one(reward, image, source=SOURCE, **columns):
    """The reward of a single image."""
    given = {"target_image": TARGET, "texts": None} | columns
    columns = {name: [value] for name, value in given.items()}
    (found,) = reward(images=[image], sources=[source], instructions=["make it blue"], **columns)
    return found


# ---- the small world


@pytest.mark.parametrize(
    ("image", "whole", "changed", "kept"),
    [
        (TARGET, 1, 1, 1),
        (SOURCE, 0, 0, 1),  # copied: hence `changed` beside `kept`
        (drawn(MOVED), 0, 1, 0),
        (WHITE, 0, 0, 0),
        (answer_as_text("blue"), 0, 0, 0),
        *((image, 0, 0, 0) for image in BROKEN.values()),
    ],
)
def test_scenes(image, whole, changed, kept):
    assert one(small_world, image) == whole
    assert one(small_world_changed, image) == changed
    assert one(small_world_kept, image) == kept


def test_scenes_by_parts():
    assert one(small_world_parts, TARGET) == 1
    assert one(small_world_parts, SOURCE) == pytest.approx(5 / 6), "a copy gets most of it"
    assert one(small_world_parts, drawn(MOVED)) == pytest.approx(5 / 6)
    assert one(small_world_parts, WHITE) == 0


def test_where_nothing_is_to_change_no_change_is_rewarded():
    assert one(small_world_changed, TARGET, target_image=SOURCE) is None
    assert one(small_world, SOURCE, target_image=SOURCE) == 1
    assert one(small_world, TARGET, target_image=SOURCE) == 0


def test_stored_images_are_opened():
    file = BytesIO()
    TARGET.save(file, "PNG")
    stored = {"bytes": file.getvalue(), "path": None}
    assert one(small_world, stored, target_image=stored) == 1


# ---- pixels


def test_preservation():
    assert one(preservation, TARGET) == 1
    assert one(preservation, SOURCE) == 1, "a copy keeps everything: hence a second reward beside it"
    assert one(preservation, drawn(MOVED)) < 1
    assert one(preservation, WHITE) < 0.01
    assert one(preservation, TARGET, target_image=None, region=(18, 18, 38, 38)) == 1
    assert one(preservation, TARGET, target_image=None, region=(0, 0, 10, 10)) < 1
    assert one(preservation, TARGET, target_image=None, region=(-5, -5, 99, 99)) is None, "nothing is outside"
    assert one(preservation, TARGET, target_image=None) is None, "no region is known"
    assert one(preservation, BROKEN["cut"]) == 0
    assert one(preservation, BROKEN["noise"]) < 0.2


def test_leave_alone():
    left = {"target_image": SOURCE}
    assert one(leave_alone, SOURCE, **left) == 1
    assert one(leave_alone, TARGET, **left) < 1
    assert one(leave_alone, WHITE, **left) < 0.01
    assert one(leave_alone, BROKEN["cut"], **left) == 0
    assert one(leave_alone, TARGET) is None, "something is to change"
    assert one(leave_alone, TARGET, leave_alone=True) < one(leave_alone, SOURCE, leave_alone=True) == 1
    assert one(leave_alone, SOURCE, leave_alone=False, target_image=SOURCE) is None


# ---- texts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Blue.", 1),
        ("the blue", 1),
        ("red", 0),
        ("", 0),
        ("blue red green yellow", 0),  # every possible answer
        ("The answer is blue", 0),
    ],
)
def test_answers(text, expected):
    assert one(answer_match, None, texts=text, answer="blue") == expected


def test_answers_in_other_spellings():
    assert one(answer_match, None, texts="Two", answer="2") == 1
    assert one(answer_match, TARGET, answer="blue") is None, "an image was drawn"


def sign(text: str) -> Image.Image:
    image = Image.new("RGB", (420, 120), "white")
    ImageDraw.Draw(image).text((20, 40), text, fill="black", font=ImageFont.load_default(34))
    return image


def test_rendered_text():
    pytest.importorskip("rapidocr", reason="rapidocr is not installed")
    blank = Image.new("RGB", (420, 120), "white")
    assert one(rendered_text, sign("OPEN AT 9"), blank, answer="open at 9") > 0.9
    assert one(rendered_text, sign("CLOSED NOW"), blank, answer="open at 9") < 0.6
    assert one(rendered_text, blank, blank, answer="open at 9") == 0
    everything = one(rendered_text, sign("OPEN CLOSED SOLD"), blank, answer="open")
    assert everything < 0.5, "writing every answer is not worth it"
    assert one(rendered_text, sign("OPEN AT 9"), sign("OPEN AT 9"), answer="open at 9") == 0, "it was there before"
    assert one(rendered_text, BROKEN["cut"], blank, answer="open") == 0
    assert one(rendered_text, blank, blank, answer=None) is None


# ---- a judge


def judged(judge: JudgeReward, images, **columns):
    return asyncio.run(judge(images, [SOURCE] * len(images), ["make it blue"] * len(images), **columns))


def test_a_judge_gives_marks(tmp_path):
    with JudgeServer() as server:
        judge = JudgeReward(model="judge", base_url=server.address, cache=tmp_path, budget={"calls": 2})
        first = judged(judge, [TARGET, WHITE, BROKEN["cut"], None], answer=["blue"] * 4)
        assert first[2:] == [0.0, None] and all(0.5 <= mark <= 0.7 for mark in first[:2])
        assert judged(judge, [TARGET, WHITE]) == first[:2] and sum(server.answered.values()) == 2, "kept"
        again = JudgeReward(model="judge", base_url=server.address, cache=tmp_path, budget={"calls": 2})
        assert judged(again, [TARGET]) == first[:1], "kept on disk"
        with pytest.raises(ValueError, match=r"asked nothing more, the budget of 2 \(calls\) is used up"):
            judged(again, [drawn(MOVED)])


def test_a_judge_that_does_not_mark(monkeypatch):
    with JudgeServer("garbled") as server:
        judge = JudgeReward(model="judge", base_url=server.address, malformed_attempts=2)
        assert judged(judge, [TARGET]) == [None]
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(ValueError, match="The judge of the reward takes its key from .* NO_KEY, which is empty"):
        JudgeReward(model="judge", api_key_env="NO_KEY")


# ---- names


def test_rewards_by_name():
    assert set(REWARDS) >= {"small_world", "preservation", "leave_alone", "answer_match", "rendered_text"}
    assert reward_named("small_world") is small_world
    with pytest.raises(ValueError, match="There is no reward 'best': use one of answer_match, "):
        reward_named("best")
