"""Paired bootstrap intervals: they hold what they should as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from uniedit_hf.evaluation.intervals import interval_note, mean_interval, paired_difference, sign_test


def test_the_interval_holds_a_known_difference():
    rng = np.random.default_rng(0)
    held = 0
    for draw in range(300):
        base = rng.random(200) < 0.5
        tuned = np.where(rng.random(200) < 0.3, rng.random(200) < 0.8, base)  # 0.7 of 0.5 and 0.3 of 0.8: 0.59
        _, low, high = paired_difference(tuned.astype(float), base.astype(float), seed=draw)
        held += low <= 0.09 <= high
    assert 0.91 <= held / 300 <= 0.98


def test_equal_runs_differ_by_nothing():
    assert paired_difference([1, 0, 1], [1, 0, 1]) == (0.0, 0.0, 0.0)


def test_the_mean_lies_in_its_interval():
    low, high = mean_interval([0, 1, 1, 0, 1, 1, 1, 0])
    assert low < 0.625 < high


@pytest.mark.parametrize("ours, theirs", [([1], [1, 0]), ([], [])])
def test_runs_of_other_items_are_refused(ours, theirs):
    with pytest.raises(ValueError, match="same items"):
        paired_difference(ours, theirs)


@pytest.mark.slow
def test_the_interval_covers_in_a_thousand_draws():
    rng = np.random.default_rng(1)
    held = 0
    for draw in range(1000):
        base = rng.random(200) < 0.5
        tuned = np.where(rng.random(200) < 0.3, rng.random(200) < 0.8, base)  # as above: 0.09 apart
        _, low, high = paired_difference(tuned.astype(float), base.astype(float), seed=draw)
        held += low <= 0.09 <= high
    assert 0.93 <= held / 1000 <= 0.97


@pytest.mark.parametrize(
    "better, worse, same, expected",
    [(0, 0, 5, 1.0), (1, 0, 0, 1.0), (5, 0, 3, 0.0625), (8, 2, 0, 0.109375), (5, 5, 1, 1.0), (0, 10, 0, 2 / 1024)],
)
def test_the_sign_test_is_exact(better, worse, same, expected):
    ours, theirs = [1] * better + [0] * worse + [1] * same, [0] * better + [1] * worse + [1] * same
    assert sign_test(ours, theirs) == pytest.approx(expected)


def test_the_sign_test_of_thousands_of_items_is_a_number():
    assert 0 < sign_test([1] * 2100 + [0] * 1900, [0] * 2100 + [1] * 1900) < 0.01


def test_a_test_of_other_items_is_refused():
    with pytest.raises(ValueError, match="same items"):
        sign_test([1], [1, 0])


@pytest.mark.parametrize("better, worse", [(63, 0), (70, 30), (2000, 1900)])
def test_the_sign_test_takes_numpy_integers(better, worse):
    ours, theirs = [1] * better + [0] * worse, [0] * better + [1] * worse
    for kind in (np.int64, np.int8, np.float32, np.bool_):
        assert sign_test(np.array(ours, kind), np.array(theirs, kind)) == sign_test(ours, theirs) <= 1
    assert sign_test([1] * 63, [0] * 63) == pytest.approx(2.0**-62)


def test_one_item_has_no_interval():
    difference, low, high = paired_difference([1.0], [0.25])
    assert difference == 0.75 and np.isnan(low) and np.isnan(high) and np.isnan(mean_interval([0.5])).all()
    assert interval_note([0.75]) == "one item has no interval"


def test_equal_differences_are_told():
    assert paired_difference([1.0, 0.5], [0.5, 0.0]) == (0.5, 0.5, 0.5)
    assert "all 2 are equal" in interval_note([0.5, 0.5]) and interval_note([0.5, 0.4]) == interval_note([]) == ""
