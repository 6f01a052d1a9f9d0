"""The Hub of the tests answers the libraries as the real one does, as far as we use it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hub import ORGANISATION, Fault, running_hub


CLIENT = f"""
import json, tempfile
from pathlib import Path
from datasets import Dataset, DatasetDict, load_dataset
from huggingface_hub import HfApi, HfFileSystem, ModelCard, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from transformers import AutoConfig, BertConfig

api, found = HfApi(), {{}}
found["user"] = api.whoami()["name"]
DatasetDict(train=Dataset.from_dict({{"a": [1, 2, 3]}})).push_to_hub("{ORGANISATION}/rows", "small")
found["rows"] = load_dataset("{ORGANISATION}/rows", "small", split="train")["a"][:]
BertConfig(hidden_size=12).push_to_hub("tester/model")
found["size"] = AutoConfig.from_pretrained("tester/model").hidden_size
ModelCard("---\\nlicense: mit\\n---\\n# A model").push_to_hub("tester/model")
found["license"] = api.model_info("tester/model").card_data.license
folder = Path(tempfile.mkdtemp())
(folder / "deep").mkdir()
(folder / "app.py").write_text("print()")
(folder / "deep" / "a.bin").write_bytes(b"x" * 1000)
api.create_repo("tester/space", repo_type="space", space_sdk="gradio")
api.upload_folder(repo_id="tester/space", repo_type="space", folder_path=folder)
copy = Path(snapshot_download("tester/space", repo_type="space"))
found["space"] = sorted(str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file())
api.create_branch("tester/space", branch="next", repo_type="space")
api.delete_file("app.py", "tester/space", repo_type="space", revision="next")
found["next"] = api.list_repo_files("tester/space", repo_type="space", revision="next")
found["commits"] = [commit.title for commit in api.list_repo_commits("tester/space", repo_type="space")]
system = HfFileSystem()
with system.open("datasets/{ORGANISATION}/rows/note.txt", "w") as file:
    file.write("hello")
found["note"] = system.read_text("datasets/{ORGANISATION}/rows/note.txt")
errors = []
for ask in (
    lambda: api.model_info("tester/none"),
    lambda: api.model_info("tester/model", revision="none"),
    lambda: api.hf_hub_download("tester/model", "none.txt"),
    lambda: HfApi(token=False).model_info("tester/private"),
):
    api.create_repo("tester/private", private=True, exist_ok=True)
    try:
        ask()
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError) as error:
        errors.append(type(error).__name__)
found["errors"] = errors
print(json.dumps(found))
"""


@pytest.mark.slow
def test_the_libraries_find_what_they_need(tmp_path):
    with running_hub(tmp_path / "server") as hub:
        hub.inject(Fault("PUT", "/lfs/", status=500))  # clients try again
        env = {**os.environ, **hub.environment, "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run([sys.executable, "-c", CLIENT], env=env, capture_output=True, text=True, timeout=100)
        log = hub.log()
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["user"], found["rows"], found["size"], found["license"]) == ("tester", [1, 2, 3], 12, "mit")
    assert found["space"] == [".gitattributes", "app.py", "deep/a.bin"]
    assert found["next"] == [".gitattributes", "deep/a.bin"] and found["note"] == "hello"
    assert found["commits"][0].startswith("Upload folder") and found["commits"][-1] == "initial commit"
    assert found["errors"] == ["RepositoryNotFoundError", "RevisionNotFoundError"] + [
        "RemoteEntryNotFoundError",
        "RepositoryNotFoundError",
    ]
    assert sorted({each["status"] for each in log if each["method"] == "PUT"}) == [200, 500]
