"""The notebooks of `examples/` run from top to bottom in a fresh folder, and are committed without outputs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
nbformat = pytest.importorskip("nbformat", reason="the extra dev has it")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_small_and_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert path.stat().st_size < 20_000


def ran(path: Path, folder: Path, monkeypatch, **variables: str):
    """The notebook after its cells ran in `folder`; an error in a cell is raised."""
    nbclient = pytest.importorskip("nbclient", reason="the extra dev has it")
    for name, value in ({"UNIEDIT_ROOT": str(ROOT), "PYTHONPATH": str(ROOT)} | variables).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", os.environ["PATH"])
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def outputs(notebook) -> list[dict]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_tour(tmp_path, monkeypatch):
    shown = outputs(ran(ROOT / "examples" / "tour.ipynb", tmp_path, monkeypatch))
    assert sum("image/png" in output.get("data", {}) for output in shown) == 4
    answers = next(
        output["data"]["text/plain"] for output in shown if "red" in output.get("data", {}).get("text/plain", "")
    )
    assert "circle" in answers


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_tuning_on_own_rows(tmp_path, monkeypatch):
    """The model learns from ten rows what two other rows ask for."""
    shown = outputs(ran(ROOT / "examples" / "tune_on_own_rows.ipynb", tmp_path, monkeypatch))
    (line,) = [
        line for output in shown for line in output.get("text", "").splitlines() if line.startswith("Loss on two")
    ]
    before, after = (float(word) for word in line.replace(",", "").split() if word[0].isdigit() and "." in word)
    assert after < 0.7 * before
    assert "image/png" in shown[-1]["data"]
    assert (tmp_path / "runs" / "own_rows" / "model" / "model.safetensors").is_file()
