"""The small Janus and the quickstart on it, from end to end, with few edits, steps and items."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny_models import save_small_janus
from uniedit_hf import UniEditPipeline, quickstart
from uniedit_hf.cli import main


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    save_small_janus(folder)
    return folder


def test_the_small_model_is_small_and_knows_its_world(base):
    pipe = UniEditPipeline.from_pretrained(base)
    assert 2 * sum(p.numel() for p in pipe.model.parameters()) <= 12e6, "in 16 bit"
    tokenizer = pipe.processor.tokenizer
    ids = tokenizer("<|User|>: what color is the shape?\n\n<|Assistant|>:")["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens == ["<bos>", "<user>", "what", "color", "is", "the", "shape", "?", "<turn>"]


def test_without_a_base_it_says_how_to_make_one(tmp_path, capsys):
    if (ROOT / "assets" / "small_janus").exists():
        pytest.skip("the base is there")
    assert main(["quickstart", "--model", "janus", "--output_dir", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "examples/small_world/janus_base.py" in message


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_quickstart(base, tmp_path):
    page = quickstart.run(str(tmp_path), model="janus", base=str(base), steps=2, edits=60, items=4)
    assert page.is_file()
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["settings"]["model"] == "janus"
    assert all(report["abilities"][ability]["n"] == 8 for ability in ("understanding", "generation", "editing"))
    assert report["losses"]["tuned"][-1]["loss"] > 0
    assert "editing, target through the autoencoder" in report["references"]
