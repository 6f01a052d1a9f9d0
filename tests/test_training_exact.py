"""Batch, accumulation, processes and activation checkpointing change nothing: the real command, against itself and
against the curve that was recorded."""

from __future__ import annotations

import json

import pytest
from tiny_models import FAMILIES
from training_runs import ALL, COMPARED, CURVES, FAST, logged, make_data, run_mix, weights


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def reference(data, family, tmp_path_factory):
    """The run with everything in one batch, without checkpointing."""
    return run_mix(data, tmp_path_factory.mktemp("reference") / "out", *FAST[0], family)


def check_same(folder, reference, tolerance=1e-5):
    expected, found = logged(reference), logged(folder)
    assert len(found) == len(expected) == 20
    for step, (here, there) in enumerate(zip(found, expected)):
        for name in COMPARED:
            assert here.get(name) == pytest.approx(there.get(name), rel=tolerance), (step, name)
        assert here["epoch"] == there["epoch"] and here["pack_fill"] == there["pack_fill"]
    trained, wanted = weights(folder), weights(reference)
    assert trained.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert (trained[name] - weight).abs().max() <= tolerance, name


def test_curve_is_the_recorded_one(reference, family):
    recorded = json.loads((CURVES / f"{family}.json").read_text())["curve"]
    found = logged(reference)
    assert [log["step"] for log in found] == [log["step"] for log in recorded] == list(range(1, 21))
    for here, there in zip(found, recorded):
        for name in COMPARED:
            # another machine or version may round in another way, which 20 steps let grow
            assert here.get(name) == pytest.approx(there.get(name), rel=1e-3), (here["step"], name)
    assert all("text_loss" in log and "image_loss" in log for log in found), "both losses are learned in every step"
    assert found[-1]["loss"] < 0.6 * found[0]["loss"], "something is learned"


@pytest.mark.parametrize(("processes", "accumulation", "batch", "checkpointing"), FAST[1:])
def test_dealing_out_changes_nothing(data, reference, family, tmp_path, processes, accumulation, batch, checkpointing):
    check_same(run_mix(data, tmp_path / "out", processes, accumulation, batch, checkpointing, family), reference)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("processes", "accumulation", "batch", "checkpointing"), ALL)
def test_no_way_of_dealing_out_changes_anything(
    data, reference, family, tmp_path, processes, accumulation, batch, checkpointing
):
    check_same(run_mix(data, tmp_path / "out", processes, accumulation, batch, checkpointing, family), reference)
