"""FSDP2 over several processes trains as one process does, and its checkpoints are read by any number of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.utils import DistributedType
from PIL import Image
from training_data import edit_rows, settings, trainer
from training_runs import COMPARED, environment, logged, make_data, mix_settings, run, weights

from uniedit_hf.training.checks import check_sharding
from uniedit_hf.training.sharded_state import consolidate, load_model, load_optimizer, save_sharded


LAUNCH = ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


def run_sharded(options: dict, processes: int = 2, kind: str = "FULL_STATE_DICT") -> Path:
    config = Path(options["output_dir"] + ".yaml")
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump(options))
    script = str(Path(__file__).with_name("fsdp_on_cpu.py"))
    launch = [*LAUNCH, "--num_processes", str(processes), "--fsdp_state_dict_type", kind]
    command = [sys.executable, "-m", "accelerate.commands.launch", *launch, script, "--config", str(config)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Trained with DistributedType.FSDP") == processes, "the weights were sharded"
    return Path(options["output_dir"])


def check_same(here: Path, there: Path):
    """The same curve to 1e-5, and the same weights and averages."""
    found, expected = logged(here), logged(there)
    assert len(found) == len(expected) == 8
    for step, (ours, wanted) in enumerate(zip(found, expected)):
        for name in [each for each in COMPARED if each in ours or each in wanted]:
            assert ours[name] == pytest.approx(wanted[name], rel=1e-5), (step, name)
    for folder in ("", "ema"):
        if (there / folder).is_dir():
            check_same_weights(here / folder, there / folder)


def check_same_weights(here: Path, there: Path):
    trained, whole = weights(here), weights(there)
    assert trained.keys() == whole.keys()
    assert all((trained[name] - weight).abs().max() <= 1e-5 for name, weight in whole.items())


def resumed(options: dict, saved: Path, folder: Path) -> dict:
    """Options to resume from the checkpoint in the middle of a run, in another folder."""
    shutil.copytree(saved / "checkpoint-4", folder / "checkpoint-4")
    return options | {"output_dir": str(folder), "resume_from_checkpoint": "true"}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("family", "adapters"), [("bagel", False), ("bagel", True), ("janus", False)])
def test_sharded_weights_train_as_whole_ones(tmp_path, family, adapters):
    """Packs without images and with images of several sizes, with an average of the weights; in the middle the run is
    resumed from a checkpoint."""
    make_data(tmp_path / "data")
    options = mix_settings(tmp_path / "data", family, max_steps=8, use_peft=adapters, ema_decay=0.8)
    whole = run(options | {"output_dir": str(tmp_path / "whole"), "per_device_train_batch_size": 8})
    options |= {"per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 4}
    sharded = run_sharded(options | {"output_dir": str(tmp_path / "sharded")})
    check_same(sharded, whole)
    check_same(run_sharded(resumed(options, sharded, tmp_path / "again")), whole)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_encoder_is_trained_and_samples_are_drawn(tmp_path):
    """The understanding encoder runs differently often on the two processes."""
    make_data(tmp_path / "data")
    part = {"name": str(tmp_path / "data" / "edits"), "test_split": "train"}
    # the biases of the encoder's keys have no gradient but rounding, which Adam would blow up to whole steps
    drawn = {"sample_steps": 4, "num_samples": 2, "sample_timesteps": 4, "text_loss_weight": 0, "adam_epsilon": 1e-6}
    options = mix_settings(tmp_path / "data", max_steps=8, freeze_vit=False, datasets={"edits": part}) | drawn
    whole = run(options | {"output_dir": str(tmp_path / "whole"), "per_device_train_batch_size": 4})
    sharded = run_sharded(options | {"output_dir": str(tmp_path / "sharded"), "per_device_train_batch_size": 2})
    check_same(sharded, whole)
    names = sorted(path.name for path in (whole / "samples").iterdir())
    assert names == sorted(path.name for path in (sharded / "samples").iterdir()) and len(names) == 4
    for name in names:
        ours, wanted = (np.asarray(Image.open(folder / "samples" / name), int) for folder in (sharded, whole))
        assert np.abs(ours - wanted).max() <= 1


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_shares_of_two_processes_are_read_by_one_and_by_three(tmp_path):
    """Six packs a step on one, two and three processes; what two saved becomes one model."""
    make_data(tmp_path / "data")
    options = mix_settings(tmp_path / "data", max_steps=8, ema_decay=0.8)
    whole = run(options | {"output_dir": str(tmp_path / "whole"), "per_device_train_batch_size": 6})
    saving = options | {"per_device_train_batch_size": 3, "save_strategy": "steps", "save_steps": 4}
    two = run_sharded(saving | {"output_dir": str(tmp_path / "two")}, kind="SHARDED_STATE_DICT")
    check_same(two, whole)
    assert not list((two / "checkpoint-4").glob("*.safetensors")), "nothing was gathered"
    one = resumed(options | {"per_device_train_batch_size": 6}, two, tmp_path / "one")
    check_same(run(one), whole)
    three = resumed(options | {"per_device_train_batch_size": 2}, two, tmp_path / "three")
    check_same(run_sharded(three, processes=3), whole)
    consolidate(two / "checkpoint-8", tmp_path / "merged")
    check_same_weights(tmp_path / "merged", two)
    check_same_weights(tmp_path / "merged" / "ema", two / "ema")


def small_checkpoint(folder: Path):
    """Shares of one process that took a step."""
    run = trainer(folder / "run", edit_rows(8), max_steps=1)
    run.train()
    run.processing_class.save_pretrained(folder)
    run.model.config.save_pretrained(folder)
    save_sharded(folder, run.model, run._plain_optimizer, None)
    return run


def test_states_come_back_as_they_were(tmp_path):
    saved = small_checkpoint(tmp_path)
    fresh = trainer(tmp_path / "fresh", edit_rows(8), max_steps=1, seed=7)
    fresh.create_optimizer()
    load_model(tmp_path, fresh.model)
    load_optimizer(tmp_path, fresh.model, fresh.optimizer)
    for (name, ours), (_, wanted) in zip(fresh.model.named_parameters(), saved.model.named_parameters()):
        assert torch.equal(ours, wanted), name
        if ours.requires_grad:
            found, expected = fresh.optimizer.state[ours], saved._plain_optimizer.state[wanted]
            assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


def test_what_shares_cannot_be_read_into_is_refused(tmp_path):
    saved = small_checkpoint(tmp_path)
    other = trainer(tmp_path / "other", edit_rows(8), max_steps=1, freeze_vit=False)
    other.create_optimizer()
    for parameter in other.model.parameters():
        if parameter.requires_grad:
            other.optimizer.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
    with pytest.raises(ValueError, match="holds no optimizer tensor 'model.vit_model.*trained something else"):
        load_optimizer(tmp_path, other.model, other.optimizer)
    (shares,) = (tmp_path / "sharded").glob("*.safetensors")
    shares.unlink()
    with pytest.raises(ValueError, match="one of its files is missing"):
        load_model(tmp_path, saved.model)
    with pytest.raises(ValueError, match="is not a sharded checkpoint"):
        consolidate(tmp_path / "run", tmp_path / "merged")


def test_what_does_not_go_with_sharded_weights_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    args = settings(tmp_path, optim="adamw_torch_8bit", save_strategy="steps")
    check_sharding(args)  # one process on a CPU, where accelerate leaves the weights whole
    monkeypatch.setattr(args.distributed_state, "distributed_type", DistributedType.MULTI_GPU)
    with pytest.raises(ValueError, match="optim='adamw_torch_8bit' keeps quantized states"):
        check_sharding(args)


def test_a_checkpoint_of_full_weights_is_not_resumed_under_fsdp(tmp_path):
    trainer(tmp_path, edit_rows(8), max_steps=2, save_strategy="steps", save_steps=1).train()
    sharded = trainer(tmp_path, edit_rows(8), max_steps=2)
    sharded.is_fsdp_enabled = True
    for wanted in (True, str(tmp_path / "checkpoint-1")):
        with pytest.raises(ValueError, match="under FSDP: its weights and optimizer states are not sharded.* Resume"):
            sharded.train(resume_from_checkpoint=wanted)
