"""What a run logs of its speed."""

from __future__ import annotations

import time

import pytest
import torch
from tiny_models import FAMILIES
from training_data import edit_rows, trainer

from uniedit_hf.models.workload import Workload
from uniedit_hf.training.cards import Card
from uniedit_hf.training.meters import PARTS, Meters, StepClock, summary, typical


@pytest.mark.parametrize("family", FAMILIES)
def test_operations_and_seconds_of_a_run(tmp_path, family):
    run = trainer(tmp_path, edit_rows(24), family=family, max_steps=4, gradient_accumulation_steps=2)
    begun = time.perf_counter()
    run.train()
    elapsed = time.perf_counter() - begun
    logs = [log for log in run.state.log_history if "loss" in log]
    assert len(logs) == 4 and all(log["tflops_per_second"] > 0 and "mfu" not in log for log in logs)
    packs = [[(run.parts[0].recipe, run.parts[0].row(r.row), r.epoch) for r in pack] for pack in run.data.plan.packs]
    works = [run.reader.read(pack, "", 0)["pack"].work for pack in packs]
    assert run.state.total_flos == run.meters.operations(works).useful > 0
    by_part = {part: sum(log[f"{part}_seconds"] for log in logs) for part in PARTS}
    assert all(by_part[part] > 0 for part in ("data", "forward", "backward", "optimizer"))
    assert sum(by_part.values()) <= elapsed + 0.001


def test_a_clock_tells_parts_apart():
    clock = StepClock(torch.device("cpu"))
    assert clock.read() == {}
    for part, seconds in (("forward", 0.02), ("backward", 0.05), ("forward", 0.02)):
        clock.begin(part)
        time.sleep(seconds)
    found = clock.read()
    assert found["forward"] >= 0.04 and 0.05 <= found["backward"] < 0.2
    time.sleep(0.01)
    assert list(clock.read()) == ["forward"], "what runs goes on"


def test_the_share_of_a_card(tmp_path):
    """Of two processes, each of which did half of the operations."""
    meters = Meters(FAMILIES["bagel"].model(), True, True, torch.device("cpu"))
    meters.card = Card("NVIDIA H200", 141 * 10**9, 989, 4.8)
    sums = {f"{part}_seconds": 8.0 for part in PARTS} | {"useful_operations": 8e15, "steps": 4}
    logs = meters.logs(sums, seconds=10, processes=2)
    assert logs["tflops_per_second"] == 400 and logs["mfu"] == round(400 / 989, 4)
    assert logs["forward_seconds"] == 2


def test_recomputed_operations_are_not_useful():
    once, twice = (Meters(FAMILIES["bagel"].model(), again, True, torch.device("cpu")) for again in (False, True))
    work = [Workload(tokens=10, drawn=4, read=4, pairs=100, read_pairs=16)]
    assert once.operations(work).total == once.operations(work).useful == twice.operations(work).useful
    assert twice.operations(work).total > once.operations(work).total


def test_meters_in_words():
    log = {"tokens_per_second": 9123.4, "tflops_per_second": 400.0, "mfu": 0.4321, "peak_memory_gib": 82.2}
    assert summary(log) == "9,123 tokens/s, MFU 43.2 %, 82.2 GiB"
    slow = log | {"tokens_per_second": 10.0}
    assert typical([slow, log, log]) == summary(log), "the first steps compile"
    assert typical([{"eval_loss": 1.0}]) is None


def test_the_progress_bar_and_the_card_show_them(tmp_path, capfd):
    run = trainer(tmp_path, edit_rows(12), max_steps=2, disable_tqdm=False)
    run.train()
    assert "tokens/s" in capfd.readouterr().err
    run.create_model_card()
    assert "| speed on 1 x the CPU of this machine |" in (tmp_path / "README.md").read_text()
