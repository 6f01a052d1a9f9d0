"""The small base models that the project ships: they load, they are small, and they have their three abilities."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from uniedit_hf.pipeline import UniEditPipeline
from uniedit_hf.small_world.scene import Scene, render
from uniedit_hf.small_world.suite import DRAWING_SETTINGS, EDIT_SETTINGS


ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", params=["bagel", "janus"])
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def asset(family) -> Path:
    return ROOT / "assets" / f"small_{family}"


@pytest.fixture(scope="module")
def pipe(asset) -> UniEditPipeline:
    return UniEditPipeline.from_pretrained(asset)


def test_it_is_small_and_loads_in_32_bit(asset, pipe):
    assert sum(file.stat().st_size for file in asset.iterdir()) <= 12e6
    assert {parameter.dtype for parameter in pipe.model.parameters()} == {torch.float32}


def test_both_views_of_a_picture_have_as_many_tokens(family, pipe):
    if family == "bagel":
        images = pipe.processor.image_processor
        assert images.tokens(64, 64, "vit") == images.tokens(64, 64, "vae") == 16
    else:
        assert pipe.processor.num_image_tokens == pipe.model.config.vision_config.num_image_tokens == 64


def test_janus_has_a_token_for_every_word_and_turn():
    tokenizer = UniEditPipeline.from_pretrained(ROOT / "assets" / "small_janus").processor.tokenizer
    ids = tokenizer("<|User|>: what color is the shape?\n\n<|Assistant|>:")["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens == ["<bos>", "<user>", "what", "color", "is", "the", "shape", "?", "<turn>"]


def test_it_draws_edits_and_answers(family, pipe):
    source = render(Scene("circle", "red", (36.0, 8.0, 58.0, 30.0), (240, 240, 250)))
    assert pipe.answer(source, "what color is the shape?", max_new_tokens=6) == "red"
    drawn = pipe.generate("a big blue rectangle at the left", seed=0, **DRAWING_SETTINGS[family])
    views = ("understanding",)
    edited = pipe.edit(source, "make it green.", seed=0, source_views=views, **EDIT_SETTINGS[family])
    assert drawn.size == edited.size == (64, 64)


def test_its_abilities_are_not_lost(asset, pipe):
    """Below the card's figures by more than chance explains on forty items, so that only a broken model fails."""
    command = [sys.executable, "-m", "uniedit_hf.small_world.base.measure", str(asset), "--items", "40"]
    view = pipe.processor.view_names["understanding"]
    output = subprocess.run([*command, "--views", view], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    figures = json.loads(output.splitlines()[-1])
    percent = {ability: parts["all"]["percent"] for ability, parts in figures.items()}
    assert percent["understanding"] >= 55
    assert percent["generation"] >= 5
    assert figures[f"editing_{view}"]["part changed"]["percent"] >= 5
