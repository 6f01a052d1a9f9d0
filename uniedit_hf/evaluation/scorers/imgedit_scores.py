"""ImgEdit, single turn: three marks of 1 to 5 for an edit, whose mean is its score; types and all items are
averaged."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Literal

from uniedit_hf.evaluation.scorers.marks import Marks, mean


TYPES = ("replace", "add", "adjust", "remove", "style", "action", "extract", "background", "compose")
LINE = re.compile(r"^.*?\w.*?:\s*\**\s*(\d+)\**\s*(?:/\s*5|out of 5)?\**\.?\**\s*$", re.IGNORECASE)
Compat = Literal["uniedit", "lmms-eval"]


def parse(reply: str, compat: Compat | None = None) -> Marks:
    """The marks of a reply, named "1", "2", "3".

    Args:
        compat: `"uniedit"` takes every line `words: digits` and nothing else, so "4." and "**4**" are lost and the
            mean is over what is left; `"lmms-eval"` takes the last three numbers after a colon.
    """
    if compat == "uniedit":
        parts = [line.split(": ") for line in reply.split("\n")]
        found = [int(part[1]) for part in parts if len(part) == 2 and part[1].isdigit()]
    elif compat == "lmms-eval":
        found = [int(digits) for digits in re.findall(r":\s*(\d+)", reply)][-3:]
    else:
        found = [int(match[1]) for line in reply.splitlines() if (match := LINE.match(line.strip()))]
        if len(found) == 3 and not all(1 <= mark <= 5 for mark in found):
            return Marks(problem=f"marks {found}, expected 1 to 5")
    if not found or (compat != "uniedit" and len(found) != 3):
        return Marks(problem=f"{len(found)} marks, expected 3")
    return Marks({str(index): mark for index, mark in enumerate(found, 1)})


def score(marks: Marks, cap: bool = False) -> float:
    """The mean of the marks, rounded to two digits.

    Args:
        cap: Whether the second and third mark are held at or below the first, as the prompt asks the judge to do. No
            official code does.
    """
    values = list(marks.marks.values())
    if cap:
        values = [min(value, values[0]) for value in values]
    return round(sum(values) / len(values), 2)


def summary(rows: Iterable[tuple[str, float | None]], compat: Compat | None = None) -> dict[str, float | None]:
    """A mean for each type, and `overall` over all items (not over types), rounded to two digits as in the benchmark.

    Args:
        rows: Type and score of every item; `None` where no reply could be read. Such items are left out, but count 0
            with `compat="lmms-eval"`.
    """
    by_type = defaultdict(list)
    for kind, value in rows:
        if value is None and compat == "lmms-eval":
            value = 0.0
        if value is not None:
            by_type[kind].append(value)
    values = {kind: round(mean(each), 2) for kind, each in by_type.items()}
    overall = mean(value for each in by_type.values() for value in each)
    return values | {"overall": None if overall is None else round(overall, 2)}
