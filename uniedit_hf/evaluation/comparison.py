"""Compares two runs over the same items: the scores of each, their difference, and its confidence interval."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from uniedit_hf.evaluation.intervals import interval_note, mean_interval, paired_difference, sign_test
from uniedit_hf.evaluation.items import Item, Outcome
from uniedit_hf.evaluation.running import OWN, differing
from uniedit_hf.evaluation.scorers.marks import mean


MOST_REASONS = 5
Outcomes = Mapping[tuple[str, int], Outcome]


def check_same(tuned: Path, baseline: Path) -> None:
    """Raises: ValueError: The runs were made with different settings."""
    one, other = (json.loads((each / "settings.json").read_text(encoding="utf-8")) for each in (tuned, baseline))
    if difference := differing(one, other, ignored=OWN):
        raise ValueError(
            f"{tuned} and {baseline} cannot be compared: {difference}; run both with the same prompts, seeds and "
            "settings."
        )


def compare(
    suite: ModuleType, items: Sequence[Item], seeds: Sequence[int], tuned: Outcomes, baseline: Outcomes | None,
    compat: str | None = None,
) -> dict:  # fmt: skip
    """Compares the runs; the result can be stored as JSON.

    The suite's own summaries cover the readable replies of each run. The paired comparison covers the items that have
    a value in both runs, each the mean over its seeds, and every group of items if the suite has groups.
    """
    seeds = sorted(seeds)
    runs = {"tuned": tuned} | ({"baseline": baseline} if baseline is not None else {})
    failed = getattr(suite, "FAILED", {}).get(compat)
    runs = {name: _counted(outcomes, failed) for name, outcomes in runs.items()}
    result: dict = {"headline": suite.HEADLINE, "items": len(items), "seeds": seeds, "compat": compat, "runs": {}}
    for name, outcomes in runs.items():
        rows = [(item, outcomes[item.name, seed]) for item in items for seed in seeds]
        values = [value for item in items if (value := item_value(item, seeds, outcomes)) is not None]
        summary, problem = _summary(suite, rows, compat)
        result["runs"][name] = {
            "summary": summary,
            "problem": problem,
            "statuses": dict(Counter(outcome.status for _, outcome in rows)),
            "reasons": _reasons(outcome for _, outcome in rows),
            "mean_of_items": mean(values),
            "interval": list(mean_interval(values)) if len(values) > 1 else None,
            "interval_note": interval_note(values),
        }
    if baseline is not None:
        result["paired"] = _paired(items, seeds, **runs)
        if hasattr(suite, "groups"):
            result["paired_groups"] = {
                name: _paired([items[index] for index in indices], seeds, **runs)
                for name, indices in suite.groups(items).items()
            }
    return result


def _summary(suite: ModuleType, rows: Sequence[tuple[Item, Outcome]], compat: str | None) -> tuple[dict, str]:
    """The numbers of a suite, or the reason why its official script gives none."""
    try:
        return suite.summary(rows, compat), ""
    except ValueError as error:
        return {}, str(error)


def _counted(outcomes: Outcomes, failed: float | None) -> Outcomes:
    """The outcomes, with the value that an official script gives to failed ones, if any."""
    if failed is None:
        return outcomes
    return {key: each if each.value is not None else replace(each, value=failed) for key, each in outcomes.items()}


def _reasons(outcomes: Iterable[Outcome]) -> list[dict]:
    """The most frequent reasons of outcomes without marks."""
    counts = Counter((each.status, each.reason) for each in outcomes if each.status != "ok")
    return [
        {"status": status, "reason": reason, "count": count}
        for (status, reason), count in counts.most_common(MOST_REASONS)
    ]


def missing_replies(result: Mapping) -> int:
    """Number of images without a reply; the same command asks again about them."""
    return sum(run["statuses"].get("no_reply", 0) for run in result["runs"].values())


def readable(result: Mapping) -> int:
    """Number of images with marks."""
    return sum(run["statuses"].get("ok", 0) for run in result["runs"].values())


def item_value(item: Item, seeds: Sequence[int], outcomes: Outcomes) -> float | None:
    """The mean over the seeds that have a value."""
    return mean(each.value for seed in seeds if (each := outcomes[item.name, seed]).value is not None)


def _paired(items: Sequence[Item], seeds: Sequence[int], tuned: Outcomes, baseline: Outcomes) -> dict:
    pairs: dict[str, tuple[float, float]] = {}
    for item in items:  # only seeds that have a value in both
        both = [s for s in seeds if tuned[item.name, s].value is not None and baseline[item.name, s].value is not None]
        if both:
            pairs[item.name] = (item_value(item, both, tuned), item_value(item, both, baseline))
    if not pairs:
        return {"items": 0, "difference": None, "interval": None, "sign_test": None, "better": 0, "worse": 0}
    ours, theirs = zip(*pairs.values())
    difference, *interval = paired_difference(ours, theirs)
    return {
        "items": len(pairs),
        "difference": difference,
        "interval": interval if len(pairs) > 1 else None,
        "interval_note": interval_note([our - their for our, their in pairs.values()]),
        "sign_test": sign_test(ours, theirs),
        "better": sum(our > their for our, their in pairs.values()),
        "worse": sum(our < their for our, their in pairs.values()),
        "by_item": {name: [our, their] for name, (our, their) in pairs.items()},
    }


def extremes(result: dict, number: int = 6) -> tuple[list[str], list[str]]:
    """Names of the items that lost the most and that gained the most."""
    pairs = result.get("paired", {}).get("by_item", {})
    ranked = sorted(pairs, key=lambda name: (pairs[name][0] - pairs[name][1], name))
    worst = [name for name in ranked[:number] if pairs[name][0] < pairs[name][1]]
    best = [name for name in ranked[::-1][:number] if pairs[name][0] > pairs[name][1]]
    return worst, best
