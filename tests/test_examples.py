"""Every example configuration is one that the real parser takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from uniedit_hf.cli import train
from uniedit_hf.cli.parsing import CommandParser


EXAMPLES = sorted((Path(__file__).parents[1] / "examples" / "train").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_parsed(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # without a GPU, transformers refuses bf16 unless it may use the CPU
    flags = ["--config", str(path), "--use_cpu", "true"]
    parser = CommandParser("train", "", train.run, show_inherited=False)
    model, data, training = parser.parse(flags)
    assert model.model_name_or_path == "ByteDance-Seed/BAGEL-7B-MoT"
    assert data.dataset_name == "uniedit-148k"
    assert training.source_views == ["vit"] and training.image_loss_weight == 1 and training.text_loss_weight == 0
    assert model.use_peft == ("lora" in path.stem)


def test_there_are_examples():
    assert [path.stem for path in EXAMPLES] == ["bagel_full", "bagel_lora", "bagel_qlora"]
