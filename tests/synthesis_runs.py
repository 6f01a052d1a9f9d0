"""Settings and processes for tests of synthesis."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import yaml
from model_server import ModelServer


CHAT, EDITOR = 8, 4  # calls in flight


def settings_for(server: ModelServer, output_dir: Path, rows: int, **sections) -> dict:
    """A run over easy-VQA's questions in which every model is the server."""
    common = {"attempts": 4, "first_wait": 0.02, "timeout": 4.0, "base_url": f"{server.address}/v1"}
    return {
        "output_dir": str(output_dir),
        "source": {"kind": "easy_vqa", "limit": rows},
        "backends": {
            "chat": {"kind": "openai", "model": "chat-1", "concurrency": CHAT, **common},
            "editor": {"kind": "openai_images", "model": "draw-1", "concurrency": EDITOR, **common},
        },
        "classify": {"backend": "chat"},
        "instruct": {"backend": "chat"},
        "edit": {"backend": "editor"},
        "verify": {"judge": "chat", "quality": "chat"},
        "screen": {"similarity": 0.95},
        **sections,
    }


def write_settings(settings: dict, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def start(config: Path, *flags: str, **environment: str) -> subprocess.Popen:
    """`uniedit synthesize` in a process of its own."""
    command = [sys.executable, "-m", "uniedit_hf.cli", "synthesize", "--config", str(config), *flags]
    return subprocess.Popen(
        command,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, timeout: float = 600) -> str:
    """What it printed, once it is done; everything it started is gone afterwards, too."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, out + err
    return out


def kill_when_answered(process: subprocess.Popen, server: ModelServer, calls: int) -> bool:
    """SIGKILL as soon as the server has answered so many calls. Whether it came to that."""
    try:
        while process.poll() is None:
            if server.calls >= calls:
                return True
            time.sleep(0.002)
        return False
    finally:  # a test that is stopped leaves nothing running, either
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def killed_run(settings: dict, server: ModelServer, folder: Path, kills: int, total: int) -> tuple[int, list[int]]:
    """Kills a run at random numbers of calls and finishes it. How often it was killed, and repeated calls per kill.

    Args:
        settings: Of the run.
        server: That it asks, and that nobody has asked before.
        folder: For the file of settings.
        kills: How often it is killed.
        total: Calls of the whole run.
    """
    config = write_settings(settings, folder / "killed.yaml")
    moments = sorted(random.Random(1).sample(range(1, max(kills + 1, total - CHAT)), kills))
    struck, repeated = 0, []
    for moment in moments:
        before = server.repeated
        if kill_when_answered(start(config), server, moment + sum(repeated)):
            struck += 1
        time.sleep(0.3)  # what was in flight is answered into the void
        repeated.append(server.repeated - before)
    before = server.repeated
    finish(start(config))
    repeated.append(server.repeated - before)
    return struck, repeated


def result_of(output_dir: Path) -> tuple[list[tuple], list[dict]]:
    """Everything that a run made, in order: rows with hashes of their images, and rejections."""
    rows = []
    for file in sorted((output_dir / "dataset").glob("*.parquet")):
        for row in pq.read_table(file).to_pylist():
            for side in ("source_image", "target_image"):
                row[side] = hashlib.sha256(row[side]["bytes"]).hexdigest()
            rows.append(tuple(map(str, row.values())))
    return rows, pq.read_table(output_dir / "rejects.parquet").to_pylist()
