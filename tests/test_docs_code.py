"""The code and commands of README and the task pages run, on tiny models in a fresh folder; what cannot is named."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub import running_hub
from PIL import Image
from tiny_models import picture
from training_data import edit_rows, save_checkpoint

from uniedit_hf import cli


ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.DOTALL | re.MULTILINE)
MODELS = ("ByteDance-Seed/BAGEL-7B-MoT", "Uni-Edit/Uni-Edit-BAGEL", "assets/small_bagel", "runs/quickstart/model")
SHORTER = {
    " --max_steps 2000": " --max_steps 2",
    " --max_steps 200": " --max_steps 2",
    " --max_steps 100": " --max_steps 2",
    "uniedit-148k": "edits/rows.parquet",
    " --save_steps 50": " --save_steps 1",
    "max_steps=200": "max_steps=2, use_cpu=True, report_to='none'",
    'device_map="cuda"': 'device_map="cpu"',
    "size=(1024, 768)": "size=(64, 48)",
    "thinking_budget=512": "thinking_budget=8",
    "max_new_tokens=512": "max_new_tokens=8",
    "--limit 60": "--limit 4",
}
TINY = "--max_tokens_per_pack 120 --use_cpu true --dtype float32 --dataloader_num_workers 0 --report_to none"
# What each command gets besides, so that a tiny model takes a second.
FLAGS = {
    "train": TINY,
    "edit": '--settings {"num_timesteps":2}',
    "generate": '--settings {"num_timesteps":2} --size 64 64',
    "evaluate": '--limit 4 --drawing {"num_timesteps":2}',
}
# What needs a network, a GPU, many machines or a key, or never ends; other tests run what these start.
NOT_HERE = re.compile(
    r"pip install|git clone|make |hf |export |accelerate launch|sbatch|docker|uniedit demo|uniedit serve|"
    r"uniedit doctor|uniedit evaluate --suite wise|.*--push_to_hub true|"
    r"uniedit synthesize --config examples/synthesis/(openai|own_questions)"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("models") / "bagel")


@pytest.fixture
def folder(tmp_path, model, monkeypatch) -> Path:
    """A folder with what the pages take for granted: images, rows, a tuned model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edits" / "images").mkdir(parents=True)
    for name in ("shop.png", "street.png"):
        picture(seed=3).save(name)
    rows = edit_rows(10)
    lines = ["id,source_image,instruction,target_image"]
    for row in rows:
        names = {side: f"images/{row['id']}-{side}.png" for side in ("source_image", "target_image")}
        for side, name in names.items():
            row[side].save(tmp_path / "edits" / name)
        lines.append(f"{row['id']},{names['source_image']},{row['instruction']},{names['target_image']}")
    (tmp_path / "edits" / "rows.csv").write_text("\n".join(lines) + "\n")
    rows.to_parquet(tmp_path / "edits" / "rows.parquet")
    for name in ("assets", "spaces"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    config = tmp_path / "examples" / "synthesis" / "easy_vqa.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("size: 1000", "size: 20"))
    return tmp_path


def for_here(page: str, model: Path) -> str:
    """The text of a page, with a tiny model and short runs."""
    text = (ROOT / f"{page}.md").read_text(encoding="utf-8")
    for here in ((name, str(model)) for name in MODELS), SHORTER.items():
        for one, other in here:
            text = text.replace(one, other)
    return text


def commands(block: str) -> list[str]:
    """The command lines of a block, without comments."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"(^|\s)# .*", "", line).strip() for line in lines) if line]


def run_command(line: str, said: list[str]) -> None:
    words = shlex.split(line)
    if words[0] == "uniedit":
        extra = "" if "--plan" in words else FLAGS.get(words[1], "")
        assert cli.main([words[1], *extra.split(), *words[2:]]) == 0, line  # what the page says comes last and wins
    else:
        assert words[0] == "python", f"{line}: say in this test how it is run, or why it is not"
        done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, env=dict(os.environ))
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)


PAGES = ("README", "docs/inference", "docs/lora", "docs/resume", "docs/evaluate", "docs/make_data")


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page, folder, model):
    """Its blocks in order, in one folder and one namespace; a tiny model replaces those that are named."""
    text = for_here(page, model)
    if page != "docs/resume":
        shutil.copytree(model, folder / "runs" / "own")
    namespace: dict = {}
    ran = 0
    for language, block in BLOCK.findall(text):
        if language == "python" and "BitsAndBytesConfig" not in block:  # 4-bit weights need a GPU
            exec(compile(block, f"{page}.md", "exec"), namespace)
            ran += 1
        elif language == "bash":
            for line in commands(block):
                if not NOT_HERE.match(line):
                    run_command(line, [])
                    ran += 1
    assert ran >= 2


WITH_HUB = """
import json, sys
from huggingface_hub import HfApi
from uniedit_hf import UniEditPipeline, cli

for kind, text in json.loads(sys.argv[1]):
    if kind == "python":
        exec(compile(text, "docs/hub.md", "exec"), {})
    else:
        assert cli.main(json.loads(text)) == 0, text
files = {name: HfApi().list_repo_files(f"tester/{name}") for name in ("my-lora", "my-model")}
edit = UniEditPipeline.from_pretrained("tester/my-lora").edit("shop.png", "paint", seed=0, num_timesteps=2)
from datasets import load_dataset
print(json.dumps([files, edit.size, len(load_dataset("tester/my-edits", split="train"))]))
"""


def test_the_code_of_the_hub_page_runs(folder, model):
    """On a Hub on loopback, in a process that knows no other."""
    shutil.copytree(model, folder / "runs" / "own")
    (folder / "runs" / "quickstart").mkdir()
    row = {"base": 0.125, "tuned": 0.5, "difference": 0.375, "ci95": [0.25, 0.5], "n": 40}
    (folder / "runs" / "quickstart" / "report.json").write_text(json.dumps({"abilities": {"editing": row}}))
    text = (
        for_here("docs/hub", model)
        .replace("me/", "tester/")
        .replace("max_steps=2,", "max_steps=2, max_tokens_per_pack=120,")
    )
    parts = []
    for language, block in BLOCK.findall(text):
        if language == "python":
            parts.append(("python", block))
        for line in commands(block) if language == "bash" else ():
            if line.startswith("uniedit train "):
                parts.append(("bash", json.dumps(shlex.split(line)[1:] + TINY.split())))
    with running_hub(folder / "hub") as hub:
        command = [sys.executable, "-c", WITH_HUB, json.dumps(parts)]
        environment = os.environ | hub.environment | {"HF_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files, size, num_rows = json.loads(done.stdout.splitlines()[-1])
    assert {"adapter_model.safetensors", "README.md"} <= set(files["my-lora"])
    assert {"model.safetensors", "README.md"} <= set(files["my-model"])
    assert tuple(size) == Image.open("shop.png").size and num_rows == 10


def test_what_the_pages_make_is_there(folder, model):
    """The edits of the first block of the page are images of their source's size."""
    exec(compile(BLOCK.search(for_here("docs/inference", model))[2], "docs/inference.md", "exec"), {})
    assert Image.open("edited.png").size == Image.open("shop.png").size
    assert Image.open("lighthouse.png").size == (64, 48)
