"""Files and folders appear whole or not at all, and a full disk is told with the name of what could not be written."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from raw_releases import make_release
from safetensors.torch import save_file
from training_data import edit_rows, save_checkpoint, save_parquet

from uniedit_hf.files import DiskFullError, disk_errors_name, write_text, written_file, written_folder


UNIEDIT = str(Path(sys.executable).with_name("uniedit"))
NOISE = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# --- appearing whole ------------------------------------------------------------------------------------------------


def test_a_file_appears_at_the_end(tmp_path):
    path = tmp_path / "new" / "file.json"
    with written_file(path) as part:
        part.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first" and names(tmp_path) == {"new", "new/file.json"}
    write_text(path, "sécond")
    assert path.read_bytes() == "sécond".encode()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_the_earlier_file_stays(tmp_path, error):
    (tmp_path / "file").write_text("earlier")
    with pytest.raises(error), written_file(tmp_path / "file") as part:
        part.write_text("half")
        raise error
    assert (tmp_path / "file").read_text() == "earlier" and names(tmp_path) == {"file"}


def test_a_folder_replaces_the_earlier_one_at_the_end(tmp_path):
    with written_folder(tmp_path / "data") as part:
        (part / "one").write_text("1")
        assert not (tmp_path / "data").exists()
    with written_folder(tmp_path / "data") as part:
        (part / "two").write_text("2")
        assert names(tmp_path / "data") == {"one"}
    assert names(tmp_path) == {"data", "data/two"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_the_earlier_folder_stays(tmp_path, error):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "earlier").touch()
    with pytest.raises(error), written_folder(tmp_path / "data") as part:
        (part / "new").touch()
        raise error
    assert names(tmp_path) == {"data", "data/earlier"}


def test_what_a_killed_process_left_is_replaced(tmp_path):
    program = (
        "import os, signal; from uniedit_hf.files import written_folder\n"
        f"with written_folder({str(tmp_path / 'data')!r}) as part:\n"
        "    (part / 'half').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGKILL
    assert not (tmp_path / "data").exists()
    with written_folder(tmp_path / "data") as part:
        (part / "whole").touch()
    assert names(tmp_path) == {"data", "data/whole"}


# --- a full disk ----------------------------------------------------------------------------------------------------


def test_writing_to_a_full_device_names_the_file(tmp_path):
    (tmp_path / f".page.html.{os.getpid()}.part").symlink_to("/dev/full")
    with pytest.raises(DiskFullError) as caught:
        write_text(tmp_path / "page.html", "text")
    assert str(caught.value) == (
        f"{tmp_path / 'page.html'} could not be written: No space left on device. Free some space, or choose a folder "
        "on another disk."
    )
    assert names(tmp_path) == set()


def test_the_innermost_name_is_told(tmp_path):
    (tmp_path / f".inner.{os.getpid()}.part").symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match=r"/inner could not"), disk_errors_name(tmp_path / "outer"):
        write_text(tmp_path / "inner", "text")


def test_other_errors_pass_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"), disk_errors_name(tmp_path):
        (tmp_path / "missing").read_text()


def store_in_database(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA max_page_count = 8")
        connection.execute("CREATE TABLE pieces (bytes)")
        connection.execute("INSERT INTO pieces VALUES (?)", (NOISE.tobytes(),))


WRITERS = {
    "bytes": lambda path: path.write_bytes(NOISE.tobytes()),
    "image": lambda path: Image.fromarray(NOISE.reshape(1000, 100, 3)).save(path, "PNG"),
    "numpy": lambda path: np.savez(open(path, "wb"), NOISE),
    "parquet": lambda path: pq.write_table(pa.table({"numbers": NOISE}), path),
    "torch": lambda path: torch.save(torch.from_numpy(NOISE), path),
    "safetensors": lambda path: save_file({"numbers": torch.from_numpy(NOISE)}, path),
    "sqlite": store_in_database,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_names_the_file(tmp_path, name):
    largest, hard = 64 * 1024, resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
    try:
        with pytest.raises(DiskFullError) as caught, written_file(tmp_path / name) as part:
            WRITERS[name](part)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert str(caught.value).startswith(f"{tmp_path / name} could not be written: ")
    assert names(tmp_path) == set()


CAN_MOUNT = shutil.which("unshare") is not None and (
    subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "true"], capture_output=True).returncode == 0
)
needs_small_disk = pytest.mark.skipif(not CAN_MOUNT, reason="this user cannot mount a small disk of its own")


def on_small_disk(folder: Path, kilobytes: int, command: list[str]) -> tuple[int, str, list[str]]:
    """Runs a command where `folder` is a disk of that size, in a mount namespace of its own.

    Returns:
        The exit code, what it printed to stderr, and the hidden files and folders that lie there afterwards.
    """
    folder.mkdir(exist_ok=True)
    script = (
        f'mount -t tmpfs -o size={kilobytes}k tmpfs "$0" && {{ "$@" >&2; code=$?; '
        'find "$0" -name ".*.part"; find "$0" -name ".*.part.*"; exit $code; }'
    )
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(folder), *command]
    done = subprocess.run(unshare, capture_output=True, text=True)
    return done.returncode, done.stderr, done.stdout.split()


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    make_release(folder / "raw", 300, faulty=False)
    save_checkpoint(folder / "model")
    save_parquet(edit_rows(8), folder / "edits")
    image = NOISE[: 64 * 64 * 3].reshape(64, 64, 3)
    Image.fromarray(image).save(folder / "image.png")
    (folder / "settings.yaml").write_text(
        "source: {kind: planned_edits}\ninstruct: {backend: rules}\nedit: {backend: exact}\nverify: {judge: rules}\n"
        "decontaminate: {near_duplicates: false}\nscreen: {similarity: null}\n"
        "balance: {size: 100, shares: {shape: 1, color: 1}}\n"
    )
    return folder


TRAIN = "train --model_name_or_path {sources}/model --dataset_name {sources}/edits --use_cpu true --max_steps 1 "
TRAIN += "--gradient_accumulation_steps 1 --max_tokens_per_pack 120 --attn_implementation sdpa --dtype float32 "
TRAIN += (
    "--optim adamw_torch --vit_longest_edge 56 --dataloader_num_workers 0 --report_to none --output_dir {disk}/out"
)
COMMANDS = {
    "build": (100, "dataset build --source {sources}/raw --output_dir {disk}/out"),
    "build in two processes": (100, "dataset build --source {sources}/raw --output_dir {disk}/out --num_proc 2"),
    "synthesize": (60, "synthesize --config {sources}/settings.yaml --output_dir {disk}/out"),
    "train": (400, TRAIN),
    "edit": (4, "edit --model {sources}/model --image {sources}/image.png --instruction red --output {disk}/out.png"),
    "latents": (16, "dataset latents --dataset_name {sources}/edits --model_name_or_path {sources}/model "
                     "--output_dir {disk}/out"),
}  # fmt: skip


@needs_small_disk
@pytest.mark.parametrize(
    "name", ["build", *(pytest.param(name, marks=pytest.mark.slow) for name in COMMANDS if name != "build")]
)
def test_a_command_names_what_it_could_not_write(sources, tmp_path, name):
    kilobytes, command = COMMANDS[name]
    disk = tmp_path / "disk"
    words = command.format(sources=sources, disk=disk).split()
    code, told, left = on_small_disk(disk, kilobytes, [UNIEDIT, *words])
    assert code == 1 and "Traceback" not in told, told
    sentence = next(line for line in told.splitlines() if "could not be written" in line)  # perhaps behind a bar
    assert (
        f"uniedit {words[0]}" in sentence
        and f": {disk}/out" in sentence
        and "No space left on device. Free some" in sentence
    )
    assert left == []
