"""What validation finds in a built data set, and what decontamination takes for the same."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st
from PIL import Image
from raw_releases import make_release

from uniedit_hf.cli import main
from uniedit_hf.release.build import build
from uniedit_hf.release.decontamination import Benchmarks, normalised, perceptual_hash, pixel_hash, read_benchmarks
from uniedit_hf.release.parquet import arrow_schema
from uniedit_hf.release.validation import validate, write_report
from uniedit_hf.schema import row_features, stable_id


def photo(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Smooth random colors: an image that survives JPEG as a photograph does."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def row(seed: int, **changes) -> dict:
    source, target = photo(seed), photo(seed + 1000)
    return {
        "id": stable_id(str(seed)),
        "source_image": {"bytes": encoded(source), "path": None},
        "instruction": f"Paint what stands left of the tower number {seed}.",
        "target_image": {"bytes": encoded(target), "path": None},
        "task_category": "count",
        "question": f"What stands left of the tower number {seed}?",
        "answer": "a tree",
        "variant": None,
        "source": None,
        "editor": None,
        "judge": None,
        "scores": {"quality": 4.0, "instruction": None, "preservation": None},
        "license": None,
        "source_size": list(source.size),
        "target_size": list(target.size),
    } | changes


def data_set(folder: Path, rows: list[dict]) -> Path:
    (folder / "148k").mkdir(parents=True)
    features = row_features()
    table = pa.Table.from_pylist([features.encode_example(row) for row in rows], arrow_schema(features))
    pq.write_table(table, folder / "148k" / "train-00000-of-00001.parquet")
    return folder


def test_a_good_data_set(tmp_path):
    result = validate(data_set(tmp_path, [row(seed) for seed in range(5)]))
    assert result.valid and not result.problems
    assert result.counted[0].categories == {"count": 5} and result.counted[0].same_size == 5
    assert any("shares that differ by more than 2 points: caption 0.0 % (published 33.3 %)" in n for n in result.notes)


@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        ({"id": stable_id("0")}, "duplicate id", "expected a unique id"),
        ({"instruction": " "}, "no instruction", "instruction is empty"),
        ({"target_image": {"bytes": encoded(photo(1))[:-100], "path": None}}, "unusable image", "cannot be read"),
        ({"target_image": {"bytes": None, "path": __file__}}, "no image", "target_image contains no bytes"),
        ({"source_size": [120, 160]}, "wrong size", "source_image is [160, 120], its column says [120, 160]"),
    ],
)
def test_what_must_be_put_right(tmp_path, changes, reason, detail):
    result = validate(data_set(tmp_path, [row(0), row(1, **changes)]))
    (problem,) = result.problems
    assert (problem.file, problem.row, problem.reason) == ("148k/train-00000-of-00001.parquet", 2, reason)
    assert detail in problem.detail and not result.valid


def test_what_is_worth_knowing(tmp_path):
    square = photo(7, (96, 96))
    changed = row(2, target_image={"bytes": encoded(square), "path": None}, target_size=[96, 96])
    unchanged = row(3, target_image=row(3)["source_image"])
    again = row(0, id=stable_id("again"))
    result = validate(data_set(tmp_path, [row(0), changed, unchanged, again]))
    notes = "\n".join(result.notes)
    assert result.valid
    assert "in 1 rows source and target differ in aspect ratio" in notes
    assert "1 rows have the source and instruction of an earlier one" in notes
    assert "in 1 rows the target is the source" in notes


def test_a_foreign_schema_and_a_damaged_file(tmp_path):
    folder = data_set(tmp_path, [row(0)])
    pq.write_table(pa.table({"id": ["a"]}), folder / "148k" / "train-00001-of-00002.parquet")
    (folder / "148k" / "train-00002-of-00003.parquet").write_bytes(b"PAR1")
    problems = {problem.file: problem for problem in validate(folder).problems}
    assert "no column source_image" in problems["148k/train-00001-of-00002.parquet"].detail
    assert problems["148k/train-00002-of-00003.parquet"].reason == "damaged file"


def test_the_command_ends_with_its_verdict_and_a_page(tmp_path, capsys):
    make_release(tmp_path / "raw", 20, faulty=False)
    build(tmp_path / "raw", tmp_path / "out")
    (tmp_path / "benchmarks").mkdir()
    command = ["dataset", "validate", "--input_dir", str(tmp_path / "out")]
    assert main(command) == 0 and "No problems found" in capsys.readouterr().out
    assert "No problems found" in (tmp_path / "out" / "validation.html").read_text()
    (tmp_path / "benchmarks" / "a.png").write_bytes((tmp_path / "raw" / "images" / "easy" / "3.png").read_bytes())
    report = tmp_path / "report.html"
    command += ["--benchmarks", str(tmp_path / "benchmarks"), "--report", str(report)]
    assert main(command) == 1 and "rows with images of a benchmark; see " in capsys.readouterr().err
    assert "same pixels" in report.read_text() and not json.loads(report.with_suffix(".json").read_text())["valid"]


def test_reports_escape_what_they_quote(tmp_path):
    result = validate(data_set(tmp_path, [row(0), row(1, id="<script>alert(1)</script>", instruction="")]))
    write_report(result, tmp_path / "report.html")
    assert "<script>" not in (tmp_path / "report.html").read_text()


# ---------------------------------------------------------------------------------------------------------------------
# Decontamination


def benchmarks_of(folder: Path, **files: bytes) -> Benchmarks:
    folder.mkdir()
    for name, data in files.items():
        (folder / name.replace("__", ".")).write_bytes(data)
    return read_benchmarks(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda picture: encoded(picture, "JPEG", quality=60),
        lambda picture: encoded(picture.resize((301, 211), Image.Resampling.BICUBIC)),
        lambda picture: encoded(picture.point(lambda value: min(255, int(value * 0.9) + 10))),
    ],
    ids=["jpeg", "resized", "brighter"],
)
def test_a_picture_is_known_again(tmp_path, change):
    benchmarks = benchmarks_of(tmp_path / "b", a__png=encoded(photo(1)), b__png=encoded(photo(2)))
    found = benchmarks.image_match("row", "source_image", Image.open(io.BytesIO(change(photo(1)))).convert("RGB"))
    assert found is not None and found.benchmark == "a.png" and "bits differ" in found.kind
    assert benchmarks.image_match("row", "source_image", photo(1)).kind == "same pixels"


def test_other_pictures_are_not(tmp_path):
    benchmarks = benchmarks_of(tmp_path / "b", **{f"{seed}__png": encoded(photo(seed)) for seed in range(50)})
    assert [benchmarks.image_match("row", "x", photo(seed)) for seed in range(100, 200)] == [None] * 100


def test_flat_pictures_are_compared_by_pixels_alone(tmp_path):
    flat = Image.new("RGB", (40, 40), "red")
    benchmarks = benchmarks_of(tmp_path / "b", flat__png=encoded(flat))
    assert benchmarks.image_match("row", "x", Image.new("RGB", (40, 40), "blue")) is None
    assert benchmarks.image_match("row", "x", flat).kind == "same pixels"


def test_questions(tmp_path):
    benchmarks = benchmarks_of(
        tmp_path / "b",
        a__jsonl=json.dumps({"id": 1, "turns": [{"question": "What stands LEFT of the tower?"}]}).encode(),
        b__csv=b"index,question\n1,How many birds sit on the wire?\n",
        c__txt=b"Too short\n",
        d__json=b"{broken",
    )
    assert benchmarks.text_match("row", "question", "what stands left of the tower").benchmark == "a.jsonl"
    assert benchmarks.text_match("row", "question", "How many birds sit on the wire").benchmark == "b.csv"
    assert benchmarks.text_match("row", "question", "too short") is None
    assert benchmarks.text_match("row", "question", None) is None
    assert benchmarks.unreadable[0].startswith("d.json: ")


def test_the_same_question_alone_is_no_contamination(tmp_path):
    folder = data_set(tmp_path / "data", [row(0)])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "questions.txt").write_text(row(0)["question"])
    result = validate(folder, tmp_path / "b")
    assert result.valid and [match.kind for match in result.matches] == ["same text"]


def test_nothing_to_compare_with(tmp_path):
    with pytest.raises(ValueError, match="Nothing in .* can be compared"):
        read_benchmarks(tmp_path)
    with pytest.raises(ValueError, match="There is no folder"):
        read_benchmarks(tmp_path / "none")


@given(st.text(max_size=40))
def test_normalised_text_is_stable(text):
    assert normalised(normalised(text)) == normalised(text)


@given(st.integers(0, 2**32), st.sampled_from([(20, 30), (64, 64), (17, 16)]))
def test_hashes_depend_on_pixels_alone(seed, size):
    picture = photo(seed, size)
    again = Image.open(io.BytesIO(encoded(picture)))
    assert pixel_hash(picture) == pixel_hash(again) and (perceptual_hash(picture) == perceptual_hash(again)).all()
