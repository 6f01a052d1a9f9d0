"""A run that was killed, torn or told to stop resumes to the same result, bit by bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from tiny_models import FAMILIES
from training_data import conversations, curve, edit_rows, settings, trainer
from training_runs import Running, logged, make_data, mix_settings, run, weights

from uniedit_hf.training import TrainingPart
from uniedit_hf.training.checkpoints import COMPLETE, last_whole_checkpoint, mark_complete, what_is_missing


# --- in this process ------------------------------------------------------------------------------------------------


def mix() -> list[TrainingPart]:
    args = settings("unused", text_loss_weight=1.0)
    return [
        TrainingPart(edit_rows(), args.make_recipe()),
        TrainingPart(conversations(), args.make_recipe("interleaved")),
    ]


def rows():
    return edit_rows(20)


def stream():
    return edit_rows(21).to_iterable_dataset(num_shards=3)


def lora(dropout: float) -> LoraConfig:
    return LoraConfig(r=2, lora_dropout=dropout, init_lora_weights=False)


VARIANTS = {
    "planned": (rows, {}, None),
    "planned, with an average": (rows, {"ema_decay": 0.9}, None),
    "a mix": (mix, {"text_loss_weight": 0.5, "gradient_accumulation_steps": 2}, None),
    "streamed": (stream, {"packing_window": 6}, None),
    "streamed by workers": (stream, {"dataloader_num_workers": 2, "ema_decay": 0.9}, None),
    "adapters with dropout": (rows, {"ema_decay": 0.9}, 0.2),
    "logs between checkpoints": (rows, {"logging_steps": 3, "save_steps": 4}, None),
}


def trained(folder: Path, variant: str, resume=None, family: str = "bagel", **changes):
    """The trainer of a variant after its run."""
    data, args, dropout = VARIANTS[variant]
    args = {"max_steps": 8, "save_strategy": "steps", "save_steps": 3} | args | changes
    this = trainer(folder, data(), peft_config=None if dropout is None else lora(dropout), family=family, **args)
    this.train(resume_from_checkpoint=resume)
    return this


def check_same(here, there):
    assert curve(here.state.log_history) == curve(there.state.log_history)
    for (name, weight), expected in zip(here.model.named_parameters(), there.model.parameters()):
        assert torch.equal(weight, expected), name
    if there.average is not None:
        for name, weight in there.average.shadow.items():
            assert torch.equal(here.average.shadow[name], weight), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_going_on_from_a_checkpoint_changes_nothing(tmp_path, variant, family):
    whole = trained(tmp_path / "whole", variant, family=family)
    first = sorted(path.name for path in (tmp_path / "whole").glob("checkpoint-*"))[0]
    shutil.copytree(tmp_path / "whole" / first, tmp_path / "again" / first)
    check_same(trained(tmp_path / "again", variant, resume=True, family=family), whole)


def test_a_finished_run_is_left_as_it_is(tmp_path):
    for variant in ("planned", "streamed"):
        whole = trained(tmp_path / variant, variant, save_steps=4)
        again = trained(tmp_path / variant, variant, save_steps=4, resume=True)
        assert again.state.global_step == 8
        check_same(again, whole)


def test_torn_checkpoints_are_passed_over(tmp_path):
    whole = trained(tmp_path, "planned, with an average", save_steps=2)
    tears = {
        "checkpoint-8": lambda folder: (folder / COMPLETE).unlink(),
        "checkpoint-6": lambda folder: (folder / "optimizer.pt").write_bytes(b"half"),
        "checkpoint-4": lambda folder: (folder / "ema" / "model.safetensors").unlink(),
    }
    reasons = ["complete.json is missing", "optimizer.pt has 4 bytes", "ema/model.safetensors is missing"]
    for tear, reason in zip(tears.items(), reasons):
        name, break_it = tear
        break_it(tmp_path / name)
        assert reason in what_is_missing(tmp_path / name)
    newest, torn = last_whole_checkpoint(tmp_path)
    assert newest == tmp_path / "checkpoint-2" and len(torn) == 3
    check_same(trained(tmp_path, "planned, with an average", save_steps=2, resume=True), whole)
    assert all(what_is_missing(tmp_path / name) is None for name in tears), "written afresh"


def test_a_stale_list_does_not_vouch_for_a_checkpoint_that_is_written_again(tmp_path, monkeypatch):
    trained(tmp_path, "planned", save_steps=4)
    assert what_is_missing(tmp_path / "checkpoint-4") is None

    class Killed(BaseException):
        pass

    def kill(*args):
        raise Killed

    monkeypatch.setattr("uniedit_hf.training.resuming.save_state", kill)
    with pytest.raises(Killed):
        trained(tmp_path, "planned", save_steps=4)
    assert "complete.json is missing" in what_is_missing(tmp_path / "checkpoint-4")
    assert what_is_missing(tmp_path / "checkpoint-8") is None


def test_the_list_of_files_is_written_whole(tmp_path):
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "file").write_text("abc")
    mark_complete(tmp_path)
    assert json.loads((tmp_path / COMPLETE).read_text()) == {"some/file": 3}
    assert not list(tmp_path.glob("*.tmp"))


def test_old_checkpoints_go_only_when_the_new_one_is_whole(tmp_path):
    trained(tmp_path, "planned", save_steps=2, save_total_limit=2)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-8"]
    assert last_whole_checkpoint(tmp_path) == (tmp_path / "checkpoint-8", [])


def test_without_a_checkpoint_the_run_begins(tmp_path):
    whole = trained(tmp_path / "whole", "planned")
    check_same(trained(tmp_path / "new", "planned", resume=True), whole)


def test_what_was_not_averaged_cannot_go_on_averaging(tmp_path):
    trained(tmp_path, "planned")
    with pytest.raises(OSError, match="was saved without an average; leave out ema_decay"):
        trained(tmp_path, "planned", ema_decay=0.9, resume=True)


# --- the real command -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    return folder


def streamed_settings(data: Path, **changes) -> dict:
    options = mix_settings(data, text_loss_weight=0.0, dataset_streaming=True, dataset_name=str(data / "edits"))
    del options["datasets"]
    return options | changes


COMMANDS = {
    "planned, with an average": lambda data: mix_settings(data, ema_decay=0.9),
    "planned, adapters": lambda data: mix_settings(data, use_peft=True, lora_dropout=0.1, ema_decay=0.9),
    "streamed, with an average": lambda data: streamed_settings(data, ema_decay=0.9, dataloader_num_workers=2),
    "streamed, adapters": lambda data: streamed_settings(data, use_peft=True, lora_dropout=0.1),
}


def check_same_folders(here: Path, there: Path):
    assert curve(logged(here)) == curve(logged(there))
    for folder in ("", "ema") if (there / "ema").is_dir() else ("",):
        found, expected = weights(here / folder), weights(there / folder)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def killed_and_gone_on(options: dict, kills: int, seed: int) -> list[Path | None]:
    """Kills a run at random moments, often while it saves, goes on each time, and in the end lets it finish. Returns
    what it resumed from.
    """
    draw = random.Random(seed)
    begun = []
    for _ in range(kills):
        begun.append(last_whole_checkpoint(options["output_dir"])[0])
        with Running(options | {"resume_from_checkpoint": "true"}) as process:
            process.wait_for_steps(draw.randint(1, 7))
            process.kill(signal.SIGKILL, after=draw.uniform(0, 0.2))
    run(options | {"resume_from_checkpoint": "true"})
    return begun


def test_a_killed_run_goes_on_to_the_same_result(data, tmp_path):
    """Killed once, and once told to stop, which saves and ends cleanly."""
    options = COMMANDS["streamed, with an average"](data)
    options |= {"save_strategy": "steps", "save_steps": 3, "max_steps": 20, "logging_steps": 1}
    whole = run(options | {"output_dir": str(tmp_path / "whole")})
    options |= {"output_dir": str(tmp_path / "killed"), "resume_from_checkpoint": "true"}
    with Running(options) as process:
        process.wait_for_steps(5)
        process.kill(signal.SIGKILL)
    with Running(options) as process:
        process.wait_for_steps(4)
        process.kill(signal.SIGTERM)  # to its readers, too
        assert process.wait() == 0
    newest, torn = last_whole_checkpoint(tmp_path / "killed")
    assert f"Stopped after step {newest.name.split('-')[1]} of 20" in process.output and not torn
    assert "Traceback" not in process.output and not (tmp_path / "killed" / "model.safetensors").exists()
    check_same_folders(run(options), whole)


def test_ctrl_c_saves_and_ends(data, tmp_path):
    options = mix_settings(data, max_steps=10_000, dataloader_num_workers=1, output_dir=str(tmp_path / "stopped"))
    with Running(options) as process:
        process.wait_for_steps(3)
        begun = time.monotonic()
        process.kill(signal.SIGINT)  # to its readers, too, as a terminal does
        assert process.wait() == 130
        assert time.monotonic() - begun < 60
    newest, torn = last_whole_checkpoint(tmp_path / "stopped")
    assert f"Stopped after step {newest.name.split('-')[1]} of 10000" in process.output and not torn
    assert process.output.rstrip().endswith("uniedit train: stopped by Ctrl-C") and "Traceback" not in process.output


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("variant", COMMANDS)
def test_ten_kills_change_nothing(data, tmp_path, variant):
    # long enough for ten runs of up to 7 steps and what a fast machine does until the signal comes
    options = COMMANDS[variant](data) | {"save_strategy": "steps", "save_steps": 2, "max_steps": 160}
    options["save_total_limit"] = 3
    whole = run(options | {"output_dir": str(tmp_path / "whole")})
    begun = killed_and_gone_on(options | {"output_dir": str(tmp_path / "killed")}, kills=10, seed=len(variant))
    assert begun[0] is None and len(set(begun)) >= 4, "it got on between the kills"
    check_same_folders(tmp_path / "killed", whole)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("variant", ["planned, with an average", "streamed, with an average"])
def test_two_processes_stop_together_and_go_on(data, tmp_path, variant):
    """One of them alone gets the signal; both finish the same step."""
    options = COMMANDS[variant](data) | {"max_steps": 24, "dataloader_num_workers": 2}
    whole = run(options | {"output_dir": str(tmp_path / "whole")}, processes=2)
    options |= {"output_dir": str(tmp_path / "stopped"), "resume_from_checkpoint": "true"}
    with Running(options, processes=2) as process:
        process.wait_for_steps(3)
        os.kill(process.ranks()[-1], signal.SIGTERM)
        assert process.wait() == 0, process.output
    assert "Stopped after step " in process.output
    newest, torn = last_whole_checkpoint(tmp_path / "stopped")
    assert not torn and {f"data_state_{rank}.json" for rank in (0, 1)} <= {path.name for path in newest.iterdir()}
    check_same_folders(run(options, processes=2), whole)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_planned_run_goes_on_with_other_processes(data, tmp_path):
    """Eight packs a step on one process, then on two."""
    options = mix_settings(data, save_strategy="steps", save_steps=10, per_device_train_batch_size=8)
    whole = run(options | {"output_dir": str(tmp_path / "whole")})
    shutil.copytree(whole / "checkpoint-10", tmp_path / "again" / "checkpoint-10")
    options |= {"output_dir": str(tmp_path / "again"), "resume_from_checkpoint": "true"}
    again = run(options | {"per_device_train_batch_size": 4}, processes=2)
    expected, found = logged(whole), logged(again)
    assert len(found) == len(expected) == 20
    for here, there in zip(found, expected):
        assert here["loss"] == pytest.approx(there["loss"], rel=1e-5)
