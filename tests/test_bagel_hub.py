"""Checkpoints on a Hub on loopback: every layout by its id, the configuration without the weights, once more from the
cache alone, and back by `push_to_hub`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hub import ORGANISATION, running_hub
from safetensors.torch import load_file, save_file
from tiny_models import tiny_bagel_processor


FIXTURE = Path(__file__).parent / "fixtures" / "bagel_tiny"

LOAD = """
import hashlib, json, sys
import transformers
from uniedit_hf import BagelForConditionalGeneration, UniEditPipeline

def digest(model):
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()

transformers.logging.disable_progress_bar()
found = {}
"""


def run_python(code: str, environment: dict[str, str]) -> dict:
    """What a fresh interpreter prints as JSON in its last line."""
    command = [sys.executable, "-c", LOAD + textwrap.dedent(code) + "\nprint(json.dumps(found))"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """An official folder, one as Uni-Edit's without an index, and one with the official files in a subfolder."""
    root = tmp_path_factory.mktemp("folders")
    official = root / "official"
    official.mkdir()
    for name in ("ema.safetensors", "ae.safetensors", "llm_config.json", "vit_config.json"):
        shutil.copy(FIXTURE / name, official)
    tiny_bagel_processor().tokenizer.save_pretrained(official)
    shards = Path(shutil.copytree(official, root / "shards"))
    tensors = load_file(shards / "ema.safetensors")
    (shards / "ema.safetensors").unlink()
    for number in (1, 2):
        part = {name: tensors[name] for name in sorted(tensors)[number - 1 :: 2]}
        save_file(part, shards / f"model-{number:05d}-of-00002.safetensors")
    (root / "nested").mkdir()
    shutil.copytree(official, root / "nested" / "ema")
    return root


def test_checkpoints_on_the_hub(folders, tmp_path):
    local = str(folders / "official")
    names = {name: f"{ORGANISATION}/{name}" for name in ("official", "shards", "nested")}
    with running_hub(tmp_path / "server") as hub:
        environment = os.environ | hub.environment | {"HF_HOME": str(tmp_path / "home")}
        found = run_python(
            f"""
            from huggingface_hub import HfApi, constants
            from pathlib import Path
            from uniedit_hf import BagelConfig
            for name, repository in {names}.items():
                HfApi().create_repo(repository)
                HfApi().upload_folder(repo_id=repository, folder_path=Path({str(folders)!r}, name))
            BagelConfig.from_pretrained({names["official"]!r})
            cached = Path(constants.HF_HUB_CACHE).rglob("*.safetensors")
            found["cached_for_config"] = [path.name for path in cached]
            found["local"] = digest(BagelForConditionalGeneration.from_pretrained({local!r}))
            pipe = UniEditPipeline.from_pretrained({names["official"]!r})
            found["official"] = digest(pipe.model)
            found["answer"] = pipe.answer(None, "what is this", max_new_tokens=3)
            found["shards"] = digest(UniEditPipeline.from_pretrained({names["shards"]!r}).model)
            nested = BagelForConditionalGeneration.from_pretrained({names["nested"]!r}, subfolder="ema")
            found["nested"] = digest(nested)
            pipe.model.push_to_hub("{ORGANISATION}/ours")
            pipe.processor.push_to_hub("{ORGANISATION}/ours")
            found["ours"] = digest(UniEditPipeline.from_pretrained("{ORGANISATION}/ours").model)
            try:
                UniEditPipeline.from_pretrained("{ORGANISATION}/nothing")
            except OSError as error:
                found["nothing"] = str(error)
            for name in ("official", "ours"):
                pipe = UniEditPipeline.from_pretrained("{ORGANISATION}/" + name, local_files_only=True)
                found["cached " + name] = digest(pipe.model)
            """,
            environment,
        )
    expected = found["local"]
    names = ("official", "shards", "nested", "ours", "cached official", "cached ours")
    assert [found[name] for name in names] == [expected] * 6
    assert found["cached_for_config"] == []
    assert f"{ORGANISATION}/nothing" in found["nothing"]
