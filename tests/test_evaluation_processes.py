"""`uniedit evaluate` as processes: killed while it draws, shared out over two, and what it holds in memory."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.evaluation_parts import write_benchmarks
from tests.judge_server import JudgeServer
from tests.tiny_models import tiny_bagel, tiny_bagel_processor
from uniedit_hf import cli


LAUNCH = (
    "--cpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0".split()
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    for seed, name in enumerate(("tuned", "base")):
        tiny_bagel(seed).save_pretrained(folder / name)
        tiny_bagel_processor().save_pretrained(folder / name)
    write_benchmarks(folder)
    return folder


def words(parts: Path, output: Path, server: JudgeServer, steps: int = 3) -> list[str]:
    drawing = json.dumps({"num_timesteps": steps, "size": [32, 32], "thinking_budget": 0})
    return [str(word) for word in (
        "evaluate", "--suite", "wise", "--prompts", parts / "wise.json", "--model", parts / "tuned", "--baseline",
        parts / "base", "--drawing", drawing, "--output_dir", output, "--batch_size", 1, "--limit", 3, "--seeds", 0, 1,
        "--judge_model", "judge", "--judge_base_url", server.address, "--judge_api_key_env", "none",
    )]  # fmt: skip


def table(output: Path) -> dict:
    """The result without the names of the models' folders."""
    return json.loads((output / "result.json").read_text()) | {"models": None}


def test_a_run_killed_while_it_draws_goes_on_to_the_same_table(parts, tmp_path):
    with JudgeServer() as server:
        command = words(parts, tmp_path / "killed", server, steps=20)
        process = subprocess.Popen([sys.executable, "-m", "uniedit_hf.cli", *command], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 100
        while len(pictures(tmp_path / "killed")) < 3 and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        finished = pictures(tmp_path / "killed")
        assert 3 <= len(finished) < 12 and not server.answered
        assert cli.main(command) == 0
        now = pictures(tmp_path / "killed")
        assert len(now) == 12 and {path: now[path] for path in finished} == finished  # no image was drawn again
        assert set(server.answered.values()) == {1} and server.answered.total() == 12
        again = words(parts, tmp_path / "whole", server, steps=20)
        assert cli.main(again) == 0
    assert table(tmp_path / "killed") == table(tmp_path / "whole")
    for path in now:
        assert path.read_bytes() == (tmp_path / "whole" / path.relative_to(tmp_path / "killed")).read_bytes()


def pictures(folder: Path) -> dict[Path, int]:
    """Finished images and when they were written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("*/images/*/*.png")}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_make_the_same_table_as_one(parts, tmp_path):
    with JudgeServer() as server:
        launch = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH, "-m", "uniedit_hf.cli"]
        done = subprocess.run([*launch, *words(parts, tmp_path / "two", server)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert server.answered.total() == 12  # one process judges
        assert cli.main(words(parts, tmp_path / "one", server)) == 0
    assert table(tmp_path / "two") == table(tmp_path / "one")
    assert done.stdout.count("The result, with the worst and best examples") == 1


MEMORY = """
import json, resource, sys
from pathlib import Path
from PIL import Image
from uniedit_hf.evaluation import running
from uniedit_hf.evaluation.judge import Judge, JudgeSettings
from uniedit_hf.evaluation.suites import suite

class Pipeline:  # draws at once; how much is held is what is looked at
    batch_size = 4

    def generate(self, prompts, seed, **settings):
        return [Image.new("RGB", (SIDE, SIDE), (each, 0, 0)) for each in seed]

SIDE, folder, wise = 2048, Path(sys.argv[3]), suite("wise")
items, seeds = wise.read(sys.argv[2]), list(range(int(sys.argv[4])))

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

running.draw(Pipeline(), items[:4], [0], folder / "first", {})  # what the libraries take themselves
start = peak()
running.draw(Pipeline(), items, seeds, folder, {})
drawn = peak()
judge = Judge(JudgeSettings("judge", sys.argv[1], None, workers=2))
running.judge(wise, judge, items, seeds, folder, {})
print(json.dumps({"draw": drawn - start, "judge": peak() - drawn, "pictures": len(items) * len(seeds)}))
"""


def test_runners_hold_one_batch_of_pictures(parts, tmp_path):
    with JudgeServer() as server:
        program = [sys.executable, "-c", MEMORY, server.address, parts / "wise.json", tmp_path, "6"]
        done = subprocess.run(list(map(str, program)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    held = json.loads(done.stdout)
    one = 2048 * 2048 * 3 / 2**20  # MiB; all 36 images are 432
    assert held["pictures"] == 36
    assert held["draw"] < 2 * one and held["judge"] < 8 * one, held
