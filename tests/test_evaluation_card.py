"""The table of `uniedit evaluate` in a model card: in a text, and in a repository on a Hub on loopback, which has the
prompts as well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub import ORGANISATION, running_hub

from tests.evaluation_parts import write_benchmarks
from tests.judge_server import JudgeServer
from uniedit_hf.evaluation.result_card import with_result


RUN = {"summary": {"overall": 0.5}, "statuses": {"ok": 2}}
RESULT = {"suite": "wise", "headline": "overall", "runs": {"tuned": RUN}, "items": 2, "seeds": [0], "preset": "bagel"}
RESULT |= {"models": {"tuned": "me/tuned"}}


def test_a_table_takes_the_place_of_its_older_one():
    card = "---\nlicense: mit\n---\n\n# A model\n\nIts text.\n"
    once = with_result(card, RESULT)
    assert once.startswith(card.rstrip()) and once.count("| overall | 0.500 |") == 1
    other = with_result(once, RESULT | {"suite": "rise"})
    later = RUN | {"summary": {"overall": 0.75}}
    again = with_result(other, RESULT | {"runs": {"tuned": later}})
    assert again.count("### Evaluation: wise") == again.count("### Evaluation: rise") == 1
    assert again.index("| overall | 0.750 |") < again.index("### Evaluation: rise")
    assert with_result(again, RESULT) == other
    assert with_result("", RESULT).startswith("<!-- uniedit evaluate: wise begin -->")


PROGRAM = """
import sys
from huggingface_hub import HfApi, hf_hub_download
from tests.tiny_models import tiny_bagel, tiny_bagel_processor
from uniedit_hf import cli

name, missing, folder, *command = sys.argv[1:]
tiny_bagel().push_to_hub(name)
tiny_bagel_processor().push_to_hub(name)
card = "---\\nlicense: mit\\n---\\n# On the Hub\\n"
HfApi().upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=name)

prompts, command[command.index("--prompts") + 1] = command[command.index("--prompts") + 1], "hf://datasets/ORG/bench/sets/wise.json"
HfApi().create_repo("ORG/bench", repo_type="dataset")
HfApi().upload_file(path_or_fileobj=prompts, path_in_repo="sets/wise.json", repo_id="ORG/bench", repo_type="dataset")
for wrong in ("hf://datasets/ORG/bench/none.json", "hf://datasets/ORG/none/wise.json", "hf://datasets/ORG"):
    assert cli.main([*command, "--model", name, "--prompts", wrong]) == 1

def stands():
    return open(hf_hub_download(name, "README.md")).read()

assert cli.main([*command, "--model", name]) == 0 and stands() == card  # nothing is written unasked
assert cli.main([*command, "--model", name, "--push_to_hub"]) == 0
assert cli.main([*command, "--model", name, "--push_to_hub"]) == 0
print(stands())
assert cli.main([*command, "--model", missing, "--push_to_hub", "--output_dir", folder]) == 1
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_card_of_a_repository(tmp_path):
    write_benchmarks(tmp_path)
    drawing = json.dumps({"num_timesteps": 2, "size": [32, 32], "thinking_budget": 0})
    with running_hub(tmp_path / "hub") as hub, JudgeServer() as server:
        name = f"{ORGANISATION}/tuned"
        command = ["evaluate", "--suite", "wise", "--prompts", tmp_path / "wise.json", "--limit", "2", "--drawing",
                   drawing, "--output_dir", tmp_path / "out", "--judge_model", "judge", "--judge_base_url",
                   server.address, "--judge_api_key_env", "none"]  # fmt: skip
        words = [
            sys.executable,
            "-c",
            PROGRAM.replace("ORG", ORGANISATION),
            name,
            f"{ORGANISATION}/none",
            *map(str, [tmp_path / "none", *command]),
        ]
        environment = os.environ | hub.environment
        done = subprocess.run(words, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "as it was: --push_to_hub writes" in done.stdout
    assert done.stdout.count("The table is in the model's card: http") == 2
    card = done.stdout[done.stdout.rindex("---\nlicense: mit\n---\n# On the Hub") :]
    assert card.count("### Evaluation: wise") == 1 and "2 items, seeds [0]" in card
    refusals = [line for line in done.stderr.splitlines() if line.startswith("uniedit evaluate: ")]
    assert len(refusals) == 4 and "has no file none.json" in refusals[0]
    assert "no data set that can be seen on the Hub" in refusals[1] and "names no file" in refusals[2]
    assert "no model that can be seen on the Hub" in refusals[3]
