"""The quickstart from end to end, with few edits, steps and items; and what its report says can be computed again."""

from __future__ import annotations

import json
from collections import defaultdict

import pytest
from datasets import load_dataset

from uniedit_hf import UniEditPipeline, quickstart
from uniedit_hf.cli import main
from uniedit_hf.evaluation.intervals import paired_difference


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "quickstart"
    quickstart.run(str(folder), steps=2, edits=60, items=4)
    return folder


@pytest.fixture(scope="module")
def report(folder):
    return json.loads((folder / "report.json").read_text())


def test_the_page_is_one_file(folder):
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 2 and page.count("data:image/png;base64,") >= 5
    assert 'src="http' not in page and "<script" not in page


def test_data_and_model_load(folder):
    edits = load_dataset(str(folder / "data" / "intelligent"), split="train")
    assert len(edits) == 60 and edits[0]["source_image"].size == (64, 64)
    pipeline = UniEditPipeline.from_pretrained(folder / "model")
    assert pipeline.edit(edits[0]["source_image"], edits[0]["instruction"], num_timesteps=2, seed=0).size == (64, 64)


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


def test_bounds_are_stated(report):
    references = report["references"]
    assert references["editing, target through the autoencoder"] >= 0.9
    assert references["editing, copy of the source"] <= 0.6


def test_a_missing_base_is_one_sentence(tmp_path, capsys):
    assert main(["quickstart", "--base", str(tmp_path / "none"), "--output_dir", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "none" in message
    assert not (tmp_path / "out").exists()
