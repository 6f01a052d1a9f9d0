"""Two runs over the same items: what each scores, how far they differ, and how sure that is."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from uniedit_hf.evaluation.intervals import mean_interval, paired_difference, sign_test
from uniedit_hf.evaluation.items import Item, Outcome
from uniedit_hf.evaluation.running import OWN, differing
from uniedit_hf.evaluation.scorers.marks import mean


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
    """The result as JSON can hold it.

    The suite's own summaries are of each run's readable replies. The paired part is over items, each the mean of its
    seeds, that have a value in both runs, and over every group of them where the suite has groups.
    """
    runs = {"tuned": tuned} | ({"baseline": baseline} if baseline is not None else {})
    result: dict = {"headline": suite.HEADLINE, "items": len(items), "seeds": list(seeds), "runs": {}}
    for name, outcomes in runs.items():
        rows = [(item, outcomes[item.name, seed]) for item in items for seed in seeds]
        values = [value for item in items if (value := item_value(item, seeds, outcomes)) is not None]
        result["runs"][name] = {
            "summary": suite.summary(rows, compat),
            "statuses": dict(Counter(outcome.status for _, outcome in rows)),
            "mean_of_items": mean(values),
            "interval": mean_interval(values) if values else None,
        }
    if baseline is not None:
        result["paired"] = _paired(items, seeds, tuned, baseline)
        if hasattr(suite, "groups"):
            result["paired_groups"] = {
                name: _paired([items[index] for index in indices], seeds, tuned, baseline)
                for name, indices in suite.groups(items).items()
            }
    return result


def item_value(item: Item, seeds: Sequence[int], outcomes: Outcomes) -> float | None:
    """The mean over the seeds that have a value."""
    return mean(each.value for seed in seeds if (each := outcomes[item.name, seed]).value is not None)


def _paired(items: Sequence[Item], seeds: Sequence[int], tuned: Outcomes, baseline: Outcomes) -> dict:
    pairs = {}
    for item in items:  # only seeds that have a value in both
        both = [s for s in seeds if tuned[item.name, s].value is not None and baseline[item.name, s].value is not None]
        if both:
            pairs[item.name] = (item_value(item, both, tuned), item_value(item, both, baseline))
    if not pairs:
        return {"items": 0, "difference": None, "interval": None, "sign_test": None, "better": 0, "worse": 0}
    ours, theirs = zip(*pairs.values())
    difference, low, high = paired_difference(ours, theirs)
    return {
        "items": len(pairs),
        "difference": difference,
        "interval": [low, high],
        "sign_test": sign_test(ours, theirs),
        "better": sum(our > their for our, their in pairs.values()),
        "worse": sum(our < their for our, their in pairs.values()),
        "by_item": {name: [our, their] for name, (our, their) in pairs.items()},
    }


def extremes(result: dict, number: int = 6) -> tuple[list[str], list[str]]:
    """Names of the items that lost and that gained the most."""
    pairs = result.get("paired", {}).get("by_item", {})
    ranked = sorted(pairs, key=lambda name: (pairs[name][0] - pairs[name][1], name))
    worst = [name for name in ranked[:number] if pairs[name][0] < pairs[name][1]]
    best = [name for name in ranked[::-1][:number] if pairs[name][0] > pairs[name][1]]
    return worst, best
