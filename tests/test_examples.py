"""The scripts of `examples/` run as a user runs them: copied into a fresh folder, on tiny models, with the
installed wheel instead of this clone."""

from __future__ import annotations

import configparser
import csv
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from installed_wheel import environment, run
from PIL import Image
from tiny_models import picture
from training_data import edit_rows, save_checkpoint, save_csv

from uniedit_hf import UniEditPipeline, cli
from uniedit_hf.hub import load_split
from uniedit_hf.images import open_image


pytest_plugins = ["installed_wheel"]

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
INSTRUCTION = "paint the circle red"
BASE = "ByteDance-Seed/BAGEL-7B-MoT"
BLOCK = re.compile(r"```(python|bash)\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module", params=["bagel", "janus"])
def any_model(tmp_path_factory, request) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("models") / "bagel")


@pytest.fixture
def rows(tmp_path) -> Path:
    """A CSV of ten edits and a folder of their images."""
    return save_csv(edit_rows(10), tmp_path / "edits")


@pytest.fixture
def script(installed, tmp_path):
    """Runs a script in the test's folder with the installed wheel, and returns what it prints."""

    def ran(name: str, *arguments: object, **variables: str) -> str:
        shutil.copy(ROOT / "examples" / name, tmp_path)
        return run(installed / "python", name, *arguments, cwd=tmp_path, env=environment(**variables))

    return ran


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_short(path):
    assert path.read_text(encoding="utf-8").count("\n") < 60


def test_edit(script, any_model, tmp_path):
    picture(seed=3).save(tmp_path / "shop.png")
    steps = ["--steps", 2] if any_model.name == "bagel" else []
    said = script("edit.py", "--model", any_model, "--image", "shop.png", "--instruction", INSTRUCTION, *steps)
    assert said == "The edit is in edited.png.\n"
    settings = {"num_timesteps": 2} if steps else {}
    expected = UniEditPipeline.from_pretrained(any_model).edit(picture(seed=3), INSTRUCTION, seed=0, **settings)
    assert Image.open(tmp_path / "edited.png").tobytes() == expected.tobytes()


def test_train(script, model, rows, tmp_path):
    script("train.py", "--model", model, "--dataset", rows, "--max_steps", 2, "--max_tokens_per_pack", 120)
    assert (tmp_path / "runs" / "lora" / "adapter_model.safetensors").is_file()
    assert UniEditPipeline.from_pretrained(tmp_path / "runs" / "lora").edit(
        picture(), "paint", seed=0, num_timesteps=2
    )


def test_train_own_dataset(script, model, rows, tmp_path):
    options = ["--max_steps", 8, "--max_tokens_per_pack", 120, "--test_rows", 3]
    said = script("train_own_dataset.py", "--model", model, "--rows", "edits/rows.csv", *options)
    result = next(line for line in said.splitlines() if line.startswith("Loss on 3 held-out rows: "))
    before, after = (float(word) for word in result.split() if word[0].isdigit() and "." in word)
    assert before > 0 and after > 0 and before != after
    assert (tmp_path / "runs" / "own" / "adapter_model.safetensors").is_file()


def test_serve_client(script, tmp_path):
    pytest.importorskip("openai", reason="the official client is in the extra synthesis")
    pytest.importorskip("fastapi", reason="the server needs the extra serving")
    from serving_parts import served, tiny_pipe

    picture(seed=3).save(tmp_path / "shop.png")
    pipe = tiny_pipe()
    with served(pipe, keys=("a-key",)) as server:
        request = [
            "--image",
            "shop.png",
            "--instruction",
            INSTRUCTION,
            "--question",
            "what colour is this",
            "--steps",
            2,
        ]
        said = script("serve_client.py", "--url", f"{server.address}/v1", *request, UNIEDIT_API_KEY="a-key")
    assert said.startswith("The edit is in edited.png.\nAnswer: ")
    expected = pipe.edit(picture(seed=3), INSTRUCTION, seed=0, num_timesteps=2)
    assert Image.open(tmp_path / "edited.png").tobytes() == expected.tobytes()


def test_evaluate(script, model, rows, tmp_path):
    said = script("evaluate.py", "--base", model, "--tuned", model, "--rows", "edits/rows.csv", "--steps", 2)
    assert "success: tuned - base +0.000 (95 % interval +0.000 to +0.000), n 10\n" in said
    drawn = sorted((tmp_path / "runs" / "compare" / "tuned").glob("*.png"))
    assert len(drawn) == 10
    expected = UniEditPipeline.from_pretrained(model).edit(
        Image.open(tmp_path / "edits" / "images" / "row-0-source_image.png"), words_of(rows), seed=0, num_timesteps=2
    )
    assert Image.open(drawn[0]).tobytes() == expected.tobytes()


def words_of(rows: Path) -> str:
    """The instruction of the first row."""
    with rows.open(newline="") as file:
        return next(csv.DictReader(file))["instruction"]


def test_synthesize_local(script, tmp_path):
    """The small model draws behind its server, and a chat server on loopback writes and judges."""
    pytest.importorskip("fastapi", reason="the server needs the extra serving")
    pytest.importorskip("openai", reason="the client needs the extra synthesis")
    from model_server import ModelServer
    from serving_parts import served, tiny_pipe

    with (tmp_path / "questions.jsonl").open("w") as file:
        for number in range(24):
            picture(64, 48, seed=number).save(tmp_path / f"{number}.png")
            question = {"image": f"{number}.png", "question": f"What color is thing {number}?", "answer": "red"}
            file.write(json.dumps(question) + "\n")
    with ModelServer() as chat, served(tiny_pipe()) as editor:
        urls = ["--chat_url", f"{chat.address}/v1", "--editor_url", f"{editor.address}/v1"]
        options = ["--questions", "questions.jsonl", "--chat", "chat-1", "--editor", "tiny", "--size", 40]
        said = script("synthesize_local.py", *options, *urls)
    assert re.match(r"\d+ edits in ", said), said
    made = load_split(str(tmp_path / "runs" / "synthesis" / "local" / "dataset"))
    assert len(made) >= 1 and open_image(made[0]["target_image"]).size == (64, 48)


def test_own_data_page(script, model, tmp_path, monkeypatch):
    """Its code and commands in order, in one folder; a tiny model and short runs stand for the 7B one."""
    monkeypatch.chdir(tmp_path)
    images = tmp_path / "edits" / "images"
    images.mkdir(parents=True)
    for number, row in enumerate(edit_rows(12)):
        row["source_image"].save(images / f"{number}-source.png")
        row["target_image"].save(images / f"{number}-target.png")
        (images / f"{number}.txt").write_text(row["instruction"] + "\n")
    short = " --max_steps 2 --max_tokens_per_pack 120"
    blocks = BLOCK.findall((ROOT / "docs" / "own_data.md").read_text(encoding="utf-8"))
    for language, text in blocks:
        text = text.replace(BASE, str(model)).replace("assets/small_bagel", str(model)).replace(" --max_steps 200", "")
        if language == "python":
            exec(compile(text, "docs/own_data.md", "exec"), {})
        elif text.startswith("uniedit "):
            flags = " --use_cpu true --dtype float32 --dataloader_num_workers 0 --report_to none"
            assert cli.main(shlex.split(text + short + flags)[1:]) == 0
        elif "evaluate.py" in text:
            assert "success: tuned - base" in script("evaluate.py", *shlex.split(text)[2:], "--steps", 2)
        else:
            said = script("train_own_dataset.py", *shlex.split(text + short)[2:], "--model", model)
            assert "Loss on 8 held-out rows: " in said
    assert len(blocks) == 8
    assert Image.open("base.png").size == Image.open("tuned.png").size

    expected = [open_image(row["target_image"]).tobytes() for row in load_split("edits/rows.csv")]
    shutil.rmtree(images)  # Parquet holds the images themselves
    rows = load_split("edits/rows.parquet")
    assert [open_image(row["target_image"]).tobytes() for row in rows] == expected
    made = sorted(range(12), key=str)  # by name, as the page reads them
    assert rows["id"] == [f"edit-{number}" for place, number in enumerate(made) if place % 10]
    instructions = edit_rows(12)["instruction"]
    assert rows["instruction"] == [instructions[int(each.removeprefix("edit-"))] for each in rows["id"]]


def test_install_page_names_every_extra():
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    table = page.split("## Extras")[1].split("## ")[0]
    named = [name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split(" | ")[0])]
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    assert sorted(named) == sorted(config["options.extras_require"])
