"""The whole way of docs/make_data.md, from questions about one's own images to a page that compares two models: JSON
Lines, Parquet or a folder through synthesis, build, validation, a Hub on loopback, LoRA, evaluation and the demo."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hub import running_hub
from model_server import Behaviour, ModelServer
from PIL import Image, ImageDraw
from training_data import save_checkpoint

from uniedit_hf import UniEditPipeline, cli


pytest.importorskip("fastapi", reason="the editor is served: needs the extra serving")
pytest.importorskip("openai", reason="its client is in the extra synthesis")
gradio_client = pytest.importorskip("gradio_client", reason="the page needs the extra demo")

ROOT = Path(__file__).parents[1]
COLORS = ("red", "green", "blue")
SOURCES = {"jsonl": {"files": ["questions/rows.jsonl"]}, "parquet": {"files": ["questions/rows.parquet"]}}
SOURCES["folder"] = {"dataset": "questions/folder"}
FEW = "--max_steps 4 --max_tokens_per_pack 300 --learning_rate 0.01 --use_cpu true --report_to none"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a blank and an umlaut in its name, with the same questions in three forms."""
    folder = tmp_path_factory.mktemp("own") / "my dätä"
    images = folder / "questions" / "folder"
    images.mkdir(parents=True)
    rows = []
    for number in range(9):
        color, name = COLORS[number % 3], f"{number}.png"
        image = Image.new("RGB", (64, 64), (200, 210, 220 + number))
        ImageDraw.Draw(image).rectangle((5 + 3 * number, 8, 30 + 3 * number, 40), fill=color)
        image.save(images / name)
        rows.append((name, "what color is the square?", color))
        rows.append((name, f"what is this, number {number}?", "rectangle"))
    with open(images / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file_name", "question", "answer"), *rows])
    named = [{"image": f"folder/{name}", "question": asked, "answer": said} for name, asked, said in rows]
    (folder / "questions" / "rows.jsonl").write_text("\n".join(map(json.dumps, named)), encoding="utf-8")
    table = pa.Table.from_pylist([row | {"image": (images.parent / row["image"]).read_bytes()} for row in named])
    pq.write_table(table, folder / "questions" / "rows.parquet")
    return folder


@pytest.fixture(scope="module")
def built(folder) -> Path:
    """What synthesis makes of each form, built as a data set of one's own."""
    from serving_parts import served, tiny_pipe

    text = (ROOT / "examples" / "synthesis" / "own_questions.yaml").read_text(encoding="utf-8")
    before = os.getcwd()
    os.chdir(folder)
    try:
        with ModelServer(Behaviour(faults=0.1, others=0.05, silence=0.2)) as chat, served(tiny_pipe()) as editor:
            text = text.replace("http://127.0.0.1:8001", chat.address).replace("http://127.0.0.1:8000", editor.address)
            text = text.replace("Uni-Edit/Uni-Edit-BAGEL\n", f"{editor.service.settings.name}\n")
            for form, source in SOURCES.items():
                settings = yaml.safe_load(text) | {"output_dir": f"runs/{form}"}
                settings["source"] = {"kind": "rows"} | source
                settings["backends"]["editor"]["arguments"] |= {"extra_body": {"num_timesteps": 3}}
                Path("run.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
                assert cli.main(["synthesize", "--config", "run.yaml"]) == 0
                flags = ["--source", f"runs/{form}", "--output_dir", f"built/{form}", "--config_name", "my-edits"]
                assert cli.main(["dataset", "build", *flags]) == 0
    finally:
        os.chdir(before)
    return folder / "built"


@pytest.mark.parametrize("form", SOURCES)
def test_questions_of_every_form_become_edits(built, form, capsys):
    made = pq.read_table(next((built / form / "my-edits").glob("*.parquet"))).to_pylist()
    assert len(made) >= 9 and {row["answer"] for row in made} >= {"red", "rectangle"}
    assert all(row["target_image"]["bytes"] and row["judge"] for row in made)
    assert cli.main(["dataset", "validate", "--input_dir", str(built / form)]) == 0
    said = capsys.readouterr().out
    assert f"my-edits: {len(made)} rows." in said and "No problems found" in said and "paper" not in said


ON_THE_HUB = """
import json, sys
from datasets import load_dataset
from uniedit_hf import cli

model, few, forms = sys.argv[1], sys.argv[2].split(), sys.argv[3:]
for form in forms:
    assert cli.main(["dataset", "publish", "--input_dir", f"built/{form}", "--repo_id", f"tester/{form}"]) == 0
lora = ["--dataset_name", "tester/parquet", "--use_peft", "true", "--output_dir", "runs/lora"]
lora += ["--push_to_hub", "true", "--hub_model_id", "tester/my-lora"]
assert cli.main(["train", "--model_name_or_path", model, *lora, *few]) == 0
compared = ["--model", "tester/my-lora", "--baseline", model, "--limit", "4", "--drawing", '{"num_timesteps": 2}']
assert cli.main(["evaluate", "--suite", "small_world", *compared, "--output_dir", "runs/compared"]) == 0
print(json.dumps({form: len(load_dataset(f"tester/{form}", split="train")) for form in forms}))
"""


@pytest.fixture(scope="module")
def shared(built) -> tuple[str, dict[str, int]]:
    """What the process that publishes, trains and evaluates prints, and how many rows it loads of each data set."""
    folder = built.parent
    model = save_checkpoint(folder / "model")
    with running_hub(folder / "hub") as hub:
        command = [sys.executable, "-c", ON_THE_HUB, str(model), FEW, *SOURCES]
        environment = os.environ | hub.environment | {"HF_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout, json.loads(done.stdout.splitlines()[-1])


def test_they_are_published_tuned_on_and_compared(built, shared):
    said, loaded = shared
    assert all(loaded[form] == pq.read_table(built / form / "my-edits").num_rows for form in SOURCES)
    assert "Trained 4 steps; the model is in runs/lora." in said and "/tester/my-lora." in said
    assert "which is only on this machine" in said, "nobody else can load adapters of a local base"
    assert "| small_world | tuned | baseline | difference | 95 % interval |" in said
    page = (built.parent / "runs" / "compared" / "result.html").read_text(encoding="utf-8")
    assert "<h1>small_world</h1>" in page
    card = (built / "parquet" / "README.md").read_text(encoding="utf-8")
    assert card.count("148k") == 0 and "# parquet" in card


def test_the_page_shows_base_and_tuned(built, shared):
    from demo_pages import served

    from uniedit_hf.demo.models import Pair

    folder = built.parent
    pipes = [UniEditPipeline.from_pretrained(folder / name) for name in ("model", "runs/lora")]
    with served(Pair(*pipes, "base", "tuned")) as (_, address):
        client = gradio_client.Client(address, verbose=False)
        image = gradio_client.handle_file(str(folder / "questions" / "folder" / "0.png"))
        base, tuned, *_, status = client.predict(
            picture=image, instruction="paint the square red", seed=1, steps=3, api_name="/edit"
        )
    assert status.startswith("Finished")
    assert Image.open(base).tobytes() != Image.open(tuned).tobytes(), "tuning changed what is drawn"


def test_adapters_without_their_base_name_it(built, shared, tmp_path):
    """The sentence says whose base is missing, and where it was looked for."""
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    config = json.loads((built.parent / "runs" / "lora" / "adapter_config.json").read_text(encoding="utf-8"))
    moved = json.dumps(config | {"base_model_name_or_path": "../elsewhere/model"})
    (adapters / "adapter_config.json").write_text(moved, encoding="utf-8")
    with pytest.raises(OSError, match=r"has adapters for the base model \.\./elsewhere/model, which cannot be loaded"):
        UniEditPipeline.from_pretrained(adapters)
