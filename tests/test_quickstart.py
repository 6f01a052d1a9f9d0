"""The quickstart from end to end, with few edits, steps and items; and what its report says can be computed again."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import defaultdict

import pytest
import torch
from datasets import load_dataset
from safetensors.torch import load_file

from uniedit_hf import UniEditPipeline
from uniedit_hf.cli import main
from uniedit_hf.evaluation.intervals import paired_difference
from uniedit_hf.small_world import quickstart
from uniedit_hf.small_world.quickstart.tuning import base_folder, tune
from uniedit_hf.small_world.suite import EDIT_SETTINGS


SMALL = {"steps": 2, "edits": 60, "items": 4}


@pytest.fixture(scope="module", params=["bagel", pytest.param("janus", marks=[pytest.mark.slow])])
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "quickstart"
    quickstart.run(str(folder), model=family, seeds=2, **SMALL)
    yield folder
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def report(folder):
    return json.loads((folder / "report.json").read_text())


def test_the_page_is_one_file(folder):
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 2 and page.count("data:image/png;base64,") >= 5
    assert 'src="http' not in page and "<script" not in page


def test_data_and_model_load(family, folder):
    edits = load_dataset(str(folder / "data" / "intelligent"), split="train")
    assert len(edits) == 60 and edits[0]["source_image"].size == (64, 64)
    pipeline = UniEditPipeline.from_pretrained(folder / "model")
    drawn = pipeline.edit(edits[0]["source_image"], edits[0]["instruction"], seed=0, **EDIT_SETTINGS[family])
    assert drawn.size == (64, 64)


def test_the_report_follows_from_the_items(folder, report):
    lines = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    by_ability = defaultdict(list)
    for line in lines:
        by_ability[line["ability"]].append(line)
    assert set(by_ability) == {"understanding", "generation", "editing"}
    for ability, items in by_ability.items():
        stated = report["abilities"][ability]
        assert stated["n"] == len(items) == 8
        for column in ("base", "tuned", "control"):
            assert stated[column] == pytest.approx(sum(item[column] for item in items) / len(items))
        difference, low, high = paired_difference([i["tuned"] for i in items], [i["base"] for i in items])
        assert (stated["difference"], stated["ci95"]) == (pytest.approx(difference), pytest.approx([low, high]))


def test_figures_are_means_over_the_seeds(folder, report):
    for ability, row in report["abilities"].items():
        assert len(row["seeds"]["tuned"]) == len(row["seeds"]["control"]) == 2 and len(row["seeds"]["base"]) == 1
        for column, means in row["seeds"].items():
            assert row[column] == pytest.approx(sum(means) / len(means)), (ability, column)
    first, second = (load_file(folder / name / "model.safetensors") for name in ("model", "model-1"))
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_the_same_seed_gives_the_same_files(family, folder, report, tmp_path):
    quickstart.run(str(tmp_path), model=family, **SMALL)
    for file in ("data/intelligent", "data/plain"):
        for name in [path.name for path in (folder / file).rglob("*.parquet")]:
            first, second = (next((root / file).rglob(name)).read_bytes() for root in (folder, tmp_path))
            assert first == second, name
    for name in ("model", "control"):
        first, second = (load_file(root / name / "model.safetensors") for root in (folder, tmp_path))
        assert all(torch.equal(first[key], second[key]) for key in first)
    again = json.loads((tmp_path / "report.json").read_text())
    for ability, row in again["abilities"].items():
        for column in ("base", "tuned", "control"):
            assert row[column] == report["abilities"][ability]["seeds"][column][0], (ability, column)
    assert again["losses"] == report["losses"]


def test_bounds_are_stated(report):
    references = report["references"]
    assert references["editing, target through the autoencoder"] >= 0.8
    assert references["editing, copy of the source"] <= 0.6


def test_edits_follow_their_source_and_their_instruction(report):
    """The small base does, after a few steps of tuning as before."""
    followed = report["dependence"]
    assert followed["neither"] == {"right": report["abilities"]["editing"]["seeds"]["tuned"][0], "n": 8}
    for name in ("source", "instruction"):
        assert followed[name]["different"] > 0.5 and followed[name]["right"] <= followed["neither"]["right"]


@pytest.mark.parametrize(("number", "ends_with"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_ends_more_than_the_training(family, folder, tmp_path, number, ends_with):
    """Neither the control is tuned then, nor anything measured."""
    base, edits = base_folder(None, family), load_dataset(str(folder / "data" / "intelligent"), split="train")
    before = signal.getsignal(number)

    def send():
        while signal.getsignal(number) == before:  # until training listens
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()
    with pytest.raises(ends_with):
        tune(base, edits, tmp_path / "model", steps=10_000, seed=0)
    assert signal.getsignal(number) == before


def test_a_missing_base_is_one_sentence(tmp_path, capsys):
    assert main(["quickstart", "--base", str(tmp_path / "none"), "--output_dir", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "none" in message
    assert not (tmp_path / "out").exists()
