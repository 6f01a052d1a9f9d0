"""WISE: knowledge in pictures. A judge gives three marks of 0 to 2; WiScore weighs them, an overall weighs six
categories. There are three overalls in use, which differ; each has a name here."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from uniedit_hf.evaluation.scorers.marks import Marks, mean


WEIGHTS = {"consistency": 0.7, "realism": 0.2, "aesthetic quality": 0.1}
CATEGORIES = ("culture", "time", "space", "biology", "physics", "chemistry")
TIME = ("Longitudinal time", "Horizontal time")
# `mean` is what the Uni-Edit repository reports, `legacy` WISE's first release and lmms-eval, `verified` WISE today.
OVERALLS = {
    "mean": dict.fromkeys(CATEGORIES, 1 / 6),
    "legacy": dict(zip(CATEGORIES, (0.4, 0.167, 0.133, 0.1, 0.1, 0.1))),
    "verified": dict(zip(CATEGORIES, (0.4, 0.12, 0.12, 0.12, 0.12, 0.12))),
}
MARK = re.compile(r"\*{0,2}(Consistency|Realism|Aesthetic Quality)\*{0,2}\s*[:：]?\s*(\d)", re.IGNORECASE)
SENTINEL = 9.9
SIZES = {"culture": 400, "space_time": 300, "science": 300}


def parse(reply: str, compat: bool = False) -> Marks:
    """The three marks of a reply.

    Args:
        compat: As the official script: any digit is a mark, the last one of a name holds, and one that is missing is
            9.9, which makes the script leave out the whole file.
    """
    found = [(name.lower(), int(digit)) for name, digit in MARK.findall(reply)]
    marks = dict(found)
    if compat:
        return Marks({name: marks.get(name, SENTINEL) for name in WEIGHTS})
    if missing := [name for name in WEIGHTS if name not in marks]:
        return Marks(problem=f"no mark for {', '.join(missing)}")
    if len(set(found)) > len(marks):
        return Marks(problem="two marks for one name")
    if max(marks.values()) > 2:
        return Marks(problem=f"a mark of {max(marks.values())}, expected 0 to 2")
    return Marks(marks)


def wiscore(marks: Mapping[str, float]) -> float:
    """Weighted marks, from 0 to 1."""
    return sum(weight * marks[name] for name, weight in WEIGHTS.items()) / 2


def category(row: Mapping) -> str:
    """One of `CATEGORIES`, from the row's `prompt_id` and `Subcategory`.

    Raises:
        ValueError: `prompt_id` is not in 1 to 1000.
    """
    number = int(row["prompt_id"])
    if not 1 <= number <= 1000:
        raise ValueError(f"prompt_id is {number}, but those of WISE are 1 to 1000: check the prompt file.")
    if number <= 400:
        return "culture"
    if number <= 700:
        return "time" if row["Subcategory"] in TIME else "space"
    return CATEGORIES[3 + (number - 701) // 100]


def summary(rows: Iterable[tuple[str, Mapping[str, float]]], compat: bool = False) -> dict[str, float | None]:
    """Every category's WiScore, and the three overalls under `overall_NAME`, where no category is missing.

    Args:
        rows: Category and marks of every reply that could be read.
        compat: As the official script, which works on three files and leaves one out that has too few rows or a mark
            of 9.9.

    Raises:
        ValueError: With `compat`, a file is left out: the official script stops there.
    """
    by_category = defaultdict(list)
    for name, marks in rows:
        by_category[name].append(marks)
    if compat:
        _check_files(by_category)
    values = {name: mean(map(wiscore, by_category[name])) for name in CATEGORIES if name in by_category}
    complete = len(values) == len(CATEGORIES)
    overalls = {
        f"overall_{name}": sum(weights[each] * values[each] for each in CATEGORIES) if complete else None
        for name, weights in OVERALLS.items()
    }
    return values | overalls


def _check_files(by_category: Mapping[str, list]) -> None:
    files = {"culture": CATEGORIES[:1], "space_time": CATEGORIES[1:3], "science": CATEGORIES[3:]}
    for name, parts in files.items():
        rows = [marks for part in parts for marks in by_category[part]]
        failed = sum(SENTINEL in marks.values() for marks in rows)
        if failed or len(rows) < SIZES[name]:
            raise ValueError(
                f"The official script stops at {name}: it has {len(rows)} of {SIZES[name]} rows and {failed} replies "
                "without marks; judge the missing ones, or leave compat out."
            )
