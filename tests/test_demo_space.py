"""The Space: its files, `uniedit demo --deploy` to a Hub on loopback, and what was uploaded, started from a fresh
folder without the repository; the command's mistakes."""

from __future__ import annotations

import configparser
import json
import os
import re
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from hub import ORGANISATION, USER, running_hub
from huggingface_hub import metadata_load
from training_data import save_checkpoint

from uniedit_hf.cli import demo, main


pytest.importorskip("gradio", reason="the page needs the extra demo")

ROOT = Path(__file__).parents[1]
SPACE = ROOT / "spaces" / "uniedit_demo"


def test_the_files_of_the_space():
    card = metadata_load(SPACE / "README.md")
    assert card["sdk"] == "gradio" and card["app_file"] == "app.py" and len(card["models"]) == 2
    assert len(card["short_description"]) <= 60 and card["license"] == "apache-2.0"
    constraints = (ROOT / "constraints.txt").read_text()
    assert f"gradio=={card['sdk_version']}\n" in constraints
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    needed = set(setup["options"]["install_requires"].split())
    stated = {line for line in (SPACE / "requirements.txt").read_text().splitlines() if not line.startswith("#")}
    assert stated == needed
    assert not (SPACE.parent / "__init__.py").exists()


def run(command: list, environment: dict, folder: Path) -> str:
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=150, cwd=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


UPLOAD = """
import sys
from huggingface_hub import HfApi
for name in ("base", "tuned"):
    HfApi().create_repo(f"ORG/{name}", exist_ok=True)
    HfApi().upload_folder(repo_id=f"ORG/{name}", folder_path=sys.argv[1])
"""


ZERO_GPU = """
asked = []

def GPU(duration):
    def decorate(function):
        asked.append((function.__name__, duration))
        return function
    return decorate
"""

ON_ZERO_GPU = """
import json, sys
from uniedit_hf.demo import models
gpu = models.zero_gpu()
found = {"torch": "torch" in sys.modules}
import spaces
from demo_pages import tiny_pair
from uniedit_hf.demo.main import build
page = build(tiny_pair(), gpu=gpu)
found |= {"file": getattr(spaces, "__file__", None), "asked": sorted(getattr(spaces, "asked", []))}
print(json.dumps(found))
"""


@pytest.mark.parametrize("installed", [True, False])
def test_zero_gpu_in_the_root_of_a_clone(tmp_path, installed):
    """The package `spaces` of Hugging Face wins over our folder of that name, and gets what needs a GPU; without it
    the folder is found, which has no `GPU`, and nothing is decorated."""
    paths = [str(ROOT / "tests")]
    if installed:
        (tmp_path / "spaces").mkdir()
        (tmp_path / "spaces" / "__init__.py").write_text(ZERO_GPU)
        paths.append(str(tmp_path))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    found = json.loads(run([sys.executable, "-c", ON_ZERO_GPU], environment, ROOT).splitlines()[-1])
    assert found["torch"] is False, "ZeroGPU wants to be imported first"
    if installed:
        assert found["file"] == str(tmp_path / "spaces" / "__init__.py")
        assert found["asked"] == [["ask", 180], ["edit", 180], ["generate", 180], ["why", 180]]
    else:
        assert found["file"] is None and found["asked"] == []


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_space_is_deployed_and_starts_where_there_is_nothing_else(tmp_path):
    save_checkpoint(tmp_path / "model")
    names = [f"{ORGANISATION}/base", f"{ORGANISATION}/tuned"]
    with running_hub(tmp_path / "server") as hub:
        environment = os.environ | hub.environment | {"HF_HOME": str(tmp_path / "home")}
        run([sys.executable, "-c", UPLOAD.replace("ORG", ORGANISATION), tmp_path / "model"], environment, ROOT)
        deploy = ["demo", "--deploy", f"{USER}/compare", "--base", names[0], "--tuned", names[1]]
        for _ in range(2):  # a second time changes nothing
            told = run([sys.executable, "-m", "uniedit_hf.cli", *deploy, "--hardware", "t4-small"], environment, ROOT)
        assert f"{USER}/compare" in told
        asked = [entry for entry in hub.log() if entry["path"].endswith("/hardware")]
        assert [entry["status"] for entry in asked] == [200, 200]
        space = tmp_path / "space"  # as the Hub lays it out: real files, not links into a cache
        code = (
            f"import huggingface_hub as h; h.snapshot_download('{USER}/compare', repo_type='space', local_dir='space')"
        )
        run([sys.executable, "-c", code], environment, tmp_path)
        assert metadata_load(space / "README.md")["models"] == names
        assert (space / "uniedit_hf" / "pipeline.py").is_file() and (space / "demo" / "main.py").is_file()
        assert not list(space.rglob("__pycache__"))
        environment |= {"PYTHONUNBUFFERED": "1"}
        ours = run([sys.executable, "-c", "import uniedit_hf; print(uniedit_hf.__file__)"], environment, space)
        assert Path(ours.strip()).is_relative_to(space), "the Space brings its own copy of the package"
        command = [sys.executable, "app.py"]
        with subprocess.Popen(
            command, env=environment, cwd=space, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as server:
            try:
                lines = []
                while not any("Open " in line for line in lines):
                    lines.append(server.stdout.readline())
                    assert lines[-1], "".join(lines)  # the server ended
                address = re.search(r"Open (\S+)", lines[-1])[1].replace("0.0.0.0", "127.0.0.1")
                page = urllib.request.urlopen(address, timeout=30).read().decode()
            finally:
                server.kill()
    assert f"Base: {names[0]}; Tuned: {names[1]}" in "".join(lines) and "CPU" in "".join(lines)
    assert "Uni-Edit, before and after" in page


def test_a_taken_port_is_told_before_the_models_load(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["demo", "--base", "no/model", "--tuned", "no/model", "--port", str(port)]) == 1
    assert f"127.0.0.1, port {port} (Address already in use): choose another port" in capsys.readouterr().err


def test_two_families_are_refused(tmp_path, capsys):
    folders = [str(save_checkpoint(tmp_path / family, family)) for family in ("bagel", "janus")]
    assert main(["demo", "--base", folders[0], "--tuned", folders[1]]) == 1
    error = capsys.readouterr().err
    assert "of different families, bagel and janus: give a model and the same model tuned" in error


def test_the_quickstarts_models(tmp_path, monkeypatch):
    """Its result, and the base that its report names; the project's own if it names none."""
    result, base = tmp_path / "runs" / "quickstart", save_checkpoint(tmp_path / "base", "janus")
    save_checkpoint(result / "model", "janus")
    monkeypatch.chdir(tmp_path)
    assert demo._tuned() == Path("runs/quickstart/model")
    assert demo._base() == ROOT / "assets" / "small_bagel"
    (result / "report.json").write_text(json.dumps({"settings": {"model": "janus", "base": str(base)}}))
    assert demo._base() == base


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--deploy", "me/space"], "give their ids with --base and --tuned"),
        (["--deploy", "me/space", "--base", "tests", "--tuned", "a/b"], "tests is not a model on the Hub"),
        (["--tuned", "no/such/folder", "--base", "no/such/folder"], "no/such/folder"),
        ([], "There is no tuned model at runs/quickstart/model"),
        (["--base", "a/b", "--tuned", "a/b", "--port", "99999"], "port is 99999: use a number from 1 to 65535"),
        (["--base", "a/b", "--tuned", "a/b", "--host", "nowhere.invalid", "--port", "7860"], "not an address of this"),
        (
            ["--base", "a/b", "--tuned", "a/b", "--host", "192.0.2.1"],
            "192.0.2.1, which is not an address of",
        ),
    ],
)
def test_mistakes(arguments, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["demo", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
