"""Paired bootstrap intervals: they hold what they should as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from uniedit_hf.evaluation.intervals import mean_interval, paired_difference


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
