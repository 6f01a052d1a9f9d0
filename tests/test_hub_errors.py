"""What cannot be had from the Hub ends in one sentence: no network, no such repository, a gated one."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager

from hub import ORGANISATION, RunningHub, running_hub
from raw_releases import make_release
from training_data import edit_rows, save_parquet
from training_runs import environment

from uniedit_hf.release.build import build


NOWHERE = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}  # a port that nobody listens on
REMEDY = "connect to the network, name a local folder, or set HF_HUB_OFFLINE=1 to use a copy in the cache."
# Clients of the Hub try again for 23 seconds, which is theirs to decide and too long for a test.
PATIENCE = "import huggingface_hub.utils._http as http; http.time.sleep = lambda seconds: None;"


def complaint(code: str, **variables: str) -> str:
    """The only line that the program leaves on stderr but notices of trying again."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"{PATIENCE} {code}"],
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr.strip().splitlines()[-1]


def command(*words: str) -> str:
    return f"import sys; from uniedit_hf import cli; sys.exit(cli.main({list(words)}))"


LOAD = """
import sys
from uniedit_hf import UniEditPipeline
try:
    UniEditPipeline.from_pretrained({name!r})
except OSError as error:
    sys.exit(str(error))
"""


def load(name: str) -> str:
    return f"exec({LOAD.format(name=name)!r})"


@contextmanager
def hub_with_a_gated_model(folder):
    with running_hub(folder) as hub:
        code = (
            "from huggingface_hub import HfApi; api = HfApi(); "
            f"name = '{ORGANISATION}/gated'; api.create_repo(name); api.update_repo_settings(name, gated='manual')"
        )
        subprocess.run([sys.executable, "-c", code], env=os.environ | hub.environment, check=True, timeout=60)
        yield hub


def anonymous(hub: RunningHub) -> dict[str, str]:
    return hub.environment | {"HF_TOKEN": "", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}


def test_a_model_without_a_network(tmp_path):
    edits = str(save_parquet(edit_rows(2), tmp_path / "edits"))
    variables = NOWHERE | {"HF_HOME": str(tmp_path / "home")}
    sentence = f"some/model is not a local folder, and the Hub at http://127.0.0.1:9 could not be reached: {REMEDY}"
    assert complaint(load("some/model"), **variables) == sentence
    train = ["train", "--dataset_name", edits, "--model_name_or_path", "some/model", "--use_cpu", "true"]
    train += ["--output_dir", str(tmp_path / "out")]
    assert complaint(command(*train), **variables) == f"uniedit train: {sentence}"


def test_a_data_set_without_a_network(tmp_path):
    train = ["train", "--dataset_name", "some/data", "--model_name_or_path", "some/model", "--use_cpu", "true"]
    train += ["--output_dir", str(tmp_path / "out")]
    found = complaint(command(*train), **NOWHERE, HF_HOME=str(tmp_path / "home"))
    assert found.startswith("uniedit train: some/data is not a local folder, and the Hub at http://127.0.0.1:9 ")
    assert found.endswith(REMEDY)


def test_publishing_without_a_network(tmp_path):
    build(make_release(tmp_path / "raw", 40, faulty=False).folder, tmp_path / "out")
    publish = ["dataset", "publish", "--input_dir", str(tmp_path / "out"), "--repo_id", "some/data"]
    assert complaint(command(*publish), **NOWHERE, HF_HOME=str(tmp_path / "home"), HF_TOKEN="hf_test") == (
        "uniedit dataset publish: The Hub at http://127.0.0.1:9 could not be reached to publish some/data: connect to "
        "the network and run the same command again, which resumes with the missing files."
    )


def test_nothing_in_the_cache_and_told_to_stay_offline(tmp_path):
    found = complaint(load("some/model"), HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="1")
    assert found == (
        "some/model is not a local folder, and HF_HUB_OFFLINE is set but the cache holds no copy of it: unset "
        "HF_HUB_OFFLINE to download it, or name a local folder."
    )


def test_repositories_that_are_not_there_or_closed(tmp_path):
    with hub_with_a_gated_model(tmp_path / "server") as hub:
        variables = anonymous(hub) | {"HF_HOME": str(tmp_path / "home")}
        assert complaint(load(f"{ORGANISATION}/nothing"), **variables) == (
            f"{ORGANISATION}/nothing is not a local folder and no model that can be seen on the Hub: check the "
            "name, or if it is private log in with `hf auth login` or set HF_TOKEN."
        )
        assert complaint(load(f"{ORGANISATION}/gated"), **variables) == (
            f"{ORGANISATION}/gated is a gated model: ask for access at {hub.address}/{ORGANISATION}/gated, then log "
            "in with `hf auth login` or set HF_TOKEN."
        )
        assert complaint(load("a/path/of/folders"), **variables) == (
            "a/path/of/folders is not a local folder and cannot be the name of a model on the Hub: check the path."
        )
