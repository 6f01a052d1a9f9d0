"""The command `uniedit grpo` in processes of its own: one against two, killed against whole."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from training_data import curve
from training_runs import Running, logged, make_data, run, weights


# What is drawn, with the reward that is given.
WAYS = {
    "bagel nft": ("bagel", {"generation_kwargs": {"num_timesteps": 3}}),
    "bagel cps": ("bagel", {"objective": "grpo", "generation_kwargs": {"num_timesteps": 4, "sde_window": [0, 2]}}),
    "janus tokens": ("janus", {}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    return folder


def options(data: Path, folder: Path, way: str, **changes) -> dict:
    family, settings = WAYS[way]
    return {
        "model_name_or_path": str(data / family), "dataset_name": str(data / "edits"), "output_dir": str(folder),
        "reward_funcs": ["grpo_rewards.central_redness"], "scale_rewards": "batch", "max_steps": 6,
        "learning_rate": 1e-3, "warmup_steps": 0, "num_generations": 2, "generation_batch_size": 8,
        "steps_per_generation": 2,
        "max_tokens_per_pack": 4000, "logging_steps": 1, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True,
        "report_to": "none", "beta": 0.1,
        "adam_epsilon": 1e-6,  # else Adam blows up the rounding of gradients near zero to whole steps
    } | settings | changes  # fmt: skip


def check_same(here: Path, there: Path, tolerance: float) -> None:
    for ours, theirs in zip(curve(logged(here)), curve(logged(there)), strict=True):
        for name in {"loss", "reward", "grad_norm", "kl"} & theirs.keys():
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), (ours["step"], name)
    assert any(log["loss"] for log in logged(there)), "something is learned"
    trained, wanted = weights(here), weights(there)
    for name, weight in wanted.items():
        assert (trained[name] - weight).abs().max() <= tolerance, name


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_learn_what_one_does(data, tmp_path, way):
    one = run(options(data, tmp_path / "one", way))
    two = run(options(data, tmp_path / "two", way), processes=2)
    check_same(two, one, 1e-5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_run_resumes_to_the_same_weights(data, tmp_path):
    saved = {"save_strategy": "steps", "save_steps": 2}
    whole = run(options(data, tmp_path / "whole", "bagel nft", **saved))
    settings = options(data, tmp_path / "killed", "bagel nft", **saved, resume_from_checkpoint="true")
    with Running(settings) as process:
        process.wait_for_steps(3)
        process.kill(signal.SIGKILL)
    run(settings)
    assert all(torch.equal(ours, weights(whole)[name]) for name, ours in weights(tmp_path / "killed").items())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_is_told_to_stop_ends_with_its_generation_batch(data, tmp_path):
    settings = options(data, tmp_path / "out", "bagel nft", save_strategy="steps", save_steps=2, max_steps=40)
    with Running(settings) as process:
        process.wait_for_steps(1)
        process.kill(signal.SIGTERM)
        assert process.wait() == 0
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
    assert int(checkpoint.name.split("-")[1]) % 2 == 0
