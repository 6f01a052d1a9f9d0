"""One run in one folder, counts that make sense, and rows from files, through `uniedit train`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from filelock import FileLock
from safetensors.torch import load_file
from training_data import edit_rows, save_checkpoint, save_parquet, settings
from transformers import TrainerCallback

from uniedit_hf import UniEditTrainer, cli
from uniedit_hf.hub import load_split
from uniedit_hf.images import open_image
from uniedit_hf.training.output_folder import LOCK


COLUMNS = ("id", "source_image", "instruction", "target_image")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    save_checkpoint(folder / "model")
    save_parquet(edit_rows(8), folder / "edits")
    return folder


@pytest.fixture
def flags(data, tmp_path):
    common = [
        "train",
        "--model_name_or_path",
        str(data / "model"),
        "--use_cpu",
        "true",
        "--max_tokens_per_pack",
        "120",
    ]
    common += ["--dataloader_num_workers", "0", "--report_to", "none", "--disable_tqdm", "true", "--dtype", "float32"]
    return [*common, "--dataset_name", str(data / "edits"), "--output_dir", str(tmp_path / "out"), "--save_steps", "2"]


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_a_finished_run_is_not_trained_again(flags, tmp_path, capsys):
    assert cli.main([*flags, "--max_steps", "4"]) == 0
    before, card = weights(tmp_path / "out"), (tmp_path / "out" / "README.md").read_text()
    again = [*flags, "--resume_from_checkpoint", "true", "--learning_rate", "0.5"]
    assert cli.main([*again, "--max_steps", "4"]) == 0
    assert "0 new steps: the run in" in capsys.readouterr().out
    assert (tmp_path / "out" / "README.md").read_text() == card
    after = weights(tmp_path / "out")
    assert all((before[name] == after[name]).all() for name in before)


def test_a_changed_rate_is_told_and_the_card_says_what_was_trained(flags, tmp_path, capsys, caplog):
    assert cli.main([*flags, "--max_steps", "2", "--learning_rate", "0.001"]) == 0
    capsys.readouterr()
    again = [*flags, "--resume_from_checkpoint", "true", "--learning_rate", "0.5", "--max_steps", "4"]
    done = subprocess.run([sys.executable, "-m", "uniedit_hf.cli", *again], capture_output=True, text=True)
    assert done.returncode == 0 and "Trained 4 steps (2 new ones)" in done.stdout
    assert "learning_rate is 0.5, but" in done.stderr and "continues with the 0.001" in done.stderr
    card = (tmp_path / "out" / "README.md").read_text()
    assert "0.001" in card and "0.5" not in card.split("learning_rate", 1)[1][:40]


def test_weights_alone_begin_the_optimizer_anew_and_say_so(flags):
    assert cli.main([*flags, "--max_steps", "2", "--save_only_model", "true"]) == 0
    again = [*flags, "--max_steps", "4", "--resume_from_checkpoint", "true", "--save_only_model", "true"]
    done = subprocess.run([sys.executable, "-m", "uniedit_hf.cli", *again], capture_output=True, text=True)
    assert done.returncode == 0 and "contains no optimizer states (save_only_model)" in done.stderr


def test_a_new_run_does_not_mix_with_an_earlier_one(flags, tmp_path, capsys):
    assert cli.main([*flags, "--max_steps", "2"]) == 0
    assert cli.main([*flags, "--max_steps", "2", "--use_peft", "true"]) == 1
    message = capsys.readouterr().err
    assert "holds checkpoint-2 of an earlier run: resume it with" in message
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()
    shutil.rmtree(tmp_path / "out" / "checkpoint-2")
    assert cli.main([*flags, "--max_steps", "2"]) == 1
    assert "holds model.safetensors of an earlier run" in capsys.readouterr().err


def test_two_runs_do_not_share_a_folder(flags, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / LOCK):
        assert cli.main([*flags, "--max_steps", "2"]) == 1
    assert "Another run is writing to" in capsys.readouterr().err
    assert cli.main([*flags, "--max_steps", "2"]) == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["--max_steps", "0"], "max_steps is 0: use 1 or more"),
        (["--num_train_epochs", "0"], "num_train_epochs is 0.0: use a number above 0"),
        (["--num_train_epochs", "-1"], "num_train_epochs is -1.0: use a number above 0"),
        (["--per_device_train_batch_size", "0"], "per_device_train_batch_size is 0: use 1 or more"),
        (["--gradient_accumulation_steps", "0"], "gradient_accumulation_steps is 0: use 1 or more"),
    ],
)
def test_counts_are_checked_before_anything_is_made(flags, tmp_path, capsys, changes, sentence):
    assert cli.main([*flags, *changes]) == 1
    assert sentence in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_missing_folder_is_asked_for(flags, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    place = flags.index("--output_dir")
    assert cli.main([*flags[:place], *flags[place + 2 :]]) == 1
    assert "output_dir is missing" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["output_dir", "max_steps", "seed", "save_steps", "push_to_hub"])
def test_the_help_shows_what_everybody_needs(option, capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    assert f"--{option} " in capsys.readouterr().out


# ---- rows from files


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same rows as JSON Lines and CSV, with images beside them, and as Parquet."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "images").mkdir()
    rows = edit_rows(6)
    plain = []
    for number, row in enumerate(rows):
        names = {side: f"images/{number}-{side}.png" for side in ("source_image", "target_image")}
        for side, name in names.items():
            row[side].save(folder / name)
        plain.append({"id": row["id"], "instruction": row["instruction"], **names})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain))
    lines = [",".join(plain[0]), *(",".join(row.values()) for row in plain)]
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    rows.to_parquet(folder / "rows.parquet")
    return folder


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
def test_files_of_rows_load(files, name, streaming, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # image paths are relative to the file
    rows = load_split(str(files / name), streaming=streaming)
    expected = edit_rows(6)
    for row, wanted in zip(rows, expected, strict=True):
        assert row["id"] == wanted["id"] and row["instruction"] == wanted["instruction"]
        assert open_image(row["source_image"]).tobytes() == wanted["source_image"].tobytes()


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_files_of_rows_train(files, flags, name, capsys):
    place = flags.index("--dataset_name")
    assert cli.main([*flags[: place + 1], str(files / name), *flags[place + 2 :], "--max_steps", "1"]) == 0
    assert "Trained 1 steps" in capsys.readouterr().out


@pytest.mark.parametrize("streaming", [False, True])
def test_numbers_as_ids_are_text(files, tmp_path, streaming):
    header, *lines = (files / "rows.csv").read_text().splitlines()
    numbered = [",".join([str(number), *line.split(",")[1:]]) for number, line in enumerate(lines)]
    (files / "numbered.csv").write_text("\n".join([header, *numbered]) + "\n")
    rows = load_split(str(files / "numbered.csv"), streaming=streaming)
    assert [row["id"] for row in rows] == ["0", "1", "2", "3", "4", "5"]


@pytest.mark.parametrize("name", ["../nope", "/nowhere/at/all", "./rows", "missing.jsonl", "~/missing.csv"])
def test_a_path_that_is_not_there_is_told_as_a_path(flags, name, capsys):
    place = flags.index("--dataset_name")
    assert cli.main([*flags[: place + 1], name, *flags[place + 2 :], "--max_steps", "1"]) == 1
    assert f"There is no file or folder {name}" in capsys.readouterr().err


def test_a_shard_with_one_more_column_streams(flags, tmp_path, capsys):
    rows = edit_rows(8)
    (tmp_path / "shards").mkdir()
    rows.select(range(4)).to_parquet(tmp_path / "shards" / "train-0.parquet")
    more = rows.select(range(4, 8)).add_column("note", ["new"] * 4)
    more.to_parquet(tmp_path / "shards" / "train-1.parquet")
    place = flags.index("--dataset_name")
    command = [*flags[: place + 1], str(tmp_path / "shards"), *flags[place + 2 :]]
    command += ["--dataset_streaming", "true", "--max_steps", "8", "--gradient_accumulation_steps", "1"]
    assert cli.main(command) == 0
    assert "Trained 8 steps" in capsys.readouterr().out
    seen = load_split(str(tmp_path / "shards"), streaming=True, columns=["id", "instruction"])
    assert [sorted(row) for row in seen] == [["id", "instruction"]] * 8


def test_the_checkpoint_of_a_stopped_run_stays(data, tmp_path):
    """With a limit of one and a better checkpoint before it, `Trainer` would delete it at the end of training."""

    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    options = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "save_total_limit": 1, "max_steps": 9}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "learning_rate": 0.5}
    args = settings(tmp_path / "out", save_strategy="steps", lr_scheduler_type="constant", **options)
    run = UniEditTrainer(str(data / "model"), args, edit_rows(8), eval_dataset=edit_rows(4), callbacks=[Stop()])
    run.train()
    last = tmp_path / "out" / f"checkpoint-{run.state.global_step}"
    assert run.state.global_step == 5 and last.is_dir()
    assert run.state.best_model_checkpoint != str(last), "the rate makes the model worse"
    resumed = settings(tmp_path / "out", save_strategy="no", lr_scheduler_type="constant", max_steps=6)
    again = UniEditTrainer(str(data / "model"), resumed, edit_rows(8))
    again.train(resume_from_checkpoint=True)
    assert again.first_step == 5 and again.state.global_step == 6
