"""The modules of `metrics/`, loaded from their folders and from a Hub on loopback as users of `evaluate` do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub import ORGANISATION, running_hub
from PIL import Image

from uniedit_hf.evaluation.scorers.pixels import score_edit


METRICS = Path(__file__).parents[1] / "metrics"


def load(name: str):
    evaluate = pytest.importorskip("evaluate", reason="evaluate is not installed: pip install uniedit_hf[evaluation]")
    return evaluate.load(str(METRICS / name))


def half(left: str, right: str) -> Image.Image:
    image = Image.new("RGB", (8, 4), left)
    image.paste(right, (4, 0, 8, 4))
    return image


@pytest.mark.parametrize(
    "result, expected",
    [
        (half("red", "blue"), {"success": 1.0, "preservation": 1.0}),
        (half("red", "white"), {"success": 0.0, "preservation": 1.0}),
        (half("white", "blue"), {"success": 1.0, "preservation": 0.0}),
        (half("#f00c0c", "blue"), {"success": 1.0, "preservation": 1.0}),  # not to be seen
    ],
)
def test_edits_are_scored_by_what_changes_and_what_stays(result, expected):
    assert score_edit(result, half("red", "white"), half("red", "blue")) == expected


def test_nothing_to_change_has_no_success():
    same = half("red", "blue")
    assert score_edit(same, same, same) == {"success": None, "preservation": 1.0}
    with pytest.raises(ValueError, match="differ in size"):
        score_edit(same, same.resize((4, 4)), same)


def test_edit_success_loads_from_its_folder():
    found = load("edit_success").compute(
        predictions=[half("red", "blue"), half("red", "white")],
        references=[half("red", "blue")] * 2,
        sources=[half("red", "white")] * 2,
    )
    assert found == {"success": 0.5, "preservation": 1.0}


def test_exact_match_loads_from_its_folder():
    found = load("vqa_exact_match").compute(predictions=["Red.", "two", "no"], references=["red", "two", "yes"])
    assert found["exact_match"] == pytest.approx(2 / 3)


PROGRAM = """
import sys
import evaluate
from huggingface_hub import HfApi
from PIL import Image

owner, folder = sys.argv[1:]
for name in ("vqa_exact_match", "edit_success"):
    HfApi().create_repo(f"{owner}/{name}", repo_type="space", space_sdk="gradio")
    HfApi().upload_folder(folder_path=f"{folder}/{name}", repo_id=f"{owner}/{name}", repo_type="space")
print(evaluate.load(f"{owner}/vqa_exact_match").compute(predictions=["Red."], references=["red"]))
red, blue = ([Image.new("RGB", (4, 4), color)] for color in ("red", "blue"))
print(evaluate.load(f"{owner}/edit_success").compute(predictions=blue, references=blue, sources=red))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_both_load_from_a_hub(tmp_path):
    with running_hub(tmp_path / "hub") as hub:
        environment = os.environ | hub.environment | {"HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-c", PROGRAM, ORGANISATION, METRICS]
        done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["{'exact_match': 1.0}", "{'success': 1.0, 'preservation': None}"]
