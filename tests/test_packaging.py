"""The wheel, installed into an environment of its own outside the repository, works without it."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest
from installed_wheel import environment, run
from raw_releases import make_release

from uniedit_hf.cli import COMMANDS


pytest_plugins = ["installed_wheel"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def outside(tmp_path) -> dict:
    """Where and how to run, so that nothing of the repository can be found by accident."""
    return {"cwd": tmp_path, "env": environment()}


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"uniedit_hf"}
    assert {"uniedit_hf/cli/convert.py", "uniedit_hf/models/bagel/modeling_bagel.py"} <= set(names)
    assert {"uniedit_hf/dataset_builder/uniedit_148k.py", "uniedit_hf/release/templates/card.md.j2"} <= set(names)
    assert {"uniedit_hf/demo/main.py", "uniedit_hf/demo/examples/examples.json"} <= set(names)
    assert "License-Expression: Apache-2.0" in metadata and "Requires-Python: >=3.11" in metadata


def test_import(installed, outside):
    code = "import uniedit_hf; [getattr(uniedit_hf, name) for name in uniedit_hf.__all__]; print(uniedit_hf.__file__)"
    assert Path(run(installed / "python", "-c", code, **outside).strip()).is_relative_to(installed.parent)


def test_every_help(installed, outside):
    assert "quickstart" in run(installed / "uniedit", "--help", **outside)
    for command in COMMANDS:
        for flag in ("--help", "--help_all"):
            assert run(installed / "uniedit", *command.split(), flag, **outside).startswith(
                f"usage: uniedit {command}"
            )


def test_the_demo_without_a_clone(installed, outside):
    """It says what is missing, as the quickstart does; its own modules are there."""
    run(installed / "python", "-c", "from uniedit_hf.demo import main, deploy", **outside)
    for command, lacking in (("demo", "There is no tuned model"), ("quickstart", "it comes with a clone of the repo")):
        result = subprocess.run(
            [installed / "uniedit", command], capture_output=True, text=True, timeout=100, **outside
        )
        assert result.returncode == 1 and lacking in result.stderr


def test_the_data_set_by_its_name(installed, outside, tmp_path):
    make_release(tmp_path / "raw", 5, faulty=False)
    command = ["dataset", "build", "--source", tmp_path / "raw", "--output_dir", tmp_path / "out"]
    assert "148k/train: 5 rows" in run(installed / "uniedit", *command, **outside)
    code = (
        "import uniedit_hf; from datasets import load_dataset; "
        f"print(len(load_dataset('uniedit-148k', split='train', data_dir={str(tmp_path / 'raw')!r})))"
    )
    assert run(installed / "python", "-c", code, **outside).strip() == "5"
