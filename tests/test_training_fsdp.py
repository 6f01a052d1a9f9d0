"""FSDP2 over two processes trains as one process does."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.utils import DistributedType
from training_data import settings
from training_runs import COMPARED, environment, logged, make_data, mix_settings, run, weights

from uniedit_hf.training.checks import check_sharding


LAUNCH = ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
LAUNCH += ["--fsdp_state_dict_type", "FULL_STATE_DICT", "--num_processes", "2", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


def run_sharded(options: dict) -> Path:
    config = Path(options["output_dir"] + ".yaml")
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump(options))
    script = str(Path(__file__).with_name("fsdp_on_cpu.py"))
    command = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH, script, "--config", str(config)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Trained with DistributedType.FSDP") == 2, "the weights were sharded"
    return Path(options["output_dir"])


def check_same(here: Path, there: Path):
    found, expected = logged(here), logged(there)
    assert len(found) == len(expected) == 8
    for step, (ours, wanted) in enumerate(zip(found, expected)):
        for name in COMPARED:
            assert ours.get(name) == pytest.approx(wanted.get(name), rel=1e-5), (step, name)
    trained, whole = weights(here), weights(there)
    assert trained.keys() == whole.keys()
    assert all((trained[name] - weight).abs().max() <= 1e-5 for name, weight in whole.items())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("family", "adapters"), [("bagel", False), ("bagel", True), ("janus", False)])
def test_sharded_weights_train_as_whole_ones(tmp_path, family, adapters):
    """Packs without images and with images of several sizes; in the middle the run resumes from a checkpoint."""
    make_data(tmp_path / "data")
    options = mix_settings(tmp_path / "data", family, max_steps=8, use_peft=adapters)
    whole = run(options | {"output_dir": str(tmp_path / "whole"), "per_device_train_batch_size": 8})
    options |= {"per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 4}
    sharded = run_sharded(options | {"output_dir": str(tmp_path / "sharded")})
    check_same(sharded, whole)
    shutil.copytree(sharded / "checkpoint-4", tmp_path / "again" / "checkpoint-4")
    options |= {"output_dir": str(tmp_path / "again"), "resume_from_checkpoint": "true"}
    check_same(run_sharded(options), whole)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ema_decay": 0.9}, "ema_decay is 0.9, but under FSDP no device has whole weights: leave it out."),
        ({"sample_steps": 2}, "sample_steps is 2, but under FSDP no device has whole weights to draw with"),
        ({"freeze_vit": False}, "freeze_vit=False does not go with FSDP"),
    ],
)
def test_what_does_not_go_with_sharded_weights_is_refused(tmp_path, monkeypatch, changes, sentence):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    args = settings(tmp_path, **changes)
    check_sharding(args)  # one process on a CPU, where accelerate leaves the weights whole
    monkeypatch.setattr(args.distributed_state, "distributed_type", DistributedType.MULTI_GPU)
    with pytest.raises(ValueError) as refused:
        check_sharding(args)
    assert sentence in str(refused.value)
