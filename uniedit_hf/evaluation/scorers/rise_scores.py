"""RISE: reasoning in edits. Up to three judges mark consistency, reasoning and plausibility with 1 to 5, logical
puzzles with 0 or 1; an item counts as accurate if all its marks are the highest.

`compat="uniedit"` and `compat="upstream"` do as the scripts of the Uni-Edit repository and of RISEBench do, faults
included.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from uniedit_hf.evaluation.scorers.marks import Marks, mean


CATEGORIES = ("temporal_reasoning", "causal_reasoning", "spatial_reasoning", "logical_reasoning")
FINAL = re.compile(r"\*?\*?Final Score\*?\*?:?\s*([\d*\s,\n]*)")
Compat = Literal["uniedit", "upstream"]


def parse(reply: str, logical: bool, number: int = 1) -> Marks:
    """The marks behind "Final Score", named "1", "2" ...

    Args:
        logical: Whether marks are 0 or 1 instead of 1 to 5.
        number: How many there must be.
    """
    finals = FINAL.findall(reply)
    found = [int(digits) for digits in re.findall(r"\d+", finals[-1])] if finals else []
    low, high = (0, 1) if logical else (1, 5)
    if len(found) != number:
        return Marks(problem=f"{len(found)} marks behind Final Score, expected {number}")
    if not all(low <= mark <= high for mark in found):
        return Marks(problem=f"marks {found}, expected {low} to {high}")
    return Marks({str(index): mark for index, mark in enumerate(found, 1)})


def dimensions(row: Mapping, marks: Mapping[str, float]) -> dict[str, float]:
    """Marks of an item on the scale of 1 to 5: `consistency`, `reasoning` and, but for puzzles, `plausibility`."""
    if row["category"] == "logical_reasoning":
        return {name: 4 * min(marks[name], 1) + 1 for name in ("consistency", "reasoning")}
    return dict(marks)


def consistency_free(row: Mapping, any_flag: bool, compat: Compat | None = None) -> bool:
    """Whether an item's score leaves consistency out.

    Args:
        any_flag: Whether any row of the set has the key `consistency_free`. In both official scripts a row without it
            then counts as free, because the missing value (NaN) is true.
    """
    if compat and any_flag and "consistency_free" not in row:
        return True
    return bool(row.get("consistency_free"))


def score(row: Mapping, values: Mapping[str, float], any_flag: bool = False, compat: Compat | None = None) -> float:
    """The weighted marks of an item, 1 to 5 (in fact from 0.5 times, but not below 1, if reasoning is 1)."""
    reasoning = values["reasoning"]
    if row["category"] == "logical_reasoning":
        total = 0.3 * values["consistency"] + 0.7 * reasoning
    elif consistency_free(row, any_flag, compat):
        total = 0.8 * reasoning + 0.2 * values["plausibility"]
    else:
        total = 0.3 * values["consistency"] + 0.5 * reasoning + 0.2 * values["plausibility"]
    return max(1.0, 0.5 * total) if reasoning == 1 else total


def complete(row: Mapping, values: Mapping[str, float], compat: Compat | None = None) -> bool:
    """Whether all marks of an item that count are 5, the benchmark's accuracy.

    `compat="uniedit"` asks for consistency of every item, so one without it is never complete; `compat="upstream"`
    leaves it out wherever the flag is set, be it to `False`.
    """
    flag = row.get("consistency_free")
    free = {None: bool(flag), "uniedit": False, "upstream": flag is not None}[compat]
    asked: Sequence[str] = ("reasoning", "plausibility") if free else ("consistency", "reasoning", "plausibility")
    if row["category"] == "logical_reasoning":
        asked = ("consistency", "reasoning")
    return all(values.get(name) == 5 for name in asked)


def second_picture(row: Mapping, compat: Compat | None = None) -> str | None:
    """The picture that the judge of reasoning sees beside the edit: a file of the benchmark, or `None`.

    Raises:
        KeyError: With `compat="uniedit"`, for a row with `reference_img` but without `reasoning_img`: that script
            reads the wrong key.
    """
    if compat == "uniedit" and "reference_img" in row:
        return row["reasoning_img"]
    return row.get("reference_img") or (row["image"] if row.get("reasoning_img") else None)


def picture_path(row: Mapping, compat: Compat | None = None) -> str:
    """Where an item's edit lies below the output folder."""
    folder = "images/" if compat == "upstream" else ""
    return f"{folder}{row['category']}/{row['index']}.png"


def summary(
    rows: Iterable[tuple[Mapping, Mapping[str, float]]], compat: Compat | None = None
) -> dict[str, float | None]:
    """`accuracy` and `percent` (25 * (score - 1)), overall, by category and by subtask, and each dimension's mean.

    Args:
        rows: An item's row and its marks, as of `dimensions`.
    """
    rows = list(rows)
    any_flag = any("consistency_free" in row for row, _ in rows)
    accuracy, percent, parts = defaultdict(list), defaultdict(list), defaultdict(list)
    for row, values in rows:
        for name in filter(None, ("overall", row["category"], row.get("subtask"))):
            accuracy[name].append(100.0 * complete(row, values, compat))
            percent[name].append(25 * (score(row, values, any_flag, compat) - 1))
        for name, value in values.items():
            parts[name].append(value)
    named = {f"{name} accuracy": mean(each) for name, each in accuracy.items()}
    named |= {f"{name} percent": mean(each) for name, each in percent.items()}
    return named | {name: mean(each) for name, each in parts.items()}
