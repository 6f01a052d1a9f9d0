"""The way to a Hub and back, on loopback: publish, load by the full and the bare name, streamed or not, each from a
fresh process; and an upload that is killed half-way sends nothing twice that had arrived."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hub import ORGANISATION, Fault, RunningHub, running_hub
from huggingface_hub import DatasetCard
from raw_releases import make_release

from uniedit_hf.release.build import build
from uniedit_hf.release.dataset_card import write_card
from uniedit_hf.release.dataset_publishing import publish


UNIEDIT = Path(sys.executable).with_name("uniedit")
REPO = f"{ORGANISATION}/uniedit-148k"
ROWS = {"148k": 120, "40k": 24}


def environment(hub: RunningHub, home: Path) -> dict[str, str]:
    cleared = {name: value for name, value in os.environ.items() if not name.startswith("UNIEDIT_")}
    return cleared | hub.environment | {"HF_HOME": str(home)}


def run_python(code: str, env: dict[str, str], cwd: Path):
    """What a fresh interpreter prints as JSON in its last line."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def publish_command(folder: Path) -> list[str]:
    return [str(UNIEDIT), "dataset", "publish", "--input_dir", str(folder), "--repo_id", REPO]


def uploads(log: list[dict]) -> dict[str, int]:
    """Path and bytes of the large files that arrived whole."""
    return {each["path"]: each["received"] for each in log if each["method"] == "PUT" and each["status"] == 200}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for config, count in ROWS.items():
        make_release(folder / "raw", count, config=config, faulty=False)
    build(folder / "raw", folder / "out", rows_per_file=12)
    return folder / "out"


@pytest.fixture(scope="module")
def hub(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    with running_hub(folder / "server") as hub:
        env = environment(hub, folder / "home")
        done = subprocess.run(publish_command(built), env=env, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0 and f"Published {REPO}" in done.stdout, done.stderr
        yield hub


def test_load_by_the_full_name_without_our_package(hub, tmp_path):
    code = f"""
        import json, sys
        from datasets import get_dataset_config_names, load_dataset
        rows = load_dataset("{REPO}", split="train")
        small = load_dataset("{REPO}", "40k", split="train", streaming=True, columns=["id", "instruction"])
        print(json.dumps({{
            "rows": len(rows), "size": rows[0]["source_image"].size, "columns": rows.column_names,
            "small": [sorted(row) for row in small],
            "configs": get_dataset_config_names("{REPO}"),
            "ours": "uniedit_hf" in sys.modules,
        }}))
    """
    found = run_python(code, environment(hub, tmp_path), tmp_path)
    assert (found["rows"], found["size"], found["ours"]) == (120, [64, 64], False)
    assert found["small"] == [["id", "instruction"]] * 24 and found["configs"] == ["148k", "40k"]


def test_load_by_the_bare_name(hub, tmp_path):
    code = """
        import json
        from datasets import get_dataset_config_names, get_dataset_split_names, load_dataset
        import uniedit_hf
        if __name__ == "__main__":
            rows = load_dataset("uniedit-148k", split="train", num_proc=2)
            whole = load_dataset("uniedit-148k", "40k")
            category = rows.features["task_category"].str2int("count")
            few = load_dataset("uniedit-148k", split="train", streaming=True, columns=["id", "task_category"],
                               filters=[("task_category", "==", category)])
            print(json.dumps({
                "rows": len(rows), "whole": {split: len(part) for split, part in whole.items()},
                "streamed": [row["task_category"] for row in few], "shards": few.num_shards,
                "configs": get_dataset_config_names("uniedit-148k"),
                "splits": get_dataset_split_names("uniedit-148k"),
            }))
    """
    found = run_python(code, environment(hub, tmp_path) | {"UNIEDIT_HUB_REPO": REPO}, tmp_path)
    assert (found["rows"], found["whole"], found["shards"]) == (120, {"train": 24}, 10)
    assert found["streamed"] == [2] * 15
    assert found["configs"] == ["148k", "40k"] and found["splits"] == ["train"]


def test_a_missing_repository_is_a_sentence(hub, tmp_path):
    code = """
        import json, uniedit_hf
        from datasets import load_dataset
        try:
            load_dataset("uniedit-148k")
        except FileNotFoundError as error:
            print(json.dumps(str(error)))
    """
    env = environment(hub, tmp_path) | {"UNIEDIT_HUB_REPO": "nobody/nothing"}
    message = run_python(code, env, tmp_path)
    assert message.startswith("'uniedit-148k' stands for the repository 'nobody/nothing' in UNIEDIT_HUB_REPO, ")


def test_publishing_again_sends_nothing(hub, built, tmp_path):
    hub.clear()
    done = subprocess.run(publish_command(built), env=environment(hub, tmp_path), capture_output=True, text=True)
    assert done.returncode == 0 and uploads(hub.log()) == {}, done.stderr
    assert not any("/commit/" in each["path"] for each in hub.log())


def test_the_card_parses_and_leaves_no_local_path(built):
    card = DatasetCard.load(built / "README.md")
    assert [config["config_name"] for config in card.data.configs] == ["148k", "40k"]
    assert card.data.configs[0]["default"] and card.data.license == "other"
    assert {info["config_name"]: info["splits"][0]["num_examples"] for info in card.data.dataset_info} == ROWS
    terms = [card.data[f"license_{part}"] for part in ("code", "source_images", "generated_images")]
    assert all(terms) and len(set(terms)) == 3
    assert "| count | 15 | 12.5 % | 13.5 % |" in card.text and "@article{uniedit2026" in card.text
    assert str(built.parent) not in card.content


def test_an_upload_killed_half_way_goes_on(built, tmp_path):
    files = [*built.glob("*/*.parquet"), *built.glob("assets/*")]
    # The Hub keeps contents: files that are the same in both configurations travel once.
    contents = {f"/lfs/{hashlib.sha256(path.read_bytes()).hexdigest()}": path.stat().st_size for path in files}
    half = len(contents) // 2
    with running_hub(tmp_path / "server") as hub:
        env = environment(hub, tmp_path / "home")
        hub.inject(Fault("PUT", "/lfs/", action="stall", after=half, times=-1))
        with subprocess.Popen(publish_command(built), env=env, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 60
            while sum(each["status"] == "stalled" for each in hub.log()) < 2 and time.monotonic() < deadline:
                assert process.poll() is None
                time.sleep(0.05)
            process.kill()
        before = hub.log()
        first = uploads(before)
        assert len(first) == half and not any("/commit/" in each["path"] for each in before)

        hub.clear()
        done = subprocess.run(publish_command(built), env=env, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        second = uploads(hub.log())
        assert not first.keys() & second.keys()
        assert first | second == contents  # every byte once
        code = f"""
            import json
            from huggingface_hub import HfApi
            tags = HfApi().list_repo_refs("{REPO}", repo_type="dataset").tags
            print(json.dumps([HfApi().list_repo_files("{REPO}", repo_type="dataset"), [tag.name for tag in tags]]))
        """
        listed, tags = run_python(code, env, tmp_path)
        small = {"README.md", "LICENSE.md", ".gitattributes"}
        assert set(listed) == {str(path.relative_to(built)) for path in files} | small
        assert tags == ["v1.0.0"]


def test_the_card_of_ones_own_rows_has_ones_own_title(built, tmp_path):
    """And no shares of the paper, which say nothing about them."""
    folder = tmp_path / "built"
    shutil.copytree(built, folder)
    card = DatasetCard.load(write_card(folder, "me/my-drawings"))
    assert card.data.pretty_name == "my-drawings" and "# my-drawings\n" in card.text
    assert "published" not in card.text and "| count | 15 | 12.5 % |\n" in card.text
    card = DatasetCard.load(write_card(folder, "me/uniedit-148k"))
    assert card.data.pretty_name == "Uni-Edit 148k" and "| count | 15 | 12.5 % | 13.5 % |\n" in card.text


def test_an_unfinished_build_is_not_published(built, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(built, folder)
    (folder / "148k" / "train-00003-of-00010.parquet").unlink()
    with pytest.raises(ValueError, match="train-00003-of-00010.parquet is missing. Run `uniedit dataset"):
        publish(folder, REPO)


@pytest.mark.slow
def test_a_tag_does_not_move(built, hub, tmp_path):
    folder = tmp_path / "changed"
    make_release(tmp_path / "raw", 5, faulty=False)
    build(tmp_path / "raw", folder)
    env = environment(hub, tmp_path / "home")
    done = subprocess.run(publish_command(folder), env=env, capture_output=True, text=True)
    assert done.returncode == 1 and "its tag v1.0.0 names an earlier revision" in done.stderr
    code = f"""
        import json
        from datasets import load_dataset
        old = load_dataset("{REPO}", split="train", revision="v1.0.0", streaming=True, columns=["id"])
        new = load_dataset("{REPO}", split="train", streaming=True, columns=["id"])
        print(json.dumps([sum(1 for _ in old), sum(1 for _ in new)]))
    """
    assert run_python(code, env, tmp_path) == [120, 5]
