"""Every `uniedit` command of the pages has its options, every shell block is valid, all Python compiles; and the pages
that `test_docs_code.py` does not run, run here on tiny models and local rows.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from importlib import import_module
from pathlib import Path

import pytest
import raw_releases
from PIL import Image
from tiny_models import picture
from training_data import edit_rows, save_checkpoint, save_csv

from uniedit_hf import UniEditPipeline, cli
from uniedit_hf.cli.parsing import CommandParser


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHOWN = re.compile(r"(?:uniedit|python -m lmms_eval|make) ")  # the beginning of a block of commands without a language
CUDA = 'dtype=torch.bfloat16, device_map="cuda"'
SHORT = {
    "train": "--max_steps 2 --max_tokens_per_pack 120 --save_steps 1 --eval_steps 2 --use_cpu true --dtype float32 "
    "--dataloader_num_workers 0 --report_to none",
    "edit": """--settings '{"num_timesteps": 3}'""",
    "generate": """--settings '{"num_timesteps": 3}'""",
    "dataset latents": "--vit_longest_edge 28",
}
# (page, beginning of a command or block): why it is parsed and not run here.
NOT_RUN = {
    ("docs/data.md", "uniedit dataset publish"): "uploads; test_dataset_hub.py publishes to a loopback Hub",
    ("docs/janus.md", "uniedit train --config"): "trains the released model; test_training_command.py",
}


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """(language, text) of the blocks of code; commands that are shown without a language are shell."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    found = [("bash" if not language and SHOWN.match(text) else language, text) for language, text in found]
    return [(language, text) for language, text in found if language in ("python", "bash")]


def commands_of(text: str) -> list[str]:
    """The lines of a shell block, continued ones joined, without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def uniedit_commands() -> list[tuple[str, str]]:
    """(page, command) of every `uniedit` command in a block."""
    named = [(str(page.relative_to(ROOT)), text) for page in PAGES for kind, text in blocks_of(page) if kind == "bash"]
    parts = [(name, part) for name, text in named for line in commands_of(text) for part in line.split(" && ")]
    return [(name, part.strip()) for name, part in parts if part.strip().startswith("uniedit ")]


def reason(page: Path, text: str) -> tuple[str, str] | None:
    """The entry of `NOT_RUN` for a command or block, if there is one."""
    name = str(page.relative_to(ROOT))
    return next((key for key in NOT_RUN if key[0] == name and text.startswith(key[1])), None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_shell_block_is_valid(page):
    for language, text in blocks_of(page):
        if language == "bash":
            checked = re.sub(r"<[^>]*>", "ADDRESS", text)
            assert subprocess.run(["bash", "-n", "-c", checked], capture_output=True, text=True).stderr == ""


@pytest.mark.parametrize(("page", "command"), uniedit_commands())
def test_a_command_has_its_options(page, command, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command, comments=True)[1:]
    name = next(name for name in cli.COMMANDS if words[: len(name.split())] == name.split())
    run = import_module(f"uniedit_hf.cli.{name.replace(' ', '_')}").run
    # loggers that a configuration names need not be installed here
    flags = words[len(name.split()) :] + ("--report_to none".split() if name in ("train", "grpo") else [])
    assert CommandParser(name, cli.COMMANDS[name], run).parse(flags)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_compiles(page):
    for language, text in blocks_of(page):
        if language == "python":
            compile(text, str(page), "exec")


# ---- running


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {family: save_checkpoint(folder / family, family) for family in ("bagel", "janus")}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """What the pages name: images, `edits/rows.csv`, and the folders of a clone."""
    for name in ("spaces", "assets", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("shop.png", "street.png", "shop.jpg"):
        picture(64, 48, seed=len(name)).save(tmp_path / name)
    save_csv(edit_rows(10), tmp_path / "edits")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def on_tiny_models(text: str, models: dict[str, Path]) -> str:
    """The text with small models in place of the released ones, on the CPU, and few steps."""
    for name in ("Uni-Edit/Uni-Edit-BAGEL", "ByteDance-Seed/BAGEL-7B-MoT", "assets/small_bagel", "me/bagel-uniedit"):
        text = text.replace(name, str(models["bagel"]))
    text = text.replace("deepseek-community/Janus-Pro-1B", str(models["janus"]))
    text = text.replace("--dataset_name uniedit-148k", "--dataset_name edits/rows.csv").replace(CUDA, "")
    few = "max_steps=2, max_tokens_per_pack=120, use_cpu=True, report_to='none', dataloader_num_workers=0"
    return text.replace("max_steps=200", few).replace("size=(1024, 768)", "size=(64, 48)")


def run_command(command: str, models: dict[str, Path]) -> None:
    words = shlex.split(on_tiny_models(command, models), comments=True)[1:]
    name = next(name for name in cli.COMMANDS if words[: len(name.split())] == name.split())
    assert cli.main([*words, *shlex.split(SHORT.get(name, ""))]) == 0, command


RUN = [ROOT / "docs" / f"{name}.md" for name in ("data", "fast_inference", "janus", "training")]


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_a_page_runs(page, folder, models, monkeypatch):
    """The other pages run in test_docs_code.py, test_examples.py and test_add_a_model.py."""
    raw_releases.make_release(folder / "RAW", 6, faulty=False)
    monkeypatch.setenv("UNIEDIT_DATA_DIR", str(folder / "RAW"))
    (folder / "FOLDER").mkdir()
    picture(64, 48, seed=99).save(folder / "FOLDER" / "benchmark.png")
    family = "janus" if page.name == "janus.md" else "bagel"
    names = {"image": picture(64, 48), "pipe": None, "UniEditPipeline": UniEditPipeline}
    names["pipe"] = UniEditPipeline.from_pretrained(models[family])
    for language, text in blocks_of(page):
        if language == "python" and reason(page, text) is None:
            exec(compile(on_tiny_models(text, models), str(page), "exec"), names)
        for line in commands_of(text) if language == "bash" else ():
            for command in line.split(" && "):
                if command.startswith("uniedit ") and reason(page, command) is None:
                    run_command(command, models)
    written = [path for path in folder.glob("*.png") if path.name not in ("shop.png", "street.png")]
    assert all(Image.open(path).size[0] > 0 for path in written)


def test_the_code_of_the_server_page_runs(folder):
    pytest.importorskip("openai", reason="the official client is in the extra synthesis")
    pytest.importorskip("fastapi", reason="the server needs the extra serving")
    from serving_parts import served, tiny_pipe

    (text,) = [text for language, text in blocks_of(ROOT / "docs" / "serving.md") if language == "python"]
    with served(tiny_pipe(), keys=("a-key",)) as server:
        text = text.replace("http://127.0.0.1:8000", server.address).replace("1024x768", "64x48")
        text = text.replace('model="me/bagel-uniedit"', f"model={server.service.settings.name!r}")
        names = {"KEY": "a-key"}
        exec(compile(text.replace('"num_timesteps": 50', '"num_timesteps": 3'), "docs/serving.md", "exec"), names)
    assert names["drawn"].data[0].b64_json and names["edited"].data[0].b64_json


def test_every_reason_is_needed():
    for name, beginning in NOT_RUN:
        page = ROOT / name
        texts = [text for language, text in blocks_of(page) if language == "python"]
        texts += [command for where, command in uniedit_commands() if where == name]
        assert any(text.startswith(beginning) for text in texts), (name, beginning)
