"""The average of the weights: what it holds, and how it takes their place."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st
from peft import LoraConfig
from tiny_models import FAMILIES
from training_data import edit_rows, save_checkpoint

from uniedit_hf import UniEditConfig, UniEditPipeline, UniEditTrainer, cli
from uniedit_hf.training.ema import WeightAverage


@given(decay=st.floats(0.0, 1.0), values=st.lists(st.floats(-10, 10), min_size=1, max_size=8))
def test_it_is_the_exponential_average(decay, values):
    model = torch.nn.Linear(2, 2)
    frozen = model.bias.requires_grad_(False).clone()
    average = WeightAverage(model, decay)
    expected = model.weight.detach().clone()
    for value in values:
        torch.nn.init.constant_(model.weight, value)
        average.update(model)
        expected = decay * expected + (1 - decay) * value
    average.copy_to(model)
    assert model.weight.detach().numpy() == pytest.approx(expected.numpy(), abs=1e-4)
    assert torch.equal(model.bias, frozen)


@pytest.mark.parametrize("adapters", [False, True], ids=["weights", "adapters"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_average_loads_by_its_folder_and_as_a_subfolder(tmp_path, family, adapters):
    make = FAMILIES[family]
    save_checkpoint(tmp_path / "base", family)
    options = make.settings | {"ema_decay": 0.5, "max_steps": 2, "learning_rate": 1e-2, "save_strategy": "no"}
    run = UniEditTrainer(
        str(tmp_path / "base"),
        UniEditConfig(output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False, report_to="none", **options),
        edit_rows(8),
        peft_config=LoraConfig(r=2) if adapters else None,
    )
    run.train()
    run.save_model()
    places = ((tmp_path / "out", {"subfolder": "ema"}), (tmp_path / "out" / "ema", {}))
    loaded = [UniEditPipeline.from_pretrained(place, **options) for place, options in places]
    names = [name for name, _ in loaded[0].model.named_parameters() if "lora_B" in name or not adapters]
    last = dict(UniEditPipeline.from_pretrained(tmp_path / "out").model.named_parameters())
    first, second = (dict(pipe.model.named_parameters()) for pipe in loaded)
    assert names and all(torch.equal(first[name], second[name]) for name in names)
    assert any(not torch.equal(first[name], last[name]) for name in names), "the average is not the last step"
    if family == "bagel" and not adapters:
        folders = ["--input_dir", str(tmp_path / "out" / "ema"), "--output_dir", str(tmp_path / "official")]
        assert cli.main(["convert", *folders, "--to", "official"]) == 0
        assert (tmp_path / "official" / "tokenizer.json").is_file() or (tmp_path / "official" / "vocab.json").is_file()
        assert UniEditPipeline.from_pretrained(tmp_path / "official").processor.tokenizer is not None
