"""The quickstart from end to end, with few edits, steps and items; and what its report says can be computed again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict

import pytest
import torch
from datasets import load_dataset
from safetensors.torch import load_file

from uniedit_hf import UniEditPipeline
from uniedit_hf.arithmetic import best_arithmetic
from uniedit_hf.cli import main
from uniedit_hf.evaluation.intervals import paired_difference
from uniedit_hf.small_world import quickstart
from uniedit_hf.small_world.base.export_base import export
from uniedit_hf.small_world.base.static_model import ModelShape, fresh_weights
from uniedit_hf.small_world.quickstart.edit_data import load_edits
from uniedit_hf.small_world.quickstart.estimate import in_words, makespan
from uniedit_hf.small_world.quickstart.summary import verdict
from uniedit_hf.small_world.quickstart.tuning import base_folder, tune
from uniedit_hf.small_world.suite import EDIT_SETTINGS
from uniedit_hf.small_world.vocabulary import vocabulary


SMALL = {"steps": 2, "edits": 60, "items": 4}


@pytest.fixture(scope="module", params=["bagel", pytest.param("janus", marks=[pytest.mark.slow])])
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "quickstart"
    quickstart.run(str(folder), model=family, seeds=2, jobs=2, **SMALL)
    yield folder
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def report(folder):
    return json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def columns(family) -> list[str]:
    return ["base", "tuned", *(["long"] if family == "bagel" else []), "paper"]


def test_the_page_is_one_file(folder):
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 2 and page.count("data:image/png;base64,") >= 5
    assert 'src="http' not in page and "<script" not in page


def test_data_and_model_load(family, folder):
    edits = load_dataset(str(folder / "data" / "intelligent" / "dataset"), split="train")
    assert len(edits) == 60 and edits[0]["source_image"].size == (64, 64)
    pipeline = UniEditPipeline.from_pretrained(folder / "model")
    drawn = pipeline.edit(edits[0]["source_image"], edits[0]["instruction"], seed=0, **EDIT_SETTINGS[family])
    assert drawn.size == (64, 64)


def test_the_report_follows_from_the_items(folder, report, columns):
    lines = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    by_ability = defaultdict(list)
    for line in lines:
        by_ability[line["ability"]].append(line)
    assert set(by_ability) == {"understanding", "generation", "editing", "planned editing"}
    for ability, items in by_ability.items():
        stated = report["abilities"][ability]
        assert stated["n"] == len(items) == (4 if ability == "planned editing" else 8)
        for column in columns:
            assert stated[column] == pytest.approx(sum(item[column] for item in items) / len(items))
        difference, low, high = paired_difference([i["tuned"] for i in items], [i["base"] for i in items])
        assert (stated["difference"], stated["ci95"]) == (pytest.approx(difference), pytest.approx([low, high]))
        if "long" in columns:
            found = paired_difference([i["long"] for i in items], [i["base"] for i in items])
            stated = stated["long_difference"]
            assert (stated["difference"], *stated["ci95"]) == tuple(map(pytest.approx, found))


def test_figures_are_means_over_the_seeds(folder, report):
    for ability, row in report["abilities"].items():
        assert len(row["seeds"]["tuned"]) == len(row["seeds"]["paper"]) == 2 and len(row["seeds"]["base"]) == 1
        for column, means in row["seeds"].items():
            assert row[column] == pytest.approx(sum(means) / len(means)), (ability, column)
    first, second = (load_file(folder / name / "model.safetensors") for name in ("model", "model-1"))
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_the_same_seed_gives_the_same_files(family, folder, report, columns, tmp_path):
    quickstart.run(str(tmp_path), model=family, jobs=1, **SMALL)
    for file in ("data/intelligent/dataset", "data/plain/dataset"):
        for name in [path.name for path in (folder / file).rglob("*.parquet")]:
            first, second = (next((root / file).rglob(name)).read_bytes() for root in (folder, tmp_path))
            assert first == second, name
    for name in ("model", "paper"):
        first, second = (load_file(root / name / "model.safetensors") for root in (folder, tmp_path))
        assert all(torch.equal(first[key], second[key]) for key in first)
    again = json.loads((tmp_path / "report.json").read_text())
    for ability, row in again["abilities"].items():
        for column in columns:
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
    """No other model is tuned then, nor anything measured."""
    base, edits = base_folder(None, family), load_edits(folder / "data", "intelligent")
    before = signal.getsignal(number)

    def send():
        while signal.getsignal(number) == before:  # until training listens
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()
    with pytest.raises(ends_with):
        tune(base, edits, tmp_path / "model", steps=10_000, seed=0)
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("name", ["steps", "seeds", "edits", "items", "jobs"])
@pytest.mark.parametrize("number", [0, -4])
def test_a_count_below_one_is_refused_before_anything_is_made(tmp_path, capsys, name, number):
    assert main(["quickstart", f"--{name}", str(number), "--output_dir", str(tmp_path / "out")]) == 1
    assert f"{name} is {number}: use 1 or more." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["quickstart", "--output_dir", str(tmp_path / "file" / "out")]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "is not a folder. Choose another place." in message


def test_the_page_begins_with_the_result(folder, report):
    page = (folder / "report.html").read_text()
    assert (
        report["verdict"].startswith("After tuning, ")
        and "intelligent edits that are right went from" in report["verdict"]
    )
    assert page.index(report["verdict"]) < page.index(report["note"])


def test_arithmetic_is_named(folder, report):
    chosen = best_arithmetic()
    assert (report["settings"]["device"], report["settings"]["dtype"]) == (chosen.device, chosen.dtype_name)
    assert f"in {chosen.dtype_name} on {chosen.device}" in (folder / "report.html").read_text()


def test_edits_without_a_category_are_called_so(folder, report):
    categories = report["data"]["plain"]["category"]
    assert categories["no category"] and sum(categories.values()) == 60 and "None" not in categories
    assert "<td>None</td>" not in (folder / "report.html").read_text()


def test_the_verdict_names_what_moved():
    row = {"base": 0.5, "tuned": 0.5, "difference": 0.0, "ci95": [-0.1, 0.1], "n": 4}
    fell = row | {"tuned": 0.25, "difference": -0.25, "ci95": [-0.4, -0.1]}
    rows = {"intelligent": row | {"tuned": 0.75}, "intelligent, to change": row | {"base": 0.25}, "plain, vit": row}
    assert verdict({"understanding": row, "generation": fell, "editing": row | {"rows": rows}}) == (
        "After tuning, generation fell from 50.0 to 25.0 % and understanding and editing did not change measurably. "
        "The share of intelligent edits that are right went from 50.0 to 75.0 %; of those that change something, from "
        "25.0 to 50.0 %."
    )


def test_the_verdict_names_edits_after_a_plan():
    row = {"base": 0.25, "tuned": 0.5, "difference": 0.0, "ci95": [-0.1, 0.1], "n": 4}
    after = row | {"rows": {"planned, to change": row | {"long": 0.75}}}
    said = verdict({"editing": row | {"rows": {"intelligent": row}}, "planned editing": after})
    assert said.endswith(
        "After a plan that the model writes, the share of those that change something went from 25.0 to 50.0 %, and "
        "with the shipped model, which was tuned for longer, 75.0 %."
    )


def test_tasks_are_planned_in_order_side_by_side():
    assert makespan([3.0, 3.0, 1.0], 2) == 4.0 and makespan([3.0, 3.0, 1.0], 1) == 7.0 and makespan([], 2) == 0.0
    assert [in_words(each) for each in (2, 42, 200, 240, 700)] == ["5 s", "40 s", "3 min 20 s", "4 min", "12 min"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=[pytest.mark.slow])])
def test_a_stopped_run_is_resumed(folder, tmp_path, number):
    """The command is stopped while it tunes; the same command resumes there and gives the same models."""
    steps = SMALL | {"steps": 25, "items": 2}
    command = [sys.executable, "-m", "uniedit_hf.cli", "quickstart", "--output_dir", str(tmp_path), "--jobs", "2"]
    command += [word for name, value in steps.items() for word in (f"--{name}", str(value))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    begun = time.monotonic()
    assert "minutes on two cores" in process.stdout.readline()
    assert time.monotonic() - begun < 10, "the first line waits for no heavy import"
    while not (tmp_path / "model").exists():
        time.sleep(0.1)
    time.sleep(2)
    process.send_signal(number)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], said
    assert not (tmp_path / "report.html").exists()
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Resuming the run that was stopped" in again.stdout
    made, page, own = again.stdout.splitlines()[-3:]
    assert made.startswith("Made in ") and f"tuned model in {tmp_path}/model" in made
    assert str(tmp_path / "report.html") in page and f"--tuned {tmp_path}/model" in page
    assert own.startswith("Your own data: uniedit train --model_name_or_path ")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["resumed"] and report["losses"]["tuned"][-1]["step"] == 25


def test_a_missing_base_is_one_sentence(tmp_path, capsys):
    assert main(["quickstart", "--base", str(tmp_path / "none"), "--output_dir", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "none" in message
    assert not (tmp_path / "out").exists()


def test_a_base_of_another_size(tmp_path):
    """Sizes are the checkpoint's, not the program's."""
    shape = ModelShape(
        len(vocabulary()) + 6, hidden=64, intermediate=128, layers=2, heads=4, vit_hidden=48, vit_intermediate=96,
        vit_layers=1, vit_heads=3,
    )  # fmt: skip
    weights = {name: weight[0] for name, weight in fresh_weights(shape, 0).items()}
    export(weights, shape, base_folder(None, "bagel"), tmp_path / "base")
    quickstart.run(str(tmp_path / "out"), base=str(tmp_path / "base"), jobs=1, steps=1, edits=20, items=1)
    for name in ("model", "paper"):
        tuned = UniEditPipeline.from_pretrained(tmp_path / "out" / name)
        assert tuned.model.config.text_config.hidden_size == 64
