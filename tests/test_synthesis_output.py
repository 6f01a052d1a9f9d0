"""Records become a data set that loads, with a summary and a contact sheet; bad input is one clear sentence."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import importlib.util
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from datasets import ClassLabel, Image as ImageFeature, load_dataset
from hypothesis import given, strategies as st
from PIL import Image, ImageFont

from uniedit_hf.cli import main
from uniedit_hf.schema import TASK_CATEGORIES, row_features, stable_id
from uniedit_hf.small_world.contact_sheet import contact_sheet, wrapped
from uniedit_hf.small_world.easy_vqa import VqaRow, easy_vqa_folder, load_easy_vqa, load_image, one_row_per_image
from uniedit_hf.small_world.edits import intelligent_edits, plain_drafts, plain_edits
from uniedit_hf.small_world.quickstart.edit_data import data_folder, intelligent_settings, make_edits, plain_settings
from uniedit_hf.small_world.rules import draw_exactly, instruct_by_rules, read_back
from uniedit_hf.synthesis.records import Record, Rejection, record_to_row, variant_choices, variant_text
from uniedit_hf.synthesis.run import run as synthesize
from uniedit_hf.synthesis.writer import ShardFiles, ShardWriter


ROOT = Path(__file__).parents[1]
PARQUET_NAME = "train-00000-of-00001.parquet"


@pytest.fixture(scope="module")
def rows():
    return load_easy_vqa("train")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def edits(folder):
    """The data sets that the quickstart makes, and their counts."""
    return make_edits(folder, seed=0, size=300)


@pytest.fixture(scope="module")
def results(rows):
    """The same edits in memory."""
    return list(intelligent_edits(rows, seed=0, size=300))


def test_the_data_set_loads_with_the_row_schema_and_is_what_the_stages_make_in_memory(edits, results):
    data, records = edits[0]["intelligent"], [result for result in results if isinstance(result, Record)]
    assert data.features == row_features()
    assert isinstance(data.features["source_image"], ImageFeature)
    assert data.features["task_category"] == ClassLabel(names=list(TASK_CATEGORIES))
    assert len(data) == len(records) == 300
    encoded = data.cast_column("source_image", ImageFeature(decode=False))
    for row, record in zip(encoded.cast_column("target_image", ImageFeature(decode=False)), records):
        row["task_category"] = TASK_CATEGORIES[row["task_category"]]
        assert row == record_to_row(record)
        assert row["scores"] == {"quality": None, "instruction": 1.0, "preservation": None}
        assert row["license"] == "MIT"
    assert data[0]["source_image"].size == tuple(data[0]["source_size"]) == (64, 64)


# What `uniedit synthesize` and the quickstart have made with seed 0 since the first release.
RECORDED = {
    "intelligent": "4d2164f95df2c3a6c3776e223e0c8f7eee37cfab67b1fe0732ecd8dc5459a8f9",
    "plain": "8ec3b427d4e9db7480cfcda4796c58be3d10e068e1918079778fbeec8ded98b3",
}


@pytest.mark.parametrize("name", RECORDED)
def test_the_rows_of_a_seed_are_those_of_every_release(edits, name):
    digest = hashlib.sha256()
    for row in edits[0][name]:
        texts = [row[column] for column in ("id", "instruction", "question", "answer", "variant", "task_category")]
        digest.update(repr(texts).encode() + row["source_image"].tobytes() + row["target_image"].tobytes())
    assert digest.hexdigest() == RECORDED[name]


def test_the_command_makes_the_rows_of_the_quickstart(edits, tmp_path, capsys):
    settings = yaml.safe_load((ROOT / "examples" / "synthesis" / "planned_edits.yaml").read_text())
    settings["balance"]["size"] = 300
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings | {"output_dir": str(tmp_path / "out")}))
    assert main(["synthesize", "--config", str(tmp_path / "settings.yaml")]) == 0
    assert "300 edits in" in capsys.readouterr().out
    again = load_dataset(str(tmp_path / "out" / "dataset"), split="train")
    assert [row["id"] for row in again] == [row["id"] for row in edits[0]["intelligent"]]


def test_shards_of_planned_edits_make_other_edits_of_other_images(tmp_path):
    settings = intelligent_settings(tmp_path / "shards", seed=0, size=61).model_copy(update={"shards": 3})
    merged = synthesize(settings)
    data = load_dataset(str(merged.dataset), split="train")
    assert len(data) == len(set(data["id"])) == 61
    plans = [variant_choices(each)["depth"] for each in data["variant"]]
    alone = synthesize(intelligent_settings(tmp_path / "alone", seed=0, size=61))
    assert plans == [
        variant_choices(each)["depth"] for each in load_dataset(str(alone.dataset), split="train")["variant"]
    ]


def test_it_loads_as_a_stream(folder, edits):
    row = next(iter(load_dataset(str(data_folder(folder, "intelligent")), split="train", streaming=True)))
    assert row["target_image"].size == (64, 64)


def test_row_groups_are_small(folder, edits):
    file = pq.ParquetFile(data_folder(folder, "intelligent") / PARQUET_NAME)
    assert [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)] == [32] * 9 + [12]


def test_the_counts_are_of_everything(edits, results):
    counts, plain = edits[1]["intelligent"], edits[1]["plain"]
    rejections = [result for result in results if isinstance(result, Rejection)]
    assert counts["records"] == sum(counts["category"].values()) == sum(counts["source"].values()) == 300
    assert (
        counts["source_images"]
        == plain["source_images"]
        == len({r.source_image for r in results if r not in rejections})
    )
    assert counts["rejections"] == sum(counts["rejection_reasons"].values()) == len(rejections)
    assert plain["records"] == plain["variant"]["depth"]["0"] == 300 and plain["category"]["no category"] > 0
    for name in ("depth", "changed", "edit", "condition"):
        assert sum(counts["variant"][name].values()) == 300


def test_the_contact_sheet_is_an_image(folder, edits):
    with Image.open(folder / "intelligent" / "contact_sheet.png") as sheet:
        assert sheet.width > 900 and sheet.height > 1500
        assert len(sheet.convert("RGB").getcolors(1 << 20)) > 50


def test_a_small_data_set_has_a_sheet_of_its_own_size(edits):
    assert contact_sheet(edits[0]["plain"].select(range(2))).height < 400


def test_same_seed_same_bytes(tmp_path):
    for name in ("first", "second"):
        make_edits(tmp_path / name, seed=9, size=30)
    for kind in ("intelligent", "plain"):
        for file in (f"dataset/{PARQUET_NAME}", "rejects.parquet", "contact_sheet.png"):
            first, second = (tmp_path / name / kind / file for name in ("first", "second"))
            assert first.read_bytes() == second.read_bytes()


def test_test_images_are_never_written_as_training_data(tmp_path):
    source = plain_drafts(load_easy_vqa("test"), seed=0, size=1)
    drawn = read_back(draw_exactly(instruct_by_rules(next(source), None, 0)))
    writer = ShardWriter(ShardFiles(tmp_path, 0))
    with pytest.raises(ValueError, match="split 'test'"):
        writer.write(drawn)
    writer.close({})
    assert pq.read_metadata(writer.files.records).num_rows == 0


def test_nothing_to_write_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="no Parquet files in .*none: check source.of"):
        synthesize(plain_settings(tmp_path / "out", seed=0, of=tmp_path / "none"))


def test_synthesis_runs_where_a_loop_is_running(tmp_path):
    """As in a notebook."""

    async def cell():
        return synthesize(intelligent_settings(tmp_path, seed=4, size=2))

    assert asyncio.run(cell()).counts.records == 2


@given(
    choices=st.dictionaries(st.from_regex("[a-z]{1,8}", fullmatch=True), st.one_of(st.integers(), st.booleans())),
    parts=st.lists(st.text(), max_size=4),
)
def test_variants_and_ids_are_what_they_were_made_of(choices, parts):
    assert variant_choices(variant_text(**choices)) == {name: str(value).lower() for name, value in choices.items()}
    assert stable_id(*parts) == stable_id(*parts)
    assert stable_id(*parts) != stable_id(*parts, "")
    assert stable_id("a", "bc") != stable_id("ab", "c")


@given(st.text(st.characters(categories=["L", "N", "P", "Zs"]), max_size=200))
def test_wrapping_loses_no_word(text):
    font = ImageFont.load_default(14)
    lines = wrapped(text, font, 200)
    assert " ".join(lines).split() == text.split()
    assert all(font.getlength(line) <= 200 or len(line.split()) <= 1 for line in lines)


# ---- easy-VQA itself


def test_easy_vqa_is_read_whole(rows):
    test_rows = load_easy_vqa("test")
    assert (len(rows), len(test_rows)) == (38_575, 9_673)
    assert (len(one_row_per_image(rows)), len(one_row_per_image(test_rows))) == (4_000, 1_000)
    assert sum(row.is_open for row in rows) / len(rows) == pytest.approx(0.264, abs=0.001)
    assert {row.split for row in test_rows} == {"test"}


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r'pip install "uniedit_hf\[quickstart\]"'):
        load_easy_vqa("train")


def test_a_wrong_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="questions.json"):
        load_easy_vqa("train", tmp_path)


@pytest.mark.parametrize("content", ["not json", '[["is there a circle?", "yes"]]', '[["is it?", 1, 2]]', '{"a": 1}'])
def test_a_broken_question_file_is_named(tmp_path, content):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "questions.json").write_text(content)
    with pytest.raises(ValueError, match="questions.json"):
        load_easy_vqa("train", tmp_path)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match='"train" or "test"'):
        load_easy_vqa("validation")


def test_bad_pictures_are_named(tmp_path):
    text, small, cut = (tmp_path / name for name in ("text.png", "small.png", "cut.png"))
    text.write_text("no picture")
    Image.new("RGB", (32, 48)).save(small)
    cut.write_bytes((easy_vqa_folder() / "train" / "images" / "0.png").read_bytes()[:150])
    with pytest.raises(ValueError, match="text.png cannot be decoded"):
        load_image(text)
    with pytest.raises(ValueError, match="small.png is 32 x 48 pixels; .* 64 x 64"):
        load_image(small)
    with pytest.raises(ValueError, match="cut.png cannot be decoded"):
        load_image(cut)
    with pytest.raises(FileNotFoundError, match="missing.png"):
        load_image(tmp_path / "missing.png")


def test_bad_pictures_are_rejected_and_lose_nothing_else(rows, tmp_path):
    blank, text = tmp_path / "1.png", tmp_path / "2.png"
    Image.new("RGB", (64, 64), (240, 240, 240)).save(blank)
    text.write_text("no picture")
    bad = [VqaRow(path, "is there a red shape?", "no", "train", 0) for path in (blank, text)]
    results = list(intelligent_edits([*rows[:40], *bad], seed=0, size=60))
    assert sum(isinstance(result, Record) for result in results) == 60
    reasons = {result.id: result.reason for result in results if isinstance(result, Rejection)}
    assert reasons["train/1.png"] == "the source image shows no single shape"
    assert "can be decoded" in reasons["train/2.png"]


def test_only_bad_pictures_end_in_one_sentence(tmp_path):
    Image.new("RGB", (64, 64), (240, 240, 240)).save(tmp_path / "1.png")
    row = VqaRow(tmp_path / "1.png", "is there a red shape?", "no", "train", 0)
    with pytest.raises(ValueError, match="the source image shows no single shape"):
        list(plain_edits([row], seed=0, size=3))


def test_records_are_immutable(results):
    with pytest.raises(dataclasses.FrozenInstanceError):
        results[0].instruction = "something else"
