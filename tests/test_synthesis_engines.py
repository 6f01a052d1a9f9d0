"""The same run on datatrove, with two workers on this machine and with Ray, gives the same set as the local engine."""

from __future__ import annotations

import importlib.util
import shutil

import pytest
from model_server import Behaviour, ModelServer
from synthesis_runs import finish, result_of, settings_for, start, write_settings

from uniedit_hf.synthesis.run import run
from uniedit_hf.synthesis.settings import settings_from


pytest.importorskip("datatrove", reason="datatrove is not installed")

pytestmark = pytest.mark.timeout(900)


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
    if executor == "ray":
        engine["arguments"] = {"mem_per_cpu_gb": 0.25}
    other = settings(server, folder / "datatrove", rows, engine=engine)
    finish(start(write_settings(other, folder / "run.yaml")))
    assert server.calls == 2 * calls
    assert result_of(folder / "datatrove" / "out") == result_of(folder / "local" / "out")
    assert local.counts.records + local.counts.rejects == rows
    # The cache is of the same kind too: the local engine goes on where datatrove was, without a call.
    shutil.rmtree(folder / "datatrove" / "out" / "work" / "shards")
    run(settings_from(settings(server, folder / "datatrove", rows), "it"))
    assert server.calls == 2 * calls
    assert result_of(folder / "datatrove" / "out") == result_of(folder / "local" / "out")


@pytest.mark.parametrize("rows", [40, pytest.param(2000, marks=pytest.mark.slow)])
def test_two_local_workers_give_the_same_set(tmp_path, rows):
    with ModelServer(Behaviour(faults=0.05, others=0.03)) as server:
        compare(server, tmp_path, rows, "local")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_ray_gives_the_same_set(tmp_path):
    with ModelServer(Behaviour(faults=0.05, others=0.03)) as server:
        compare(server, tmp_path, 200, "ray")


def test_one_shard_and_three_give_the_same_set(tmp_path):
    """Where nothing is balanced, as no picture is in two shards."""
    with ModelServer() as server:
        for shards in (1, 3):
            run(settings_from(settings_for(server, tmp_path / str(shards), 30, shards=shards), "it"))
    assert result_of(tmp_path / "1") == result_of(tmp_path / "3")


def test_another_number_of_shards_is_refused(tmp_path):
    with ModelServer() as server:
        run(settings_from(settings_for(server, tmp_path / "out", 4), "it"))
        with pytest.raises(ValueError, match="holds a run with 1 shards, the settings say 2"):
            run(settings_from(settings_for(server, tmp_path / "out", 4, shards=2), "it"))
