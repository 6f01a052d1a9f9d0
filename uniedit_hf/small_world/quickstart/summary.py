"""The results of the base, the tuned model, the one tuned for longer and the one tuned by the paper's recipe, with
intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

import numpy as np

from uniedit_hf.evaluation.intervals import mean_interval, paired_difference
from uniedit_hf.small_world.scoring import Score
from uniedit_hf.small_world.suite import groups
from uniedit_hf.small_world.suite_items import SmallWorldItem


KINDS_OF_EDITS = ("plain", "intelligent", "planned, ")
COLUMNS = ("base", "tuned", "long", "paper")
TUNED = ("tuned", "paper")  # in the run itself


def mean_scores(runs: Sequence[Sequence[Score]]) -> list[Score]:
    """The mean score of every item over the seeds of a column, as a whole and in each part."""
    return [
        Score(
            _mean([score.right for score in each]),
            {part: _mean([score.parts[part] for score in each]) for part in each[0].parts},
        )
        for each in zip(*runs)
    ]


def _mean(values: Sequence[float]) -> float:
    """The mean; for equal values exactly that value, so that the scores of one seed stay 0 and 1."""
    return values[0] if len(set(values)) == 1 else sum(values) / len(values)


def summary(
    items: Sequence[SmallWorldItem],
    scores: Mapping[str, Sequence[Score]],
    of_seeds: Mapping[str, Sequence[Sequence[Score]]],
) -> dict[str, Any]:
    """Per ability and per finer row the mean of every column, and the difference tuned - base with its 95 % paired
    bootstrap interval (4,000 resamplings of the items, seed 0); per ability also the mean of every seed."""
    abilities = tuple(dict.fromkeys(item.ability for item in items))
    rows = {ability: [i for i, item in enumerate(items) if item.ability == ability] for ability in abilities}
    finer: dict[str, dict[str, list[int]]] = {ability: {} for ability in abilities}
    for index, item in enumerate(items):
        if item.view is None:
            finer[item.ability].setdefault(item.kind, []).append(index)
    for name, indices in groups(items).items():
        if name.startswith(KINDS_OF_EDITS):
            finer[items[indices[0]].ability][name] = indices
    result = {}
    for ability in abilities:
        result[ability] = _row(rows[ability], scores) | {
            "rows": {name: _row(indices, scores) for name, indices in sorted(finer[ability].items())},
            "parts": _parts(rows[ability], scores),
            "seeds": {
                column: [float(np.mean([run[i].right for i in rows[ability]])) for run in runs]
                for column, runs in of_seeds.items()
            },
        }
    return result


def _row(indices: Sequence[int], scores: Mapping[str, Sequence[Score]]) -> dict[str, Any]:
    columns = {name: [scores[name][i].right for i in indices] for name in scores}
    difference, low, high = paired_difference(columns["tuned"], columns["base"])
    row: dict[str, Any] = {name: float(np.mean(values)) for name, values in columns.items()}
    row |= {"interval": {name: _known(mean_interval(values)) for name, values in columns.items()}}
    row |= {"difference": difference, "ci95": _known((low, high)), "n": len(indices)}
    for name, (column, other) in {"against_paper": ("tuned", "paper"), "long_difference": ("long", "base")}.items():
        if column in columns and other in columns:
            found, low, high = paired_difference(columns[column], columns[other])
            row[name] = {"difference": found, "ci95": _known((low, high))}
    return row


def _known(interval: tuple[float, float]) -> list[float | None]:
    """An interval for JSON; None for a single item."""
    return [None if isnan(bound) else bound for bound in interval]


def _parts(indices: Sequence[int], scores: Mapping[str, Sequence[Score]]) -> dict[str, dict[str, float]]:
    names = scores["base"][indices[0]].parts
    return {name: {c: float(np.mean([scores[c][i].parts[name] for i in indices])) for c in scores} for name in names}


def verdict(abilities: Mapping[str, Any]) -> str:
    """The result in a sentence, good or bad: the abilities that changed by more than chance explains."""
    moved = {name: row for name, row in abilities.items() if _excludes_zero(*row["ci95"])}
    parts = [f"{name} {'rose' if row['difference'] > 0 else 'fell'} {_from_to(row)}" for name, row in moved.items()]
    same = [name for name in abilities if name not in moved]
    if same:
        parts.append(f"{_and(same)} did not change measurably")
    rows = abilities["editing"]["rows"]
    changing = rows.get("intelligent, to change")
    detail = f"; of those that change something, {_from_to(changing)}" if changing else ""
    return (
        f"After tuning, {_and(parts)}. The share of intelligent edits that are right went "
        f"{_from_to(rows['intelligent'])}{detail}.{_after_a_plan(abilities)}"
    )


def _after_a_plan(abilities: Mapping[str, Any]) -> str:
    """The result of edits that change something, after a plan; empty without such items."""
    row = abilities.get("planned editing", {"rows": {}})["rows"].get("planned, to change")
    if not row:
        return ""
    longer = (
        f", and with the shipped model, which was tuned for longer, {100 * row['long']:.1f} %" if "long" in row else ""
    )
    return (
        f" After a plan that the model writes, the share of those that change something went {_from_to(row)}{longer}."
    )


def _excludes_zero(low: float | None, high: float | None) -> bool:
    """One item has no interval."""
    return low is not None and high is not None and (low > 0 or high < 0)


def _from_to(row: Mapping[str, Any]) -> str:
    return f"from {100 * row['base']:.1f} to {100 * row['tuned']:.1f} %"


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
