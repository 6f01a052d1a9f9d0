"""Data sets of one's own through build, validate and the card: their name and their columns stay, and the paper's
shares say nothing about them."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from huggingface_hub import metadata_load
from tiny_models import picture

from uniedit_hf.cli import main
from uniedit_hf.release.raw import find_release


def own_rows(folder, **more) -> None:
    """Three rows with what every row needs, and a column of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(3):
        images = {}
        for side in ("source", "target"):
            path = folder.parent / f"{side}-{number}.png"
            picture(32, 32, seed=number + (side == "target")).save(path)
            images[f"{side}_image"] = {"bytes": path.read_bytes(), "path": None}
        rows.append({"id": f"row-{number}", "instruction": "make it red", "rating": number + 1, **images, **more})
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")


def test_name_and_columns_are_ones_own(tmp_path, capsys):
    own_rows(tmp_path / "raw")
    built = tmp_path / "built"
    flags = ["--source", str(tmp_path / "raw"), "--output_dir", str(built), "--config_name", "my-edits"]
    assert main(["dataset", "build", *flags]) == 0
    assert [path.name for path in built.glob("*/*.parquet")] == ["train-00000-of-00001.parquet"]
    capsys.readouterr()
    assert main(["dataset", "validate", "--input_dir", str(built)]) == 0
    told = capsys.readouterr().out
    assert "my-edits: 3 rows." in told and "columns of its own: rating" in told
    for unwanted in ("paper", "published", "shares"):
        assert unwanted not in told and unwanted not in (built / "validation.html").read_text()
    rows = load_dataset(str(built), split="train")
    assert rows["rating"] == [1, 2, 3] and rows["question"] == [None] * 3 and rows[0]["source_size"] == [32, 32]
    card = metadata_load(built / "README.md")
    assert card["configs"][0]["config_name"] == "my-edits"
    assert card["dataset_info"]["features"][-1] == {"name": "rating", "dtype": "int64"}


def test_a_name_that_is_no_folder_name_is_refused(tmp_path, capsys):
    own_rows(tmp_path / "raw")
    flags = ["--source", str(tmp_path / "raw"), "--output_dir", str(tmp_path / "built"), "--config_name", "../mine"]
    assert main(["dataset", "build", *flags]) == 1
    assert "config_name is '../mine': use letters" in capsys.readouterr().err


def test_files_that_differ_in_a_column_are_refused(tmp_path, capsys):
    own_rows(tmp_path / "raw" / "train")
    own_rows(tmp_path / "raw" / "more", rating="good")
    assert main(["dataset", "build", "--source", str(tmp_path / "raw"), "--output_dir", str(tmp_path / "built")]) == 1
    assert "column rating is" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "expected"), [(None, "default"), ("mine", "mine")])
def test_where_rows_without_a_name_go(tmp_path, given, expected):
    own_rows(tmp_path / "raw")
    assert find_release(tmp_path / "raw", own_config=given).configs == [expected]


def test_rows_of_synthesis_are_called_default(tmp_path):
    own_rows(tmp_path / "run" / "dataset")
    (tmp_path / "run" / "work").mkdir()
    (tmp_path / "run" / "work" / "plan.json").write_text("{}")
    assert find_release(tmp_path / "run").configs == ["default"]
