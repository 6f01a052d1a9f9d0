"""The same run on datatrove, with two workers on this machine, with Ray, and by Slurm's scripts, gives the same set as
the local engine."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import pytest
from model_server import Behaviour, ModelServer
from synthesis_runs import CHAT, EDITOR, finish, killed_run, result_of, settings_for, start, write_settings

from uniedit_hf.synthesis.run import run
from uniedit_hf.synthesis.settings import settings_from


pytest.importorskip("datatrove", reason="datatrove is not installed")

pytestmark = pytest.mark.timeout(900)

ARGUMENTS = {"ray": {"mem_per_cpu_gb": 0.25}, "slurm": {"partition": "cpu", "time": "00:10:00"}}
# Takes a job as Slurm's sbatch does, and runs it at once: every task of the array, if the job it waits for went well.
SBATCH = """#!/bin/bash
script="${@: -1}" jobs="$(dirname "$0")/jobs"
mkdir -p "$jobs"
for option in "$@"; do
  case $option in --dependency=afterok:*) [ "$(cat "$jobs/${option##*:}")" = 0 ] || exit 1 ;; esac
done
job=$(($(ls "$jobs" | wc -l) + 1)) code=0
for task in $(seq 0 "$(sed -nE 's/^#SBATCH --array=0-([0-9]+).*/\\1/p' "$script")"); do
  SLURM_ARRAY_TASK_ID=$task SLURM_JOB_ID=$job SLURM_NODELIST=here bash "$script" >> "$jobs/../log" 2>&1 || code=1
done
echo $code > "$jobs/$job"
echo "Submitted batch job $job"
"""
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do [ "$1" = -n ] && shift; shift; done
exec "$@"
"""
SCONTROL = """#!/bin/bash
echo "${@: -1}"
"""


@pytest.fixture(scope="module", autouse=True)
def key():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "sk-test")
        yield


def settings(server, folder, rows, **sections) -> dict:
    return settings_for(server, folder / "out", rows, shards=2, **sections)


def compare(server, folder, rows: int, executor: str) -> None:
    """Runs the settings on both engines, kills nothing, and compares."""
    local = run(settings_from(settings(server, folder / "local", rows), "it"))
    calls = server.calls
    engine = {"kind": "datatrove", "executor": executor, "workers": 2}
    engine["arguments"] = ARGUMENTS.get(executor, {})
    other = settings(server, folder / "datatrove", rows, engine=engine)
    finish(start(write_settings(other, folder / "run.yaml")))
    assert server.calls == 2 * calls
    assert result_of(folder / "datatrove" / "out") == result_of(folder / "local" / "out")
    assert local.counts.records + local.counts.rejects == rows
    # The cache is of the same kind too: the local engine resumes where datatrove was, without a call.
    shutil.rmtree(folder / "datatrove" / "out" / "work" / "shards")
    run(settings_from(settings(server, folder / "datatrove", rows), "it"))
    assert server.calls == 2 * calls
    assert result_of(folder / "datatrove" / "out") == result_of(folder / "local" / "out")


@pytest.mark.parametrize("rows", [40, pytest.param(2000, marks=pytest.mark.slow)])
def test_two_local_workers_give_the_same_set(tmp_path, rows):
    with ModelServer(Behaviour(faults=0.05, others=0.03)) as server:
        compare(server, tmp_path, rows, "local")


@pytest.mark.slow
def test_being_killed_with_two_workers_changes_nothing(tmp_path):
    rows, kills = 80, 3
    with ModelServer(Behaviour(faults=0.05, others=0.03)) as server:
        merged = run(settings_from(settings_for(server, tmp_path / "whole", rows, shards=2), "it"))
        total, alike = server.calls, server.repeated  # shards have a cache each, and some of their questions are alike
    with ModelServer(Behaviour(faults=0.05, others=0.03)) as server:
        engine = {"kind": "datatrove", "executor": "local", "workers": 2}
        settings = settings_for(server, tmp_path / "killed", rows, shards=2, engine=engine)
        struck, repeated = killed_run(settings, server, tmp_path, kills, total)
        print(f"{rows} rows, {total} calls, {merged.counts.records} records; killed {struck} times, ", end="")  # noqa: T201
        print(f"calls alike {alike}, calls repeated after each: {repeated}")  # noqa: T201
    assert struck >= kills - 1
    assert sum(repeated) - alike <= struck * 2 * (CHAT + EDITOR)
    assert result_of(tmp_path / "killed") == result_of(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_ray_gives_the_same_set(tmp_path):
    with ModelServer(Behaviour(faults=0.05, others=0.03)) as server:
        compare(server, tmp_path, 200, "ray")


@pytest.mark.slow
def test_the_scripts_for_slurm_give_the_same_set(tmp_path, monkeypatch):
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    # Without the environment's programs, as if it had not been activated.
    others = [folder for folder in os.environ["PATH"].split(":") if not (Path(folder) / "merge_stats").exists()]
    monkeypatch.setenv("PATH", ":".join([str(tmp_path), *others]))
    with ModelServer(Behaviour(faults=0.05, others=0.03)) as server:
        compare(server, tmp_path, 30, "slurm")
    script = (tmp_path / "datatrove" / "out" / "work" / "datatrove" / "launch_script.slurm").read_text()
    assert "#SBATCH --array=0-1%2" in script and "#SBATCH --partition=cpu" in script and "sk-test" not in script
    assert [(tmp_path / "jobs" / str(number)).read_text() for number in range(1, 5)] == ["0\n"] * 4


def test_slurm_without_sbatch_or_with_blanks_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    engine = {"kind": "datatrove", "executor": "slurm", "arguments": ARGUMENTS["slurm"]}
    with ModelServer() as server:
        with pytest.raises(ValueError, match="Slurm accepted no job .*sbatch"):
            run(settings_from(settings(server, tmp_path, 4, engine=engine), "it"))
        with pytest.raises(ValueError, match="cannot name a folder with blanks"):
            run(settings_from(settings(server, tmp_path / "a b", 4, engine=engine), "it"))


def test_one_shard_and_three_give_the_same_set(tmp_path):
    """Where nothing is balanced, as no image is in two shards."""
    with ModelServer() as server:
        for shards in (1, 3):
            run(settings_from(settings_for(server, tmp_path / str(shards), 30, shards=shards), "it"))
    assert result_of(tmp_path / "1") == result_of(tmp_path / "3")


def test_another_number_of_shards_is_refused(tmp_path):
    with ModelServer() as server:
        run(settings_from(settings_for(server, tmp_path / "out", 4), "it"))
        with pytest.raises(ValueError, match="contains a run with 1 shards, the settings say 2"):
            run(settings_from(settings_for(server, tmp_path / "out", 4, shards=2), "it"))
