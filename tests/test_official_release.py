"""`load_dataset("uniedit-148k")` with nothing set: the authors' release, a Hub on loopback, fresh processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub import Fault, RunningHub, running_hub
from raw_releases import LAYOUTS, make_release


REPO = "Uni-Edit/Train-Data"
UPLOAD = f"""
import sys
from huggingface_hub import HfApi
HfApi().create_repo("{REPO}", repo_type="dataset", exist_ok=True)
print(HfApi().upload_folder(repo_id="{REPO}", repo_type="dataset", folder_path=sys.argv[1]).oid)
"""
LOAD = """
import json, sys
import uniedit_hf
from datasets import get_dataset_config_names, load_dataset
options = json.loads(sys.argv[1])
if options.pop("names", False):
    print(json.dumps(get_dataset_config_names("uniedit-148k")))
else:
    rows = load_dataset("uniedit-148k", split="train", **options)
    print(json.dumps({"ids": [row["id"] for row in rows], "size": next(iter(rows))["target_image"].size}))
"""


def environment(hub: RunningHub, home: Path) -> dict[str, str]:
    cleared = {name: value for name, value in os.environ.items() if not name.startswith("UNIEDIT_")}
    return cleared | hub.environment | {"HF_HOME": str(home)}


def run(code: str, env: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=env, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def load(env: dict[str, str], **options) -> dict:
    return json.loads(run(LOAD, env, json.dumps(options)))


def downloads(hub: RunningHub) -> list[str]:
    return [each["path"] for each in hub.log() if each["method"] == "GET" and "/resolve/" in each["path"]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_loads_and_no_other_repository_is_asked(layout, tmp_path):
    made = make_release(tmp_path / "release", 12, layout, faulty=False)
    with running_hub(tmp_path / "hub") as hub:
        env = environment(hub, tmp_path / "home")
        run(UPLOAD, env, str(made.folder))
        hub.clear()
        assert load(env, names=True) == ["148k", "40k"] and downloads(hub) == []
        found = load(env)
        assert len(set(found["ids"])) == 12 and found["size"] == [64, 64]
        assert {each["path"] for each in hub.log() if REPO not in each["path"]} == set()
    assert load(env) == found, "read again without a Hub"
    assert load(env, streaming=True) == found


def test_a_revision_is_pinned(tmp_path):
    first = make_release(tmp_path / "first", 5, faulty=False)
    second = make_release(tmp_path / "second", 9, faulty=False)
    with running_hub(tmp_path / "hub") as hub:
        env = environment(hub, tmp_path / "home")
        commits = [run(UPLOAD, env, str(made.folder)) for made in (first, second)]
        counts = [len(load(env, revision=commit)["ids"]) for commit in (*commits, None)]
        assert counts == [5, 9, 9]
        failed = subprocess.run(
            [sys.executable, "-c", LOAD, json.dumps({"revision": "nowhere"})], env=env, capture_output=True, text=True
        )
        assert "has no such revision on the Hub" in failed.stderr.splitlines()[-1]


def test_a_killed_download_resumes(tmp_path):
    made = make_release(tmp_path / "release", 12, faulty=False)
    with running_hub(tmp_path / "hub") as hub:
        env = environment(hub, tmp_path / "home")
        run(UPLOAD, env, str(made.folder))
        hub.clear()
        hub.inject(Fault("GET", "/resolve/.*png", after=10, action="stall", times=100))
        with subprocess.Popen([sys.executable, "-c", LOAD, "{}"], env=env, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 60
            while len(list((tmp_path / "home").rglob("*.png.metadata"))) < 10:  # written when a file is in place
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.05)
            process.kill()
        whole = {each["path"] for each in hub.log() if each["method"] == "GET" and each["sent"]}
        assert len([path for path in whole if path.endswith(".png")]) == 10
        hub.clear()
        assert len(load(env)["ids"]) == 12
        again = set(downloads(hub))
    assert again and not again & {path for path in whole if path.endswith(".png")}


def test_without_a_network_one_sentence_says_both_ways(tmp_path):
    env = dict(os.environ) | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    failed = subprocess.run([sys.executable, "-c", LOAD, "{}"], env=env, capture_output=True, text=True, timeout=100)
    message = failed.stderr.splitlines()[-1]
    assert message.startswith(f"OSError: {REPO} ") and "could not be reached" in message
    assert "data_dir" in message and "UNIEDIT_HUB_REPO" in message


def test_a_folder_has_no_revision(tmp_path):
    env = dict(os.environ) | {"UNIEDIT_DATA_DIR": str(tmp_path)}
    failed = subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps({"revision": "main"})], env=env, capture_output=True, text=True
    )
    assert "leave out one of the two" in failed.stderr.splitlines()[-1]
