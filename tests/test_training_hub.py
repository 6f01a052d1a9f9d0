"""Runs pushed to a Hub on loopback and loaded by a fresh process: model, average, adapters, merged adapters; and what
every `hub_strategy` leaves there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hub import ORGANISATION, RunningHub, running_hub
from huggingface_hub import ModelCard, metadata_load
from PIL import Image
from training_data import edit_rows, trainer

from uniedit_hf.training.checkpoints import what_is_missing
from uniedit_hf.training.model_card import read_abilities


TESTS = Path(__file__).parent
ROW = {"base": 0.125, "tuned": 0.5, "difference": 0.375, "ci95": [0.25, 0.5], "n": 40}
REPORT = {"abilities": {"editing": ROW, "understanding": ROW | {"tuned": 0.1, "difference": -0.025}}}

COMMON = """
import hashlib, json, sys
import numpy as np
from tiny_models import picture
from uniedit_hf import UniEditPipeline

def outputs(pipe):
    edit = pipe.edit(picture(), "paint the circle red", seed=3, num_timesteps=4)
    answer = pipe.answer(picture(), "what is this", max_new_tokens=8)
    return [hashlib.sha256(np.asarray(edit).tobytes()).hexdigest(), answer]

found = {}
"""

TRAIN = """
from pathlib import Path
from datasets import load_dataset
from huggingface_hub import HfApi, ModelCard
from peft import LoraConfig
from tiny_models import tiny_bagel, tiny_bagel_processor
from training_data import edit_rows, settings
from uniedit_hf import UniEditTrainer
from uniedit_hf.training.provenance import data_sources

folder = Path(sys.argv[1])
edit_rows(12).push_to_hub("ORG/edits")
tiny_bagel().push_to_hub("ORG/base")
tiny_bagel_processor().push_to_hub("ORG/base")
rows = load_dataset("ORG/edits", split="train")
found["revision"] = HfApi().dataset_info("ORG/edits").sha
stream = load_dataset("ORG/edits", split="train", streaming=True).shuffle(seed=1, buffer_size=1)
found["sources"] = [[each.id, each.revision] for each in data_sources([rows, stream, edit_rows(2)], ["ORG/more"])]
found["stream"] = [each.revision for each in data_sources([stream])]

def run(name, **changes):
    peft_config = changes.pop("peft_config", None)
    args = settings(folder / name, push_to_hub=True, hub_model_id=f"ORG/{name}", **changes)
    trainer = UniEditTrainer("ORG/base", args, train_dataset=rows, peft_config=peft_config)
    trainer.train()
    return trainer

tuned = run("tuned", ema_decay=0.5, save_strategy="steps", save_steps=2, save_total_limit=1, hub_strategy="checkpoint")
tuned.push_to_hub(report=REPORT, license="apache-2.0")
found["tuned"] = outputs(UniEditPipeline(tuned.model, tuned.processing_class))
average = UniEditPipeline.from_pretrained(folder / "tuned", subfolder="ema")
found["average"] = outputs(average)
lora = run("lora", peft_config=LoraConfig(r=4, init_lora_weights="gaussian"), learning_rate=0.05)
lora.push_to_hub(license="mit")
found["lora"] = outputs(UniEditPipeline(lora.model, lora.processing_class))
pipe = UniEditPipeline.from_pretrained("ORG/lora").merge_adapters()
pipe.push_to_hub("ORG/merged")
ModelCard("---\\nlicense: mit\\n---\\nWritten by hand.").push_to_hub("ORG/merged")
found["merged"] = outputs(pipe)
pipe = UniEditPipeline.from_pretrained("ORG/base")
pipe.push_to_hub("ORG/merged", revision="again", commit_message="Once more")
saves = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
for strategy in ("every_save", "all_checkpoints"):
    run(strategy.replace("_", "-"), hub_strategy=strategy, **saves)
found["base"] = outputs(UniEditPipeline.from_pretrained("ORG/base"))
"""

LOAD = """
from huggingface_hub import hf_hub_download, list_repo_commits, list_repo_files, snapshot_download

for name in ("tuned", "lora", "merged"):
    found[name] = outputs(UniEditPipeline.from_pretrained(f"ORG/{name}"))
    found[f"{name} files"] = list_repo_files(f"ORG/{name}")
    found[f"{name} card"] = hf_hub_download(f"ORG/{name}", "README.md")
(first,) = [commit.commit_id for commit in list_repo_commits("ORG/merged") if commit.title == "Upload model"]
found["merged card"] = hf_hub_download("ORG/merged", "README.md", revision=first)
found["again"] = outputs(UniEditPipeline.from_pretrained("ORG/merged", revision="again"))
found["card by hand"] = hf_hub_download("ORG/merged", "README.md", revision="again")
found["commits again"] = [commit.title for commit in list_repo_commits("ORG/merged", revision="again")]
found["average"] = outputs(UniEditPipeline.from_pretrained("ORG/tuned", subfolder="ema"))
found["curve"] = hf_hub_download("ORG/tuned", "loss.png")
for name in ("every-save", "all-checkpoints"):
    found[name] = outputs(UniEditPipeline.from_pretrained(f"ORG/{name}"))
    found[f"{name} files"] = list_repo_files(f"ORG/{name}")
    found[f"{name} commits"] = [commit.title for commit in list_repo_commits(f"ORG/{name}")]
    found[f"{name} card"] = hf_hub_download(f"ORG/{name}", "README.md")
found["kept checkpoints"] = snapshot_download("ORG/all-checkpoints", allow_patterns="checkpoint-*/*")
found["first checkpoint"] = outputs(UniEditPipeline.from_pretrained(found["kept checkpoints"] + "/checkpoint-2"))
found["checkpoint"] = snapshot_download("ORG/tuned", allow_patterns="last-checkpoint/*") + "/last-checkpoint"
"""


def run_python(code: str, hub: RunningHub, home: Path, *arguments) -> dict:
    """What a fresh interpreter with a home of its own prints as JSON in its last line."""
    code = COMMON + textwrap.dedent(code).replace("ORG", ORGANISATION).replace("REPORT", repr(REPORT))
    environment = os.environ | hub.environment | {"HF_HOME": str(home), "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-c", code + "\nprint(json.dumps(found))", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=TESTS)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def pushed(tmp_path_factory) -> tuple[dict, dict]:
    """What the process that trained saw, and what a fresh one loads."""
    folder = tmp_path_factory.mktemp("pushed")
    with running_hub(folder / "server") as hub:
        trained = run_python(TRAIN, hub, folder / "home", folder / "runs")
        return trained, run_python(LOAD, hub, folder / "fresh")


pytestmark = pytest.mark.timeout(400)


@pytest.mark.parametrize("name", ["tuned", "average", "lora", "merged"])
def test_the_same_outputs_from_a_fresh_process(pushed, name):
    trained, loaded = pushed
    assert loaded[name] == trained[name]
    assert trained[name][0] != trained["base"][0], "training changed the model"


def test_the_average_is_not_the_model(pushed):
    assert pushed[0]["average"] != pushed[0]["tuned"]


def test_what_lies_on_the_hub(pushed):
    files = set(pushed[1]["tuned files"])
    assert {"model.safetensors", "config.json", "generation_config.json", "processor_config.json"} <= files
    assert {"tokenizer.json", "README.md", "loss.png", "ema/model.safetensors", "ema/config.json"} <= files
    pickled = {name for name in files if name.endswith((".bin", ".pt", ".pth"))}
    assert all(name.startswith("last-checkpoint/") for name in pickled)
    assert "adapter_model.safetensors" in pushed[1]["lora files"]
    assert "model.safetensors" not in pushed[1]["lora files"]
    for name in ("tuned", "lora"):
        roots = {path.split("/")[0] for path in pushed[1][f"{name} files"]}
        assert not any(root.startswith(("checkpoint-", "samples", "quarantine", "trainer_state")) for root in roots)


def test_the_pushed_checkpoint_is_whole(pushed):
    """`hub_strategy="checkpoint"`: what can be resumed from."""
    folder = Path(pushed[1]["checkpoint"])
    assert what_is_missing(folder) is None
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 4


def test_every_save_is_pushed(pushed):
    """`hub_strategy="every_save"`: a commit for every save, and in the end the model of the last one with its card."""
    loaded = pushed[1]
    files = set(loaded["every-save files"])
    assert {"model.safetensors", "processor_config.json", "README.md", "loss.png"} <= files
    assert not any(name.startswith(("checkpoint-", "last-checkpoint")) for name in files)
    titles = loaded["every-save commits"]
    assert [f"Training in progress, step {step}" for step in (4, 2)] == [t for t in titles if "step" in t]
    metadata = metadata_load(loaded["every-save card"])
    assert metadata["base_model"] == f"{ORGANISATION}/base" and "license" not in metadata
    assert loaded["every-save"] != pushed[0]["base"]


def test_all_checkpoints_are_kept(pushed):
    """`hub_strategy="all_checkpoints"`: each in a folder of its own, whole, though only one is kept on the machine."""
    loaded, folder = pushed[1], Path(pushed[1]["kept checkpoints"])
    steps = {}
    for checkpoint in folder.glob("checkpoint-*"):
        assert what_is_missing(checkpoint) is None
        steps[checkpoint.name] = json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]
    assert steps == {"checkpoint-2": 2, "checkpoint-4": 4}
    assert loaded["all-checkpoints"] == loaded["every-save"], "at the root lies the last one"
    assert loaded["first checkpoint"] != loaded["all-checkpoints"]


def test_the_card(pushed):
    trained, loaded = pushed
    metadata = metadata_load(loaded["tuned card"])
    assert metadata["base_model"] == f"{ORGANISATION}/base" and metadata["base_model_relation"] == "finetune"
    assert metadata["datasets"] == [f"{ORGANISATION}/edits"] and metadata["license"] == "apache-2.0"
    assert metadata["library_name"] == "transformers" and "uni-edit" in metadata["tags"]
    text = ModelCard.load(loaded["tuned card"]).text
    assert f"datasets/{ORGANISATION}/edits/tree/{trained['revision']}" in text
    assert "| editing | 12.5 | 50.0 | +37.5 | +25.0 to +50.0 | 40 |" in text
    assert "| understanding | 12.5 | 10.0 | -2.5 |" in text
    assert "![Loss over the steps](loss.png)" in text and "License: apache-2.0." in text
    assert f'UniEditPipeline.from_pretrained("{ORGANISATION}/tuned")' in text and 'subfolder="ema"' in text
    with Image.open(loaded["curve"]) as curve:
        assert curve.format == "PNG" and len(curve.convert("L").getcolors()) > 10


def test_the_sources_of_data(pushed):
    revision = pushed[0]["revision"]
    assert pushed[0]["sources"] == [[f"{ORGANISATION}/edits", revision], [f"{ORGANISATION}/more", None]]
    assert pushed[0]["stream"] == [revision]


def test_the_card_of_adapters(pushed):
    metadata = metadata_load(pushed[1]["lora card"])
    assert metadata["base_model_relation"] == "adapter" and metadata["library_name"] == "peft"
    assert metadata["license"] == "mit"
    assert "This model was not evaluated" in Path(pushed[1]["lora card"]).read_text()


def test_the_card_of_merged_adapters(pushed):
    """It names base and adapters, and carries the data sets and the license of the adapters' own card."""
    metadata = metadata_load(pushed[1]["merged card"])
    assert metadata["base_model"] == f"{ORGANISATION}/base" and metadata["base_model_relation"] == "finetune"
    assert metadata["datasets"] == [f"{ORGANISATION}/edits"] and metadata["license"] == "mit"
    assert metadata["library_name"] == "transformers"
    text = Path(pushed[1]["merged card"]).read_text()
    assert f"[{ORGANISATION}/lora](https://huggingface.co/{ORGANISATION}/lora) merged into its weights" in text
    assert f'UniEditPipeline.from_pretrained("{ORGANISATION}/merged")' in text and "License: mit." in text


def test_a_pipeline_is_pushed_once_more(pushed):
    """To a branch that did not exist, in one commit, and without touching `main` or the card that somebody wrote."""
    trained, loaded = pushed
    assert loaded["commits again"][0] == "Once more" and loaded["again"] == trained["base"]
    assert loaded["merged"] == trained["merged"]
    assert "Written by hand." in Path(loaded["card by hand"]).read_text()


def test_a_report_of_another_kind(tmp_path):
    (tmp_path / "report.json").write_text('{"losses": []}')
    with pytest.raises(ValueError, match="report.json does not compare a base with a tuned model"):
        read_abilities(tmp_path / "report.json")
    run = trainer(tmp_path / "run", edit_rows(4), max_steps=1)
    with pytest.raises(ValueError, match="expected 'abilities'"):
        run.create_model_card(report={"abilities": {"editing": {"base": 1}}})


def test_nothing_to_merge(tmp_path):
    from tiny_models import tiny_bagel, tiny_bagel_processor

    from uniedit_hf import UniEditPipeline

    with pytest.raises(ValueError, match="no adapters to merge"):
        UniEditPipeline(tiny_bagel(), tiny_bagel_processor()).merge_adapters()
