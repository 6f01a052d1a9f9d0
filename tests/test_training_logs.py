"""What a run shows while it goes: figures, evaluation, drawings, epochs, what stops it; and the card at its end."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig
from PIL import Image
from tiny_models import tiny_bagel_processor
from training_data import conversations, curve, edit_rows, settings, trainer
from transformers import TrainerCallback

from uniedit_hf import UniEditPipeline
from uniedit_hf.models.bagel import BagelForConditionalGeneration
from uniedit_hf.training import TrainingPart
from uniedit_hf.training.trainer import NotFiniteError


def steps(run) -> list[dict]:
    return [log for log in run.state.log_history if "loss" in log]


def test_figures_of_the_steps(tmp_path):
    args = settings(tmp_path, text_loss_weight=0.5)
    parts = [TrainingPart(edit_rows(), args.make_recipe()), TrainingPart(edit_rows(), args.make_recipe("answer"))]
    run = trainer(tmp_path, parts, text_loss_weight=0.5, max_steps=6, logging_steps=2, per_device_train_batch_size=3)
    run.train()
    for number, log in enumerate(steps(run)):
        packs = run.data.plan.tokens[6 * number : 6 * number + 6]
        assert log["step"] == 2 * number + 2
        assert log["pack_fill"] == pytest.approx(sum(packs) / (6 * 120), abs=1e-4)
        assert log["epoch"] == pytest.approx(run.data.plan.epoch_after(6 * number + 6))
        for name in ("tokens_per_second", "samples_per_second", "grad_norm"):
            assert log[name] > 0
        assert log["quarantined_rows"] == 0 and log["data_wait_seconds"] >= 0
        assert math.isfinite(log["image_loss"]) and math.isfinite(log["text_loss"])
        assert log["learning_rate"] == 1e-3


@pytest.mark.parametrize("bar", [True, False])
def test_logs_are_numbers_in_every_reporter(tmp_path, capsys, bar):
    run = trainer(tmp_path, edit_rows(), max_steps=2, disable_tqdm=not bar)
    run.train()
    assert all(isinstance(value, int | float) for log in run.state.log_history for value in log.values())
    shown = [ast.literal_eval(found) for found in re.findall(r"\{'loss.*?\}", capsys.readouterr().out)]
    assert len(shown) == 2
    for printed, logged in zip(shown, steps(run)):
        assert printed.keys() == logged.keys() - {"step"}
        assert all(isinstance(value, int | float) for value in printed.values())
        assert printed["image_loss"] == pytest.approx(logged["image_loss"], rel=1e-3)
        assert printed["loss"] == printed["image_loss"], "of a single step"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("family", ["bagel", "janus"])
def test_our_own_calls_bring_no_future_warning(tmp_path, family):
    """A LoRA run, its checkpoint and its evaluation, as a process that ends at the first one."""
    code = (
        "import warnings, sys; sys.path.insert(0, sys.argv[1]); from training_data import edit_rows, trainer; "
        "from peft import LoraConfig; warnings.simplefilter('error', FutureWarning); "
        "given = {'eval_dataset': edit_rows(2), 'peft_config': LoraConfig(r=2), 'family': sys.argv[3]}; "
        "run = trainer(sys.argv[2], edit_rows(), max_steps=1, **given); "
        "run.train(); run.evaluate(); run.save_model()"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path), family]
    done = subprocess.run(command, capture_output=True, text=True, timeout=350)
    assert done.returncode == 0, done.stderr


def test_the_loss_is_the_weighted_sum_of_its_parts(tmp_path):
    run = trainer(
        tmp_path, conversations(), recipe="interleaved", text_loss_weight=0.25, image_loss_weight=2.0, max_steps=3
    )
    run.train()
    for log in steps(run):
        assert log["loss"] == pytest.approx(0.25 * log["text_loss"] + 2.0 * log["image_loss"], rel=1e-6)


def test_evaluation_and_drawings_change_nothing(tmp_path):
    plain = trainer(tmp_path / "plain", edit_rows(), max_steps=5, activation_checkpointing=True)
    plain.train()
    watched = trainer(
        tmp_path / "watched",
        edit_rows(),
        eval_dataset={"edits": edit_rows(6), "talks": talks_part()},
        eval_strategy="steps",
        eval_steps=2,
        sample_steps=2,
        num_samples=2,
        sample_timesteps=3,
        max_steps=5,
        activation_checkpointing=True,
    )
    watched.train()
    assert curve(watched.state.log_history) == curve(plain.state.log_history)
    for expected, found in zip(plain.model.parameters(), watched.model.parameters()):
        assert torch.equal(expected, found)
    assert watched.model.is_activation_checkpointing
    drawn = sorted(path.name for path in (tmp_path / "watched" / "samples").iterdir())
    assert drawn == [f"step-{step}-row-{row}.png" for step in (2, 4) for row in (0, 1)]
    sizes = [Image.open(tmp_path / "watched" / "samples" / name).size for name in drawn]
    assert sizes == [(32, 32), (48, 32)] * 2, "each as large as its source"


def talks_part() -> TrainingPart:
    return TrainingPart(conversations(3), settings("unused").make_recipe("interleaved"))


def test_evaluation_losses_are_means_over_all_tokens(tmp_path):
    run = trainer(tmp_path, None, eval_dataset={"talks": talks_part(), "edits": edit_rows(7)}, text_loss_weight=0.0)
    metrics, again = run.evaluate(), run.evaluate()
    assert all(again[name] == value for name, value in metrics.items() if name.endswith("loss"))
    assert "eval_talks_text_loss" in metrics and "eval_edits_text_loss" not in metrics
    assert metrics["eval_edits_loss"] == metrics["eval_edits_image_loss"] > 0
    one_by_one = trainer(tmp_path, None, eval_dataset=edit_rows(7), max_tokens_per_pack=60).evaluate()
    assert one_by_one["eval_loss"] == pytest.approx(metrics["eval_edits_loss"], rel=1e-5)
    in_batches = trainer(tmp_path, None, eval_dataset=edit_rows(7), per_device_eval_batch_size=3).evaluate()
    assert in_batches["eval_loss"] == pytest.approx(metrics["eval_edits_loss"], rel=1e-5)


def test_drawings_of_prompts_and_by_adapters(tmp_path):
    common = {"eval_dataset": edit_rows(2), "sample_steps": 1, "sample_timesteps": 2, "max_steps": 1}
    trainer(tmp_path / "prompts", edit_rows(), recipe="generate", **common).train()
    trainer(tmp_path / "adapters", edit_rows(), peft_config=LoraConfig(r=2), **common).train()
    for name in ("prompts", "adapters"):
        drawn = [Image.open(path) for path in (tmp_path / name / "samples").glob("step-1-row-*.png")]
        assert len(drawn) == 2 and all(min(image.size) >= 32 and image.mode == "RGB" for image in drawn)


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path):
    run = trainer(
        tmp_path,
        edit_rows(),
        eval_dataset=edit_rows(6),
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=2,
        save_steps=2,
        max_steps=6,
        load_best_model_at_end=True,
        metric_for_best_model="eval_image_loss",
        greater_is_better=True,  # the worst one, so that it is not the last
    )
    run.train()
    assert run.state.best_model_checkpoint.endswith("checkpoint-2")
    best = BagelForConditionalGeneration.from_pretrained(tmp_path / "checkpoint-2")
    for expected, found in zip(best.parameters(), run.model.parameters()):
        assert torch.equal(expected, found)


def test_what_is_asked_for_at_the_end_of_epochs(tmp_path):
    run = trainer(
        tmp_path,
        edit_rows(12),
        eval_dataset=edit_rows(6),
        max_steps=-1,
        num_train_epochs=3,
        logging_strategy="epoch",
        eval_strategy="epoch",
        save_strategy="epoch",
    )
    run.train()
    ends = run.data.plan.epoch_ends
    assert [log["step"] for log in steps(run)] == ends and [log["epoch"] for log in steps(run)] == [1, 2, 3]
    assert [log["step"] for log in run.state.log_history if "eval_loss" in log] == ends
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == sorted(f"checkpoint-{end}" for end in ends)


class Poison(TrainerCallback):
    """Spoils a weight after two steps."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 2:
            model.model.llm2vae.bias.data[0] = float("nan")


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    run = trainer(tmp_path, edit_rows(), gradient_accumulation_steps=2)
    run.add_callback(Poison())
    with pytest.raises(NotFiniteError) as stopped:
        run.train()
    pack = run.data.plan.packs[4]
    ids = ", ".join(run.data.plan.ids[0][row.row] for row in pack)
    assert f"Stopped in step 3: the loss is nan, at pack 4 of the plan with the rows {ids}." in str(stopped.value)


def test_a_gradient_that_is_no_number_stops_the_run(tmp_path):
    run = trainer(tmp_path, edit_rows(), gradient_accumulation_steps=2, activation_checkpointing=False)
    run.model.model.vae2llm.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NotFiniteError) as stopped:
        run.train()
    message = str(stopped.value)
    assert message.startswith("Stopped in step 1: the gradient norm is ")
    assert "at pack 0 of the plan with the rows row-" in message and "; pack 1 of the plan" in message


def test_the_average_follows_the_weights(tmp_path):
    run = trainer(tmp_path, edit_rows(), ema_decay=0.5, max_steps=1, warmup_steps=0)
    before = {name: weight.detach().clone() for name, weight in run.model.named_parameters() if weight.requires_grad}
    run.train()
    assert run.average.shadow.keys() == before.keys()
    for name, weight in run.model.named_parameters():
        if name in before:
            assert torch.allclose(run.average.shadow[name], (before[name] + weight) / 2, atol=1e-7), name
    run.save_model()
    averaged = BagelForConditionalGeneration.from_pretrained(tmp_path, subfolder="ema")
    for name, weight in averaged.named_parameters():
        expected = run.average.shadow.get(name, dict(run.model.named_parameters())[name])
        assert torch.equal(weight, expected), name
    UniEditPipeline.from_pretrained(tmp_path, subfolder="ema")


def test_the_sizes_of_training_are_not_saved(tmp_path):
    run = trainer(tmp_path, edit_rows(), vit_longest_edge=56, max_steps=1)
    assert run.reader.processor.image_processor.vit_size["longest_edge"] == 56
    run.save_model()
    stored = json.loads((tmp_path / "processor_config.json").read_text())
    assert stored["image_processor"]["vit_size"]["longest_edge"] == 84
    assert tiny_bagel_processor().image_processor.vit_size["longest_edge"] == 84


def test_tensorboard_gets_every_figure(tmp_path, monkeypatch):
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="reads the logs with tensorboard"
    )
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    trainer(tmp_path, edit_rows(), report_to="tensorboard", eval_dataset=edit_rows(4), eval_strategy="steps").train()
    events = reader.EventAccumulator(str(next((tmp_path / "board").rglob("events*")).parent)).Reload()
    tags = set(events.Tags()["scalars"])
    assert {f"train/{name}" for name in ("loss", "image_loss", "tokens_per_second", "pack_fill", "grad_norm")} <= tags
    assert len(events.Scalars("train/image_loss")) == 4


@pytest.mark.slow  # it waits for its own server
def test_trackio_gets_every_figure(tmp_path):
    pytest.importorskip("trackio", reason="logs to trackio")
    code = """
import sys
from pathlib import Path
from training_data import edit_rows, trainer
options = {"report_to": "trackio", "project": "uniedit", "run_name": "one", "eval_strategy": "steps"}
trainer(Path(sys.argv[1]), edit_rows(), eval_dataset=edit_rows(4), **options).train()
"""
    root = Path(__file__).parents[1]
    path = os.pathsep.join([str(root), str(root / "tests"), os.environ.get("PYTHONPATH", "")])
    surroundings = os.environ | {"PYTHONPATH": path, "TRACKIO_DIR": str(tmp_path / "board")}
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(tmp_path / "board" / "uniedit.db") as board:
        logs = [json.loads(metrics) for (metrics,) in board.execute("SELECT metrics FROM metrics ORDER BY id")]
    steps = [log for log in logs if "train/loss" in log]
    assert [log["train/global_step"] for log in steps] == [1, 2, 3, 4]
    names = ("image_loss", "grad_norm", "learning_rate", "tokens_per_second", "samples_per_second", "pack_fill")
    assert all(f"train/{name}" in log for log in steps for name in names)
    assert sum("eval/image_loss" in log for log in logs) == 4


def test_the_card_says_what_was_done(tmp_path):
    run = trainer(tmp_path / "my-edits", edit_rows(), max_steps=2, text_dropout=0.2)
    run.model.config._name_or_path = "ByteDance-Seed/BAGEL-7B-MoT"
    run.train()
    run.create_model_card(dataset_name="Uni-Edit/uniedit-148k", tags="mine", license="apache-2.0")
    card = ModelCard.load(tmp_path / "my-edits" / "README.md")
    assert card.data.base_model == "ByteDance-Seed/BAGEL-7B-MoT" and card.data.license == "apache-2.0"
    assert card.data.datasets == ["Uni-Edit/uniedit-148k"]
    assert {"uniedit_hf", "mine", "generated_from_trainer"} <= set(card.data.tags)
    assert "| text_dropout | 0.2 |" in card.text and "| steps | 2 |" in card.text
    assert "UniEditPipeline.from_pretrained" in card.text and "2605.21487" in card.text
