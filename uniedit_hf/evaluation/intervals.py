"""Confidence intervals for means and for paired differences, by bootstrap over items, and an exact paired test."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import comb, nan

import numpy as np


DRAWS = 4000
COVERAGE = 0.95


def mean_interval(scores: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95 % bootstrap interval of a mean; NaN for a single score."""
    return _interval(np.asarray(scores, dtype=np.float64), seed)


def paired_difference(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """The mean difference of two runs over the same items, and its 95 % paired bootstrap interval.

    Args:
        ours: One score per item.
        theirs: The other run's scores of the same items, in the same order.
        seed: Seed of the resampling; the same scores and seed give the same interval.

    Returns:
        `(difference, low, high)`; `low` and `high` are NaN for a single item.

    Raises:
        ValueError: If the runs have different numbers of items, or none.
    """
    if len(ours) != len(theirs) or not len(ours):
        raise ValueError(
            f"A paired difference needs the same items in both runs, but they have {len(ours)} and {len(theirs)}."
        )
    differences = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    return (float(differences.mean()), *_interval(differences, seed))


def interval_note(values: Sequence[float]) -> str:
    """The reason why the interval of these scores or differences is not reliable, or ""."""
    if len(values) == 1:
        return "one item has no interval"
    if len(values) and np.ptp(np.asarray(values, dtype=np.float64)) == 0:
        return f"all {len(values)} are equal, so the interval shows no uncertainty"
    return ""


def _interval(values: np.ndarray, seed: int) -> tuple[float, float]:
    if len(values) == 1:
        return nan, nan
    picks = np.random.default_rng(seed).integers(len(values), size=(DRAWS, len(values)))
    means = values[picks].mean(axis=1)
    low, high = np.quantile(means, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


def sign_test(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The exact two-sided probability of a split at least this uneven if neither run were better (McNemar's test for
    scores of 0 and 1).

    Ties are left out; if all items are ties the result is 1.

    Raises:
        ValueError: If the runs have different numbers of items.
    """
    if len(ours) != len(theirs):
        raise ValueError(
            f"A paired test needs the same items in both runs, but they have {len(ours)} and {len(theirs)}."
        )
    better = sum(bool(our > their) for our, their in zip(ours, theirs))  # Python's integers: comb() overflows numpy's
    worse = sum(bool(our < their) for our, their in zip(ours, theirs))
    number = better + worse
    tail = sum(comb(number, count) for count in range(min(better, worse) + 1))
    return min(1.0, float(Fraction(2 * tail, 2**number)))
