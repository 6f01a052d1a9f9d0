"""The wheel, installed into an environment of its own outside the repository, works without it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from raw_releases import make_release

from uniedit_hf.cli import COMMANDS


ROOT = Path(__file__).parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(*command, **options) -> str:
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    # Built from a copy, so that setuptools leaves nothing behind in the repository.
    folder = tmp_path_factory.mktemp("wheel")
    tracked = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    for name in tracked:
        if not name.startswith("tests/") and (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, folder / "source")
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The folder of programs of a fresh environment that holds our wheel and borrows the libraries of this one."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--quiet", wheel)
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin"


@pytest.fixture
def outside(tmp_path) -> dict:
    """Where and how to run, so that nothing of the repository can be found by accident."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {"cwd": tmp_path, "env": environment}


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
