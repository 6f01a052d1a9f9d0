"""The small base model that the project ships: it loads, it is small, and it has its three abilities."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from uniedit_hf.pipeline import UniEditPipeline
from uniedit_hf.synthesis.scene import Scene, render


ROOT = Path(__file__).resolve().parents[1]
ASSET = ROOT / "assets" / "small_bagel"
DRAWING = {"num_timesteps": 15, "text_guidance_scale": 2.5}


@pytest.fixture(scope="module")
def pipe() -> UniEditPipeline:
    return UniEditPipeline.from_pretrained(ASSET)


def test_it_is_small_and_loads_in_32_bit(pipe):
    assert sum(file.stat().st_size for file in ASSET.iterdir()) <= 12e6
    assert {parameter.dtype for parameter in pipe.model.parameters()} == {torch.float32}


def test_both_views_of_a_picture_have_as_many_tokens(pipe):
    images = pipe.processor.image_processor
    assert images.tokens(64, 64, "vit") == images.tokens(64, 64, "vae") == 16


def test_it_draws_edits_and_answers(pipe):
    source = render(Scene("circle", "red", (36.0, 8.0, 58.0, 30.0), (240, 240, 250)))
    assert pipe.answer(source, "what color is the shape?", max_new_tokens=6) == "red"
    drawn = pipe.generate("a big blue rectangle at the left", seed=0, **DRAWING)
    edited = pipe.edit(source, "make it green.", seed=0, source_views=("vit",), image_guidance_scale=1.0, **DRAWING)
    assert drawn.size == edited.size == (64, 64)


def test_its_abilities_are_not_lost():
    """Below the card's figures by more than chance explains on forty items, so that only a broken model fails."""
    command = [sys.executable, "examples/small_world/measure.py", "assets/small_bagel", "--items", "40"]
    output = subprocess.run([*command, "--views", "vit"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    figures = json.loads(output.splitlines()[-1])
    percent = {ability: parts["all"]["percent"] for ability, parts in figures.items()}
    assert percent["understanding"] >= 55
    assert percent["generation"] >= 5
    assert figures["editing_vit"]["part changed"]["percent"] >= 5
