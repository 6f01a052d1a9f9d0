"""Builds that cannot be are refused with one sentence; one that is stopped ends at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from raw_releases import make_release

from uniedit_hf.cli import main
from uniedit_hf.release.build import build


UNIEDIT = Path(sys.executable).with_name("uniedit")


def test_a_folder_without_rows(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank" / "edits_148k.jsonl").write_text("")
    for source in ("empty", "blank"):
        assert (
            main(["dataset", "build", "--source", str(tmp_path / source), "--output_dir", str(tmp_path / "out")]) == 1
        )
        assert "There are no rows to build: expected manifests named *148k*.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_no_folder(tmp_path):
    source = make_release(tmp_path / "raw", 40, faulty=False).folder
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=f"{output} is a file or lies below one: choose a folder"):
            build(source, output)


def test_a_report_below_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    report = str(tmp_path / "file" / "page.html")
    assert main(["dataset", "validate", "--input_dir", str(tmp_path), "--report", report]) == 1
    assert f"report {report}: {tmp_path / 'file'} is not a folder. Choose another place." in capsys.readouterr().err


def test_an_output_inside_the_source(tmp_path):
    source = make_release(tmp_path / "raw", 40, faulty=False).folder
    (tmp_path / "link").symlink_to(source)
    for output in (source, source / "out", tmp_path / "link" / "out"):
        with pytest.raises(ValueError, match="is in the source .* choose a folder outside"):
            build(source, output)


@pytest.mark.skipif(not hasattr(os, "seteuid") or os.geteuid() != 0, reason="only the superuser can become another")
def test_a_folder_that_may_not_be_read(tmp_path):
    (tmp_path / "raw" / "pictures").mkdir(parents=True)
    code = (
        "import os, sys\nfrom uniedit_hf.release.raw import find_release\nos.chdir(sys.argv[1])\nos.seteuid(65534)\n"
        "try:\n    find_release('raw')\nexcept ValueError as error:\n    sys.exit(str(error))"
    )
    os.chmod(tmp_path / "raw" / "pictures", 0)
    os.chmod(tmp_path / "raw", 0o755)
    os.chmod(tmp_path, 0o755)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=110)
    assert done.stderr.strip() == (
        "The folder raw/pictures cannot be read (Permission denied): change its permissions, or move it away."
    )


def test_names_with_spaces_and_other_letters(tmp_path):
    source = make_release(tmp_path / "roh mit Leerzeichen ü", 40, "zip", faulty=False).folder
    report = build(source, tmp_path / "出力 1")
    assert report.rows == {"148k/train": 40} and not report.faults


def test_a_worker_that_is_killed(tmp_path):
    source = make_release(tmp_path / "raw", 3000, faulty=False).folder
    process = running_build(source, tmp_path / "out", "--rows_per_file", "20", "--num_proc", "2")
    workers = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    workers[0].kill()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in said
    assert "A process of the build was killed, perhaps out of memory: run the same command again" in said


def running_build(source: Path, output: Path, *more: str) -> subprocess.Popen:
    """A build that has begun to write."""
    command = [str(UNIEDIT), "dataset", "build", "--source", str(source), "--output_dir", str(output), *more]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not list(output.glob("*/*.parquet")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_ends_a_build_and_another_cannot_join(tmp_path, workers):
    source = make_release(tmp_path / "raw", 3000, faulty=False).folder
    process = running_build(source, tmp_path / "out", "--rows_per_file", "20", "--num_proc", workers)
    with pytest.raises(ValueError, match="Another build is writing to .*: wait for its end, or choose another folder"):
        build(source, tmp_path / "out", rows_per_file=20)
    begun = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - begun < 30
    assert said.rstrip().endswith("uniedit dataset build: stopped by Ctrl-C") and "Traceback" not in said
    assert build(source, tmp_path / "out", rows_per_file=20).rows == {"148k/train": 3000}
