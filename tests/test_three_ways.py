"""The benchmark of the three ways of asking, with few edits, steps and items: it resumes where it was stopped."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.small_world import table
from uniedit_hf.evaluation.intervals import paired_difference
from uniedit_hf.small_world import suite as small_world


ROOT = Path(__file__).parents[1]


def test_the_table_follows_from_the_scores(tmp_path):
    items = small_world.read()[:60]
    random = np.random.default_rng(0)
    scores = {"base": random.integers(2, size=(1, 60)), "question": random.integers(2, size=(5, 60))}
    scores["answer"] = np.ones((5, 60))
    text = table(items, scores, [("question", "answer")], tmp_path / "table.json").splitlines()
    assert text[0] == "|  | base | question | answer | question - answer |" and len(text) == 2 + 11
    facts = json.loads((tmp_path / "table.json").read_text())
    for line, (name, indices) in zip(text[2:], small_world.groups(items).items(), strict=True):
        base, question = scores["base"][0, indices], scores["question"][:, indices].mean(axis=0)
        difference, low, high = paired_difference(question, base)
        assert facts[name]["question"] == {"difference": difference, "low": low, "high": high}
        assert facts[name]["question - answer"]["difference"] == pytest.approx(question.mean() - 1)
        assert len(facts[name]["seeds"]["question"]) == 5
        assert line.startswith(f"| {name}, n {len(indices)} | {100 * base.mean():.1f} | ")
        points = f"{100 * difference:+.1f}".replace("-0.0", "+0.0")
        assert (f"**{points}**" if low > 0 or high < 0 else f"| {points}") in line


def the_table(output: str) -> list[str]:
    """The benchmark's output without the trainer's."""
    return [line for line in output.splitlines() if line.startswith("|")]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stopped_benchmark_goes_on(tmp_path):
    small = ["--steps", "2", "--edits", "40", "--items", "2", "--seeds", "1", "--jobs", "1"]

    def run(*options: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "benchmarks.three_ways", "--output_dir", str(tmp_path), *small, *options]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    first = run()
    assert first.returncode == 0, first.stderr
    kept = {
        path: path.stat().st_mtime_ns for path in tmp_path.glob("*/items.jsonl") if "answer" not in path.parent.name
    }
    assert len(kept) == 3
    shutil.rmtree(tmp_path / "answer-0")
    assert the_table(run().stdout) == the_table(first.stdout) != []
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    other = run("--steps", "3")
    assert (
        other.returncode == 1
        and "holds a benchmark with other settings (steps is 2 in one and 3 in the other)" in other.stderr
    )
