"""Numbers and places of all commands: what makes no sense is refused in a sentence before anything is made."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given, strategies as st

from uniedit_hf.cli import COMMANDS, main
from uniedit_hf.cli.option_types import Bounds, check_writable


# What a command needs besides the option that is tried; a file is never read, since numbers come first.
NEEDED = {
    "edit": ["--model", "m", "--image", "i.png", "--instruction", "x", "--output", "o.png"],
    "ask": ["--model", "m", "--image", "i.png", "--question", "x"],
    "generate": ["--model", "m", "--prompt", "x", "--output", "o.png"],
    "synthesize": ["--config", "run.yaml"],
    "dataset build": ["--source", "raw", "--output_dir", "out"],
    "dataset tokens": ["--dataset_name", "d", "--model_name_or_path", "m", "--output_dir", "out"],
    "dataset latents": ["--dataset_name", "d", "--model_name_or_path", "m", "--output_dir", "out"],
    "dataset validate": ["--input_dir", "in"],
    "train": ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "out"],
    "grpo": [
        "--model_name_or_path",
        "m",
        "--dataset_name",
        "d",
        "--output_dir",
        "out",
        "--reward_funcs",
        "preservation",
    ],
    "evaluate": ["--suite", "small_world", "--model", "m", "--output_dir", "out"],
    "serve": ["--model", "m"],
    "convert": ["--input_dir", "in", "--output_dir", "out", "--to", "official"],
}
# Options of transformers that it checks in its own words, or that are for parts of it which have no use here.
INHERITED = {
    "ddp_bucket_cap_mb", "ddp_timeout", "dataloader_prefetch_factor", "label_smoothing_factor", "local_rank",
    "neftune_noise_alpha", "torch_empty_cache_steps", "warmup_steps",
}  # fmt: skip


def options_of(command: str) -> Iterator[tuple[str, Any]]:
    run = import_module(f"uniedit_hf.cli.{command.replace(' ', '_')}").run
    kinds = get_type_hints(run)
    kinds.pop("return", None)
    for kind in kinds.values():
        hints = get_type_hints(kind)
        for each in fields(kind):
            yield each.name, {hints[each.name], *get_args(hints[each.name])}


def numbers() -> list[tuple[str, str]]:
    found, of_train = [], {name for name, _ in options_of("train")}
    for command in COMMANDS:
        for name, kinds in options_of(command):
            if command == "grpo" and (name in of_train or int not in kinds):
                continue  # looked at with train; rates may be negative
            inner = {part for kind in kinds for part in get_args(kind)}
            if (kinds | inner) & {int, float} and bool not in kinds and name not in INHERITED:
                found.append((command, name))
    return found


def test_every_command_is_looked_at():
    assert set(COMMANDS) - {command for command, _ in numbers()} == {
        "dataset validate",
        "dataset publish",
        "doctor",
        "convert",
    }


@pytest.mark.parametrize(("command", "name"), numbers())
def test_a_negative_number_is_refused_before_anything_is_made(command, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(
        "output_dir: out\nsource: {kind: easy_vqa}\ninstruct: {backend: a}\nedit: {backend: b}\n"
    )
    given = [*NEEDED.get(command, []), f"--{name}", *["-3"] * (2 if name == "size" else 1)]
    assert main([*command.split(), *given]) == 1
    out, message = capsys.readouterr()
    assert out == "" and message.count("\n") == 1
    assert name in message and "-3" in message and re.search(r"use |choose |expected", message, re.IGNORECASE)
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


# Option of the place, and what else the command needs.
PLACES = {
    "quickstart": ("--output_dir", []),
    "edit": ("--output", ["--model", "m", "--image", "i.png", "--instruction", "x"]),
    "ask": ("--output", ["--model", "m", "--image", "i.png", "--question", "x"]),
    "generate": ("--output", ["--model", "m", "--prompt", "x"]),
    "synthesize": ("--output_dir", ["--config", "run.yaml"]),
    "dataset build": ("--output_dir", ["--source", "raw"]),
    "dataset tokens": ("--output_dir", ["--dataset_name", "d", "--model_name_or_path", "m"]),
    "dataset latents": ("--output_dir", ["--dataset_name", "d", "--model_name_or_path", "m"]),
    "dataset validate": ("--report", ["--input_dir", "in"]),
    "train": ("--output_dir", ["--model_name_or_path", "m", "--dataset_name", "d"]),
    "evaluate": ("--output_dir", ["--suite", "small_world", "--model", "m"]),
    "convert": ("--output_dir", ["--input_dir", "in", "--to", "official"]),
}


@pytest.mark.parametrize("command", PLACES)
def test_a_place_that_cannot_be_written_is_refused_first(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "run.yaml").write_text("source: {kind: easy_vqa}\ninstruct: {backend: a}\nedit: {backend: b}\n")
    option, given = PLACES[command]
    for place in ("file/below/out.png", "/proc/nowhere/out.png"):
        assert main([*command.split(), *given, option, place]) == 1
        out, message = capsys.readouterr()
        assert out == "" and message.count("\n") == 1 and f"{option.removeprefix('--')} {place}: " in message
        assert "is not a folder" in message or "cannot be written" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "run.yaml"]


def test_a_place_that_can_be_written_is_left_as_it_is(tmp_path):
    check_writable(tmp_path / "new" / "deep", "output_dir")
    assert list(tmp_path.iterdir()) == []


@given(st.integers(-5, 5), st.none() | st.integers(-5, 5), st.booleans(), st.integers(-9, 9))
def test_bounds_allow_what_they_say(least, most, above, number):
    allowed = (number > least if above else number >= least) and (most is None or number <= most)
    if allowed:
        Bounds(least, most, above).check("steps", number)
    else:
        with pytest.raises(ValueError, match=f"steps is {number}: use "):
            Bounds(least, most, above).check("steps", number)
