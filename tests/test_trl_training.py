"""DPO of TRL and transformers' plain Trainer on both families, without a word about them in our code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tiny_models import FAMILIES, tiny_janus_tokenizer, tiny_tokenizer
from torch.nn.functional import cross_entropy
from transformers import AutoModelForImageTextToText, DataCollatorForLanguageModeling, Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer


TOKENIZERS = {"bagel": tiny_tokenizer, "janus": tiny_janus_tokenizer}
PAIRS = [
    {"prompt": "paint the circle", "chosen": " red", "rejected": " blue"},
    {"prompt": "what colour is", "chosen": " this", "rejected": " two"},
]
COMMON = {
    "per_device_train_batch_size": 2, "report_to": [], "use_cpu": True, "logging_steps": 1, "save_strategy": "no",
    "learning_rate": 1e-2,
}  # fmt: skip


def text_logps(model, tokenizer, pair: dict, answer: str) -> float:
    """The log probability of an answer and its end after a prompt."""
    prompt = tokenizer(pair["prompt"])["input_ids"]
    ids = torch.tensor([[*prompt, *tokenizer(pair[answer], add_special_tokens=False)["input_ids"]]])
    if ids[0, -1] != tokenizer.eos_token_id:
        ids = torch.cat([ids, torch.tensor([[tokenizer.eos_token_id]])], 1)
    with torch.no_grad():
        logits = model(ids).logits[0, len(prompt) - 1 : -1]
    return -cross_entropy(logits, ids[0, len(prompt) :], reduction="sum").item()


@pytest.mark.parametrize("adapters", [False, True], ids=["weights", "adapters"])
@pytest.mark.parametrize("family", FAMILIES)
def test_dpo_learns_preferences(family, adapters, tmp_path):
    make, tokenizer = FAMILIES[family], TOKENIZERS[family]()
    make.model().save_pretrained(tmp_path / "model")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model").eval()
    expected = np.mean([text_logps(model, tokenizer, pair, "chosen") for pair in PAIRS])
    arguments = DPOConfig(
        output_dir=str(tmp_path / "out"), max_steps=6, bf16=False, gradient_checkpointing=False, **COMMON
    )
    lora = LoraConfig(r=2, target_modules=model.lora_target_modules(text=True)) if adapters else None
    data = Dataset.from_list(PAIRS)
    trainer = DPOTrainer(model, args=arguments, train_dataset=data, processing_class=tokenizer, peft_config=lora)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert float(logs[0]["loss"]) == pytest.approx(math.log(2), abs=1e-4)  # nothing is preferred yet
    assert float(logs[0]["logps/chosen"]) == pytest.approx(expected, rel=1e-4)
    assert float(logs[-1]["rewards/margins"]) > 0 and float(logs[-1]["loss"]) < math.log(2)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plain_trainer_trains_and_predicts(family, tmp_path):
    model, tokenizer = FAMILIES[family].model(), TOKENIZERS[family]()
    ids = tokenizer("paint the circle red")["input_ids"]
    data = Dataset.from_dict({"input_ids": [ids, ids]})
    with torch.no_grad():
        expected = cross_entropy(model(torch.tensor([ids])).logits[0, :-1], torch.tensor(ids[1:])).item()
    trainer = Trainer(
        model, TrainingArguments(str(tmp_path), max_steps=3, **COMMON),
        DataCollatorForLanguageModeling(tokenizer, mlm=False),
        data, data,
    )  # fmt: skip
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)
    trainer.train()
    found = trainer.predict(data)
    assert found.predictions.shape == (2, len(ids), model.config.text_config.vocab_size)
    assert found.metrics["test_loss"] < expected


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_loaded_by_its_folder(family, tmp_path):
    model, tokenizer = FAMILIES[family].model(), TOKENIZERS[family]()
    model.save_pretrained(tmp_path / "model")
    assert "auto_map" not in (tmp_path / "model" / "config.json").read_text()
    arguments = SFTConfig(output_dir=str(tmp_path / "out"), max_steps=2, bf16=False, **COMMON)
    data = Dataset.from_list([{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in PAIRS])
    losses = []
    for each in (str(tmp_path / "model"), model):
        trainer = SFTTrainer(each, arguments, train_dataset=data, processing_class=tokenizer)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
