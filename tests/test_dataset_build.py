"""From a raw release to Parquet: every good row byte for byte, every fault with its line and reason, and a build that
was killed resumes to the same files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
import warnings
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from hypothesis import given, strategies as st
from raw_releases import LAYOUTS, make_release, picture_bytes

from uniedit_hf.cli import main
from uniedit_hf.dataset_builder.uniedit_148k import read_part
from uniedit_hf.release.build import build
from uniedit_hf.release.image_store import ImageStore, safe_parts
from uniedit_hf.release.parquet import ROWS_PER_GROUP
from uniedit_hf.release.raw import Part, find_release, read_lines
from uniedit_hf.row_error import RowError
from uniedit_hf.schema import row_features
from uniedit_hf.small_world.quickstart.edit_data import intelligent_settings
from uniedit_hf.synthesis.run import run as synthesize


UNIEDIT = Path(sys.executable).with_name("uniedit")


def stored_rows(folder: Path, config: str = "148k") -> list[dict]:
    return [row for file in sorted((folder / config).glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def check_build(tmp_path: Path, num_rows: int, layout: str) -> list[str]:
    """Builds a release with faults and returns the ids."""
    made = make_release(tmp_path / "raw", num_rows, layout)
    before = {path: path.stat().st_size for path in tmp_path.rglob("*")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = build(made.folder, tmp_path / "out", rows_per_file=128)
    assert {fault.line: fault.reason for fault in report.faults} == made.faults
    assert {fault.file for fault in report.faults} == {"uniedit_148k.jsonl"}
    assert all(fault.detail for fault in report.faults)

    rows = stored_rows(tmp_path / "out")
    found = [(row["source_image"]["bytes"], row["instruction"], row["target_image"]["bytes"]) for row in rows]
    assert found == list(made.good.values())
    assert report.rows == {"148k/train": len(made.good)} and len(made.good) + len(made.faults) == num_rows

    written = {path for path in tmp_path.rglob("*") if path not in before and tmp_path / "out" not in path.parents}
    assert written == {tmp_path / "out"}  # nothing was unpacked
    listed = [json.loads(line) for line in (tmp_path / "out" / "faults.jsonl").read_text().splitlines()]
    assert [fault["line"] for fault in listed] == sorted(made.faults)
    return [row["id"] for row in rows]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_500_rows_with_faults(tmp_path, layout):
    check_build(tmp_path, 500, layout)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_5000_rows_with_faults(tmp_path, layout):
    check_build(tmp_path, 5000, layout)


def test_ids_depend_on_contents_alone(tmp_path):
    ids = []
    for layout in LAYOUTS:
        made = make_release(tmp_path / layout / "raw", 40, layout, faulty=False)
        build(made.folder, tmp_path / layout / "out")
        ids.append([row["id"] for row in stored_rows(tmp_path / layout / "out")])
    assert ids[0] == ids[1] == ids[2] and len(set(ids[0])) == 40


def test_what_the_release_lacks_is_null(tmp_path):
    made = make_release(tmp_path / "raw", 3, faulty=False)
    build(made.folder, tmp_path / "out")
    row = stored_rows(tmp_path / "out")[0]
    lacking = ["variant", "source", "editor", "judge", "license"]
    assert [row[name] for name in lacking] == [None] * len(lacking)
    assert row["scores"] == {"quality": 4.0, "instruction": None, "preservation": None}
    assert (row["task_category"], row["source_size"], row["target_size"]) == (1, [64, 64], [64, 64])
    assert row["answer"] in ("rectangle", "circle", "triangle") or row["answer"]


def test_files_are_for_streaming(tmp_path):
    made = make_release(tmp_path / "raw", 100, faulty=False)
    build(made.folder, tmp_path / "out")
    with pq.ParquetFile(next((tmp_path / "out" / "148k").glob("*.parquet"))) as file:
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        assert [group.num_rows for group in groups] == [ROWS_PER_GROUP] * 3 + [4]
        assert groups[0].column(0).has_offset_index and groups[0].column(0).has_column_index
    rows = load_dataset(str(tmp_path / "out"), split="train", streaming=True)
    assert rows.features == row_features() and sum(1 for _ in rows) == 100


def test_a_killed_build_goes_on_to_the_same_files(tmp_path):
    made = make_release(tmp_path / "raw", 500)
    command = [UNIEDIT, "dataset", "build", "--source", made.folder, "--rows_per_file", "10", "--output_dir"]
    with subprocess.Popen([*map(str, command), str(tmp_path / "killed")], stderr=subprocess.DEVNULL) as process:
        while len(list(tmp_path.glob("killed/.build/148k-*"))) < 5:
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("killed/148k/*.parquet")}
    assert 5 <= len(finished) < 50
    kept = [path for path in finished if (tmp_path / "killed" / ".build" / f"148k-{path.stem}.json").exists()]
    build(made.folder, tmp_path / "killed", rows_per_file=10)
    build(made.folder, tmp_path / "straight", rows_per_file=10)
    assert all(path.stat().st_mtime_ns == finished[path] for path in kept)
    for name in ("148k", "faults.jsonl", "README.md"):
        straight = tmp_path / "straight" / name
        for path in [straight] if straight.is_file() else sorted(straight.iterdir()):
            assert path.read_bytes() == (tmp_path / "killed" / path.relative_to(tmp_path / "straight")).read_bytes()


@pytest.mark.slow
def test_processes_make_the_same_files(tmp_path):
    made = make_release(tmp_path / "raw", 500, "tar")
    for num_proc in (1, 2):
        build(made.folder, tmp_path / str(num_proc), rows_per_file=100, num_proc=num_proc)
    for path in sorted((tmp_path / "1" / "148k").iterdir()):
        assert path.read_bytes() == (tmp_path / "2" / "148k" / path.name).read_bytes()


def test_mended_rows_are_read_again_on_request(tmp_path):
    made = make_release(tmp_path / "raw", 40, faulty=False)
    lost = made.folder / "images" / "easy" / "30.png"
    data = lost.read_bytes()
    lost.unlink()
    assert [fault.line for fault in build(made.folder, tmp_path / "out", rows_per_file=10).faults] == [30]
    lost.write_bytes(data)
    assert build(made.folder, tmp_path / "out", rows_per_file=10).rows == {"148k/train": 39}
    assert build(made.folder, tmp_path / "out", rows_per_file=10, redo_faulty=True).rows == {"148k/train": 40}
    assert (tmp_path / "out" / "faults.jsonl").read_text() == ""


def test_an_image_root_elsewhere(tmp_path):
    made = make_release(tmp_path / "raw", 4, faulty=False)
    (tmp_path / "pictures").mkdir()
    for name in ("images", "edited"):
        (made.folder / name).rename(tmp_path / "pictures" / name)
    with pytest.raises(ValueError, match="None of the 4 rows can be used: uniedit_148k.jsonl:1: image not found: "):
        build(made.folder, tmp_path / "wrong")
    with pytest.raises(ValueError, match="contains the build of another source, or with other settings"):
        build(made.folder, tmp_path / "wrong", image_root=tmp_path / "pictures")
    assert build(made.folder, tmp_path / "out", image_root=tmp_path / "pictures").rows == {"148k/train": 4}


@pytest.mark.parametrize("layout", ["tar", "zip"])
def test_a_damaged_archive_costs_only_its_own_rows(tmp_path, layout):
    made = make_release(tmp_path / "raw", 90, layout, faulty=False)
    archive = sorted(made.folder.glob("pictures-*"))[0]
    content = bytearray(archive.read_bytes())
    if layout == "tar":
        del content[len(content) // 2 :]
    else:
        content[100:300] = bytes(200)  # within the first members
    archive.write_bytes(content)
    report = build(made.folder, tmp_path / "out")
    reasons = {fault.reason for fault in report.faults}
    assert reasons <= {"image not found", "damaged archive member", "unusable image"} and 0 < len(report.faults) < 60
    good = {row["id"] for row in stored_rows(tmp_path / "out")}
    assert len(good) == 90 - len(report.faults)


def test_archives_that_are_none(tmp_path):
    made = make_release(tmp_path / "raw", 4, faulty=False)
    for name in ("a.tar", "b.zip"):
        (made.folder / name).write_bytes(b"nothing of the kind" * 100)
    report = build(made.folder, tmp_path / "out")
    assert "a.tar is damaged" in report.found and "b.zip is damaged" in report.found and not report.faults


def test_names_that_are_no_text(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("good.png", "../bad.png", "b\udcffd.png", "/etc/c.png"):
            archive.addfile(tarfile.TarInfo(name))
    store = ImageStore(tmp_path, [tmp_path / "a.tar"])
    assert store.ignored_members == 3 and store.read("good.png") == b""


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'\xef\xbb\xbf{"edit_instruction": 5}', "wrong value"),
        (b'{"edit_instruction": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" * 5000, "not JSON"),
        (b'{"edit_instruction": "\\ud800", "image_path": "a", "output_image_path": "b"}', "not UTF-8"),
        (b'{"edit_instruction": "x", "image_path": "a\\u0000", "output_image_path": "b"}', "no path"),
        (b'{"edit_instruction": "x", "image_path": "' + b"a" * 300 + b'", "output_image_path": "b"}', "no path"),
    ],
)
def test_lines_that_nobody_writes_on_purpose(tmp_path, line, reason):
    (tmp_path / "148k.jsonl").write_bytes(line)
    (part,) = find_release(tmp_path).parts("148k", "train", 10)
    ((number, fault),) = read_part(part, ImageStore(tmp_path))
    assert (number, fault.reason) == (1, reason)


def test_strict_stops_at_a_fault(tmp_path):
    made = make_release(tmp_path / "raw", 40)
    with pytest.raises(ValueError, match=r"uniedit_148k.jsonl:\d+: .* Correct the row, or leave out --strict"):
        build(made.folder, tmp_path / "out", strict=True)


def test_command_ends_with_a_table(tmp_path, capsys):
    make_release(tmp_path / "raw", 100)
    assert main(["dataset", "build", "--source", str(tmp_path / "raw"), "--output_dir", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "148k/train: 87 rows" in shown
    assert "   3  unusable image" in shown and "uniedit_148k.jsonl:7: image not found: " in shown


def test_two_configurations_and_named_manifests(tmp_path):
    make_release(tmp_path / "raw", 20, config="148k", faulty=False)
    make_release(tmp_path / "raw", 10, config="40k", faulty=False)
    assert build(tmp_path / "raw", tmp_path / "out").rows == {"148k/train": 20, "40k/train": 10}
    (tmp_path / "raw" / "uniedit_40k.jsonl").rename(tmp_path / "raw" / "data_final.jsonl")
    assert find_release(tmp_path / "raw").configs == ["148k"]
    assert "Not used: data_final.jsonl (name has neither 148k nor 40k" in find_release(tmp_path / "raw").report()
    named = build(tmp_path / "raw", tmp_path / "named", manifests={"40k": ["data_final.jsonl"]})
    assert named.rows == {"148k/train": 20, "40k/train": 10}


def test_an_output_folder_holds_one_build(tmp_path):
    made = make_release(tmp_path / "raw", 10, faulty=False)
    build(made.folder, tmp_path / "out")
    make_release(tmp_path / "raw", 12, faulty=False)
    with pytest.raises(ValueError, match="contains the build of another source"):
        build(made.folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "There are no rows to build: .* Found in .*: 0 archives, 0 image files"),
        ({"pictures.tar.gz": b"x"}, r"pictures.tar.gz \(compressed: unpack it to a .tar"),
        ({"deep/x_148k.jsonl": b"{}"}, r"manifests must be at the top of the folder"),
    ],
)
def test_what_cannot_be_placed_is_said(tmp_path, files, sentence):
    for name, data in files.items():
        (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / name).write_bytes(data)
    (tmp_path / "raw").mkdir(exist_ok=True)
    with pytest.raises(ValueError, match=sentence):
        build(tmp_path / "raw", tmp_path / "out")


def test_our_synthesis_is_a_source(tmp_path):
    raw = synthesize(intelligent_settings(tmp_path / "made", seed=0, size=40)).dataset
    report = build(raw, tmp_path / "out", rows_per_file=16)
    assert report.rows == {"default/train": 40} and not report.faults
    original = pq.read_table(raw / "train-00000-of-00001.parquet").to_pylist()
    assert stored_rows(tmp_path / "out", "default") == original


def test_a_snapshot_of_the_hub_s_cache_is_a_source(tmp_path):
    made = make_release(tmp_path / "repo" / "snapshots" / "abc", 5, faulty=False)
    blobs = tmp_path / "repo" / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(made.folder.rglob("*.png"))):
        path.rename(blobs / str(number))
        path.symlink_to(os.path.relpath(blobs / str(number), path.parent))
    assert not build(made.folder, tmp_path / "out").faults


@pytest.mark.parametrize("layout", ["tar", "zip"])
def test_names_with_and_without_the_folder_of_the_archive(tmp_path, layout):
    made = make_release(tmp_path / "raw", 2, layout, faulty=False)
    (tmp_path / "raw" / "images").mkdir()
    archive = next(made.folder.glob("pictures-0.*")).rename(tmp_path / "raw" / "images" / f"part.{layout}")
    store = ImageStore(tmp_path / "raw", [archive])
    for prefix in ("", "images/", "images/part/", "part/"):
        assert store.read(f"{prefix}images/easy/1.png") == picture_bytes(1)
    with pytest.raises(RowError, match="whose members are named like 'edited/easy/2_0a1b2c3d.png'"):
        store.read("elsewhere/images/easy/1.png")


@given(st.text(alphabet="a./\\:\0é ", max_size=12))
def test_safe_names_lead_nowhere_else(name):
    try:
        parts = safe_parts(name)
    except RowError:
        return
    place = os.path.normpath(os.path.join("/data/images", *parts))
    assert place.startswith("/data/images/") and "\0" not in place


@given(
    lines=st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"")), max_size=30),
    rows_per_part=st.integers(1, 7),
    ends=st.booleans(),
)
def test_parts_cover_every_line_once(tmp_path_factory, lines, rows_per_part, ends):
    folder = tmp_path_factory.mktemp("lines")
    content = [json.dumps({"line": line.hex()}).encode() for line in lines]
    (folder / "a_148k.jsonl").write_bytes(b"\n".join(content) + (b"\n" if ends and content else b""))
    parts = find_release(folder).parts("148k", "train", rows_per_part)
    read = [(number, entry["line"]) for part in parts for number, entry in read_lines(part)]
    assert read == [(number, line.hex()) for number, line in enumerate(lines, start=1)]


def test_a_line_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("uniedit_hf.release.raw.MAX_LINE_BYTES", 100)
    (tmp_path / "148k.jsonl").write_bytes(b'{"a": 1}\n' + b"x" * 250 + b'\n{"a": 2}\n')
    (part,) = find_release(tmp_path).parts("148k", "train", 10)
    assert part == Part(str(tmp_path / "148k.jsonl"), 0, 3)
    good, long, last = (entry for _, entry in read_lines(part))
    assert (good, long.reason, last) == ({"a": 1}, "line too long", {"a": 2})
