"""RISE: reasoning in edits. Up to three judges mark consistency, reasoning and plausibility with 1 to 5, logical
puzzles with 0 or 1; an item counts as accurate if all its marks are the highest.

`compat="uniedit"` and `compat="upstream"` follow the scripts of the Uni-Edit repository and of RISEBench, including
their faults.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import isnan, nan
from typing import Literal

from uniedit_hf.evaluation.scorers import official_replies
from uniedit_hf.evaluation.scorers.marks import Marks, Scale, mean, read


CATEGORIES = ("temporal_reasoning", "causal_reasoning", "spatial_reasoning", "logical_reasoning")
Compat = Literal["uniedit", "upstream"]


def parse(reply: str, logical: bool, number: int = 1, compat: Compat | None = None) -> Marks:
    """The marks after "Final Score", named "1", "2" ...

    Args:
        logical: Whether marks are 0 or 1 instead of 1 to 5.
        number: Required number of marks.
        compat: Read as the official scripts do: all numbers after the first "Final Score" that has any, without
            checking the scale.
    """
    if compat:
        found = official_replies.rise(reply)
        if not found:
            return Marks(problem="no number after Final Score")
        return Marks({str(index): mark for index, mark in enumerate(found, 1)})
    scale = Scale(*((0, 1) if logical else (1, 5)), least=number, most=number)
    marks = read(reply, {"1": ("final score", "final scores")}, scale, ("score", "rating"))
    return Marks(marks.marks, marks.problem.replace("no mark for 1", "no mark after Final Score"))


def asks_consistency(row: Mapping, compat: Compat | None = None) -> bool:
    """Whether a judge marks an item's consistency; the official scripts treat a flag of `False` like a set one."""
    flag = row.get("consistency_free")
    return row["category"] == "logical_reasoning" or not (flag if compat is None else flag is not None)


def official_dimensions(row: Mapping, numbers: Sequence[float]) -> dict[str, float]:
    """Marks of an item from all numbers of its replies, in the order of the questions, as in the official scripts: two
    for a puzzle, three for others, without the first if consistency was not asked for.

    Raises:
        ValueError: If there are other numbers of marks; there the official scripts raise an error.
    """
    if not asks_consistency(row, "uniedit") and len(numbers) == 2:
        return dict(zip(("reasoning", "plausibility"), numbers))
    if len(numbers) == 2:
        return {name: 4 * min(mark, 1) + 1 for name, mark in zip(("consistency", "reasoning"), numbers)}
    if len(numbers) != 3 or not asks_consistency(row, "uniedit"):
        raise ValueError(f"{len(numbers)} marks, where the official script raises an error")
    return dict(zip(("consistency", "reasoning", "plausibility"), numbers))


def dimensions(row: Mapping, marks: Mapping[str, float]) -> dict[str, float]:
    """Marks of an item on the scale of 1 to 5: `consistency`, `reasoning` and, except for puzzles, `plausibility`."""
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
    """The weighted marks of an item, 1 to 5; halved, but not below 1, if reasoning is 1.

    NaN if consistency counts but was not asked for, as in the official scripts with a flag of `False`.
    """
    reasoning, consistency = values["reasoning"], values.get("consistency", nan)
    if row["category"] == "logical_reasoning":
        total = 0.3 * consistency + 0.7 * reasoning
    elif consistency_free(row, any_flag, compat):
        total = 0.8 * reasoning + 0.2 * values["plausibility"]
    else:
        total = 0.3 * consistency + 0.5 * reasoning + 0.2 * values["plausibility"]
    if reasoning == 1 and not isnan(total):
        return max(1.0, 0.5 * total)
    return total


def complete(row: Mapping, values: Mapping[str, float], compat: Compat | None = None) -> bool:
    """Whether all marks of an item that count are 5, the benchmark's accuracy.

    `compat="uniedit"` requires consistency for every item, so one without it is never complete; `compat="upstream"`
    leaves it out if the flag is set, even to `False`.
    """
    flag = row.get("consistency_free")
    free = {None: bool(flag), "uniedit": False, "upstream": flag is not None}[compat]
    asked: Sequence[str] = ("reasoning", "plausibility") if free else ("consistency", "reasoning", "plausibility")
    if row["category"] == "logical_reasoning":
        asked = ("consistency", "reasoning")
    return all(values.get(name) == 5 for name in asked)


def second_picture(row: Mapping, compat: Compat | None = None) -> str | None:
    """The image that the judge of reasoning sees besides the edit: a file of the benchmark, or `None`.

    Raises:
        KeyError: With `compat="uniedit"`, for a row with `reference_img` but without `reasoning_img`: that script
            reads the wrong key.
    """
    if compat == "uniedit" and "reference_img" in row:
        return row["reasoning_img"]
    return row.get("reference_img") or (row["image"] if row.get("reasoning_img") else None)


def picture_path(row: Mapping, compat: Compat | None = None) -> str:
    """The path of an item's edit below the output folder."""
    folder = "images/" if compat == "upstream" else ""
    return f"{folder}{row['category']}/{row['index']}.png"


def summary(
    rows: Iterable[tuple[Mapping, Mapping[str, float] | None]], compat: Compat | None = None
) -> dict[str, float | None]:
    """`accuracy` and `percent` (25 * (score - 1)), overall, by category and by subtask, and each dimension's mean.

    Args:
        rows: Each item's row and its marks from `dimensions`; `None` or empty if no reply could be read.
        compat: By default items that could not be read are left out; with `compat` they count as not accurate, and are
            left out only of `percent` and the dimensions.
    """
    rows = [(row, values) for row, values in rows if values or compat]
    any_flag = any("consistency_free" in row for row, _ in rows)
    accuracy, percent, parts = defaultdict(list), defaultdict(list), defaultdict(list)
    for row, values in rows:
        for name in filter(None, ("overall", row["category"], row.get("subtask"))):
            accuracy[name].append(100.0 * (bool(values) and complete(row, values, compat)))
            if values and not isnan(total := score(row, values, any_flag, compat)):
                percent[name].append(25 * (total - 1))
        for name, value in (values or {}).items():
            parts[name].append(value)
    named = {f"{name} accuracy": mean(each) for name, each in accuracy.items()}
    named |= {f"{name} percent": mean(each) for name, each in percent.items()}
    return named | {name: mean(each) for name, each in parts.items()}
