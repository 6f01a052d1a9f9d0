"""What `load_dataset("uniedit-148k")` stands for on this machine: raw data or a folder of that name."""

from __future__ import annotations

import datasets
import pyarrow as pa
import pytest
from datasets import get_dataset_config_names, load_dataset
from datasets.distributed import split_dataset_by_node
from pyarrow.dataset import ParquetFragmentScanOptions
from raw_releases import make_release
from torch.utils.data import DataLoader

import uniedit_hf  # noqa: F401
from uniedit_hf.release.build import build


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    make_release(folder, 1100, faulty=False)
    make_release(folder, 30, "tar", config="40k", faulty=False)
    return folder


def test_raw_data_behind_the_name(raw, tmp_path):
    rows = load_dataset("uniedit-148k", data_dir=str(raw), cache_dir=tmp_path)
    assert list(rows) == ["train"] and len(rows["train"]) == 1100
    assert rows["train"][0]["source_image"].size == (64, 64)
    small = load_dataset("uniedit-148k", "40k", split="train", data_dir=str(raw), num_proc=2, cache_dir=tmp_path)
    assert len(small) == 30
    assert get_dataset_config_names("uniedit-148k", data_dir=str(raw)) == ["148k", "40k"]


def test_the_folder_of_the_environment_has_a_cache_of_its_own(raw, tmp_path, monkeypatch):
    make_release(tmp_path / "other", 7, faulty=False)
    for folder, count in ((raw, 1100), (tmp_path / "other", 7)):
        monkeypatch.setenv("UNIEDIT_DATA_DIR", str(folder))
        assert len(load_dataset("uniedit-148k", split="train", cache_dir=tmp_path / "cache")) == count


def test_a_changed_manifest_is_read_again(tmp_path):
    for count in (5, 8):
        make_release(tmp_path / "raw", count, faulty=False)
        rows = load_dataset(
            "uniedit-148k", split="train", data_dir=str(tmp_path / "raw"), cache_dir=tmp_path / "cache"
        )
        assert len(set(rows["id"])) == count


def test_a_local_folder_of_that_name_wins(tmp_path, monkeypatch):
    make_release(tmp_path / "raw", 5, faulty=False)
    build(tmp_path / "raw", tmp_path / "uniedit-148k")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNIEDIT_DATA_DIR", "nowhere")
    assert len(load_dataset("uniedit-148k", split="train", cache_dir=tmp_path / "cache")) == 5


def test_columns_and_filters_of_raw_data(raw):
    options = {"data_dir": str(raw), "split": "train", "streaming": True}
    rows = load_dataset(
        "uniedit-148k", columns=["task_category", "id"], filters=[("task_category", "==", 2)], **options
    )
    assert rows.num_shards == 3 and list(rows.features) == ["id", "task_category"]
    assert [row["task_category"] for row in rows] == [2] * len(range(2, 1101, 8))
    with pytest.raises(ValueError, match="There is no column 'colour': the columns are id, source_image"):
        load_dataset("uniedit-148k", columns=["colour"], **options)


def test_a_stream_of_raw_data_resumes_exactly(raw):
    rows = load_dataset("uniedit-148k", split="train", data_dir=str(raw), streaming=True, columns=["id"])
    every = [row["id"] for row in rows]
    state = None
    for number, _ in enumerate(rows):
        if number == 700:
            state = rows.state_dict()
            break
    rows.load_state_dict(state)
    assert [row["id"] for row in rows] == every[701:]


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_devices_and_workers_share_a_built_folder(raw, tmp_path, num_ranks):
    build(raw, tmp_path / "out", rows_per_file=100)
    options = ParquetFragmentScanOptions(cache_options=pa.CacheOptions(prefetch_limit=1, range_size_limit=1 << 20))
    read = []
    for rank in range(num_ranks):
        rows = load_dataset(
            str(tmp_path / "out"), split="train", streaming=True, columns=["id"], fragment_scan_options=options
        )
        share = split_dataset_by_node(rows, rank, num_ranks)
        read.append([row["id"] for row in DataLoader(share, batch_size=None, num_workers=2)])
    assert len({name for names in read for name in names}) == sum(map(len, read)) == 1100
    assert min(map(len, read)) > 1100 // num_ranks - 101


def test_faulty_rows_are_left_out_or_raise(tmp_path, caplog):
    made = make_release(tmp_path / "raw", 60)
    options = {"data_dir": str(made.folder), "split": "train", "streaming": True}
    assert len(list(load_dataset("uniedit-148k", **options))) == len(made.good)
    assert len([line for line in caplog.messages if line.startswith("Left out uniedit_148k.jsonl:")]) == len(
        made.faults
    )
    with pytest.raises(ValueError, match="uniedit_148k.jsonl:7: image not found"):
        list(load_dataset("uniedit-148k", strict=True, **options))


def test_other_names_are_as_ever(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n')
    assert len(load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train", cache_dir=tmp_path)) == 1
    assert datasets.load.dataset_module_factory.__wrapped__.__module__ == "datasets.load"
