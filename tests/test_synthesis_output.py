"""Records become a data set that loads, with a summary and a contact sheet; bad input is one clear sentence."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json

import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Image as ImageFeature, load_dataset
from hypothesis import given, strategies as st
from PIL import Image, ImageFont

from uniedit_hf.schema import TASK_CATEGORIES, row_features, stable_id
from uniedit_hf.small_world.contact_sheet import wrapped
from uniedit_hf.small_world.easy_vqa import VqaRow, easy_vqa_folder, load_easy_vqa, load_image, one_row_per_image
from uniedit_hf.small_world.edits import intelligent_edits, plain_edits, synthesize, synthesize_plain
from uniedit_hf.small_world.output import PARQUET_NAME, write_parquet
from uniedit_hf.synthesis.records import Record, Rejection, variant_choices, variant_text


@pytest.fixture(scope="module")
def rows():
    return load_easy_vqa("train")


@pytest.fixture(scope="module")
def results(rows):
    return [*synthesize(rows, seed=0, size=280), *synthesize_plain(rows, seed=0, size=20)]


@pytest.fixture(scope="module")
def folder(results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_parquet(results, folder)
    return folder


def test_the_data_set_loads_with_the_row_schema(folder, results, tmp_path):
    data = load_dataset(str(folder), split="train", cache_dir=str(tmp_path))
    records = [result for result in results if isinstance(result, Record)]
    assert data.features == row_features()
    assert isinstance(data.features["source_image"], ImageFeature)
    assert data.features["task_category"] == ClassLabel(names=list(TASK_CATEGORIES))
    assert len(data) == len(records) == 300
    for row, record in zip(data, records):
        assert (row["id"], row["instruction"], row["question"]) == (record.id, record.instruction, record.question)
        assert row["source_image"].size == tuple(row["source_size"]) == (64, 64)
        assert row["target_image"].tobytes() == Image.open(io.BytesIO(record.target_image)).tobytes()
        category = row["task_category"]
        assert (None if category is None else TASK_CATEGORIES[category]) == record.task_category
        assert row["scores"] == {"quality": None, "instruction": 1.0, "preservation": None}
        assert row["license"] == "MIT"


def test_it_loads_as_a_stream(folder):
    row = next(iter(load_dataset(str(folder), split="train", streaming=True)))
    assert row["target_image"].size == (64, 64)


def test_row_groups_are_small(folder):
    file = pq.ParquetFile(folder / PARQUET_NAME)
    assert [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)] == [256, 44]


def test_the_summary_counts_everything(folder, results):
    summary = json.loads((folder / "summary.json").read_text())
    rejections = [result for result in results if isinstance(result, Rejection)]
    assert summary["records"] == sum(summary["category"].values()) == sum(summary["source"].values()) == 300
    assert summary["rejections"] == sum(summary["rejection_reasons"].values()) == len(rejections)
    assert summary["variant"]["depth"]["0"] == 20
    for name in ("depth", "changed", "edit"):
        assert sum(summary["variant"][name].values()) == 300
    assert sum(summary["variant"]["condition"].values()) == 280


def test_the_contact_sheet_is_a_picture(folder):
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert sheet.width > 900 and sheet.height > 1500
        assert len(sheet.convert("RGB").getcolors(1 << 20)) > 50


def test_a_small_data_set_has_a_sheet_of_its_own_size(rows, tmp_path):
    write_parquet(synthesize(rows, seed=4, size=2), tmp_path)
    assert Image.open(tmp_path / "contact_sheet.png").height < 400


def test_same_seed_same_bytes(rows, tmp_path):
    for name in ("first", "second"):
        write_parquet(synthesize(rows, seed=9, size=30), tmp_path / name)
    for file in (PARQUET_NAME, "summary.json", "contact_sheet.png"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_test_pictures_are_never_written_as_training_data(tmp_path):
    test_rows = load_easy_vqa("test")
    for results in (intelligent_edits(test_rows, seed=0, size=3), plain_edits(test_rows, seed=0, size=3)):
        with pytest.raises(ValueError, match="split 'test'"):
            write_parquet(results, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_write_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="all 1 rows were rejected"):
        write_parquet([Rejection("for a reason", "0")], tmp_path)


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
    results = list(synthesize([*rows[:40], *bad], seed=0, size=60))
    assert sum(isinstance(result, Record) for result in results) == 60
    reasons = {result.id: result.reason for result in results if isinstance(result, Rejection)}
    assert reasons["train/1.png"] == "the source picture shows no single shape"
    assert "can be decoded" in reasons["train/2.png"]


def test_only_bad_pictures_end_in_one_sentence(tmp_path):
    Image.new("RGB", (64, 64), (240, 240, 240)).save(tmp_path / "1.png")
    row = VqaRow(tmp_path / "1.png", "is there a red shape?", "no", "train", 0)
    with pytest.raises(ValueError, match="the source picture shows no single shape"):
        list(synthesize_plain([row], seed=0, size=3))


def test_records_are_immutable(results):
    with pytest.raises(dataclasses.FrozenInstanceError):
        results[0].instruction = "something else"
