"""The small world as a suite: its runs go on, count as the quickstart counts, and need neither prompts nor a judge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from uniedit_hf import UniEditPipeline
from uniedit_hf.cli import main
from uniedit_hf.evaluation.comparison import compare
from uniedit_hf.evaluation.comparison_report import html
from uniedit_hf.evaluation.intervals import paired_difference
from uniedit_hf.evaluation.suites import suite
from uniedit_hf.small_world import suite as small_world


ROOT = Path(__file__).parents[1]
BASE = ROOT / "assets" / "small_bagel"


@pytest.fixture(scope="module")
def items():
    return suite("small_world").read()


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """The base with other weights where images come from."""
    folder = tmp_path_factory.mktemp("models") / "tuned"
    pipeline = UniEditPipeline.from_pretrained(BASE)
    with torch.no_grad():
        for name, weight in pipeline.model.named_parameters():
            if "llm2vae" in name or "lm_head" in name:
                weight.mul_(0.7)
    pipeline.save_pretrained(folder)
    (folder / "README.md").write_text("# Tuned\n")
    return folder


def evaluate(tuned: Path, output: Path, *flags) -> int:
    command = ["evaluate", "--suite", "small_world", "--model", tuned, "--baseline", BASE, "--output_dir", output]
    return main([str(word) for word in (*command, "--limit", 12, "--drawing", '{"num_timesteps": 3}', *flags)])


def test_the_first_items_are_of_all_kinds(items):
    assert len(items) == len({item.name for item in items}) == 600
    assert [item.kind for item in items[2:6]] == ["drawing", "drawing", "plain", "intelligent"]
    sizes = {name: len(indices) for name, indices in small_world.groups(items[:12]).items()}
    assert sizes == {
        "understanding": 4, "generation": 4, "editing": 4, "plain": 2, "plain, vit": 1, "plain, both": 1,
        "intelligent": 2, "intelligent, vit": 1, "intelligent, both": 1, "intelligent, to leave": 2,
    }  # fmt: skip


def test_the_command_runs_goes_on_and_compares(tuned, items, tmp_path, capsys):
    assert evaluate(tuned, tmp_path) == 0
    first = (tmp_path / "result.json").read_bytes()
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/images/*/*") if path.is_file()}
    assert len(made) == 24 and sum(path.suffix == ".txt" for path in made) == 8
    gone = next(path for path in made if path.suffix == ".png")
    gone.unlink()
    assert evaluate(tuned, tmp_path) == 0
    assert (tmp_path / "result.json").read_bytes() == first  # the image that was gone came out the same
    assert all(path.stat().st_mtime_ns == time for path, time in made.items() if path != gone)

    result = json.loads(first)
    assert result["runs"]["tuned"]["statuses"] == {"ok": 12}
    by_item = result["paired"]["by_item"]
    for name, indices in small_world.groups(items[:12]).items():
        ours, theirs = zip(*(by_item[items[index].name] for index in indices))
        difference, low, high = paired_difference(ours, theirs)
        stated = result["paired_groups"][name]
        interval = [low, high] if len(indices) > 1 else None  # one item has none
        assert (stated["difference"], stated["interval"]) == (difference, interval)
        assert result["runs"]["baseline"]["summary"][name] == pytest.approx(sum(theirs) / len(theirs))
    text = (tmp_path / "result.md").read_text()
    changed, row = next(
        (each, line) for line in text.splitlines() for name, each in result["paired_groups"].items()
        if line.startswith(f"| {name} |") and each["items"] > 1 and not each["interval_note"]
    )  # fmt: skip
    low, high = changed["interval"]
    assert f"| {low:+.3f} to {high:+.3f} | {changed['better']}, {changed['worse']} | {changed['items']} |" in row
    assert "detected by the small world's reader" in text
    assert "### Evaluation" not in (tuned / "README.md").read_text()  # whole runs only, not one with limit
    assert "| intelligent |" in capsys.readouterr().out


def test_a_page_shows_answers_as_text(items, tmp_path):
    asked = items[0]
    for name, answer in (("tuned", "a <b>"), ("baseline", asked.expected)):
        path = small_world.output_path(tmp_path / name, asked, 0)
        path.parent.mkdir(parents=True)
        path.write_text(answer)
    folders = {name: tmp_path / name for name in ("tuned", "baseline")}
    found = {name: small_world.outcomes([asked], [0], folder) for name, folder in folders.items()}
    result = {"suite": "small_world", "preset": "of the suite", "detector": "the reader"}
    result["models"] = {name: name for name in folders}
    result |= compare(small_world, [asked], [0], found["tuned"], found["baseline"])
    page = html(result, [asked], folders)
    assert "tuned: a &lt;b&gt;, 0.000" in page and f"baseline: {asked.expected}, 1.000" in page


@pytest.mark.parametrize("family", ["bagel", "janus"])
def test_a_run_scores_as_the_quickstart_does(family, items, tmp_path):
    folder = ROOT / "assets" / f"small_{family}"
    pipeline = UniEditPipeline.from_pretrained(folder, batch_size=4)
    few = items[:6]
    outputs = small_world.outputs_of(pipeline, few, family)
    assert small_world.draw(pipeline, few, [0], tmp_path, {}) == 6
    assert small_world.draw(pipeline, few, [0], tmp_path, {}) == 0
    found = small_world.outcomes(few, [0], tmp_path)
    for item, output in zip(few, outputs):
        assert found[item.name, 0].value == small_world.score(item, output).right
        path = small_world.output_path(tmp_path, item, 0)
        assert path.read_text() == output if item.ability == "understanding" else path.stat().st_size > 0
    edits = [item for item in few if item.ability == "editing"]
    small_world.draw(pipeline, edits, [1], tmp_path, {})
    first, second = (small_world.output_path(tmp_path, edits[0], seed).read_bytes() for seed in (0, 1))
    assert first != second


def test_processes_share_the_items_out(items, tmp_path):
    pipeline = UniEditPipeline.from_pretrained(BASE, batch_size=4)
    fast = {"num_timesteps": 2}
    counts = [small_world.draw(pipeline, items[:5], [0], tmp_path / str(rank), fast, rank, 2) for rank in range(2)]
    assert counts == [3, 2]
    with pytest.raises(ValueError, match="2 of 5 answers and images are missing"):
        small_world.outcomes(items[:5], [0], tmp_path / "0")
    shutil.copytree(tmp_path / "1", tmp_path / "0", dirs_exist_ok=True)
    assert len(small_world.outcomes(items[:5], [0], tmp_path / "0")) == 5


def test_mistakes_are_one_sentence(tuned, tmp_path, capsys):
    assert evaluate(tuned, tmp_path / "out", "--prompts", "x.json") == 1
    assert "makes its items and images itself" in capsys.readouterr().err
    command = ["evaluate", "--suite", "wise", "--model", str(tuned), "--output_dir", str(tmp_path / "out")]
    assert main(command) == 1
    assert "wise needs its prompt file: give it as prompts." in capsys.readouterr().err
    assert evaluate(tuned, tmp_path / "out", "--compat", "uniedit") == 1
    assert "cannot be scored as uniedit" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
