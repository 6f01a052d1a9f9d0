"""WISE: knowledge in images. A judge gives three marks of 0 to 2; WiScore weighs them, and an overall score weighs six
categories. Three different overall scores are in use; each has a name here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from uniedit_hf.evaluation.scorers import official_replies
from uniedit_hf.evaluation.scorers.marks import Marks, Scale, mean, read


WEIGHTS = {"consistency": 0.7, "realism": 0.2, "aesthetic quality": 0.1}
CATEGORIES = ("culture", "time", "space", "biology", "physics", "chemistry")
TIME = ("Longitudinal time", "Horizontal time")
# `mean` is reported by the Uni-Edit repository, `legacy` by WISE's first release and lmms-eval. WISE today scores 0 or
# 1 over other ids; `verified_weights` applies only its weights to these marks and categories.
OVERALLS = {
    "mean": dict.fromkeys(CATEGORIES, 1 / 6),
    "legacy": dict(zip(CATEGORIES, (0.4, 0.167, 0.133, 0.1, 0.1, 0.1))),
    "verified_weights": dict(zip(CATEGORIES, (0.4, 0.12, 0.12, 0.12, 0.12, 0.12))),
}
SENTINEL = 9.9
SIZES = {"culture": 400, "space_time": 300, "science": 300}
SCALE = Scale(0, 2)
LABELS = {
    "consistency": ("consistency",),
    "realism": ("realism",),
    "aesthetic quality": ("aesthetic quality", "aesthetics", "aesthetic"),
}


def parse(reply: str, compat: bool = False) -> Marks:
    """The three marks of a reply.

    Args:
        compat: Read as the official script does: any digit is a mark, the last one for a name counts, and a missing
            one is 9.9, which makes the script leave out the whole file.
    """
    if compat:
        return Marks(dict.fromkeys(WEIGHTS, SENTINEL) | official_replies.wise(reply))
    return read(reply, LABELS, SCALE)


def wiscore(marks: Mapping[str, float]) -> float:
    """Weighted marks, from 0 to 1."""
    return sum(weight * marks[name] for name, weight in WEIGHTS.items()) / 2


def category(row: Mapping) -> str:
    """One of `CATEGORIES`, from the row's `prompt_id` and `Subcategory`.

    Raises:
        ValueError: If `prompt_id` is not in 1 to 1000.
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
    """Every category's WiScore, and the three overall scores under `overall_NAME`, if no category is missing.

    Args:
        rows: Category and marks of every reply that could be read.
        compat: Summarize as the official script does, which reads three files and leaves out a file with too few rows
            or a mark of 9.9.

    Raises:
        ValueError: If, with `compat`, a file is left out: there the official script stops.
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


FILES = {"culture": CATEGORIES[:1], "space_time": CATEGORIES[1:3], "science": CATEGORIES[3:]}


def check_sizes(categories: Iterable[str]) -> None:
    """Raises: ValueError: If one of the official script's files would have too few rows."""
    found = list(categories)
    for name, parts in FILES.items():
        number = sum(map(found.count, parts))
        if number < SIZES[name]:
            raise ValueError(
                f"The official script needs {SIZES[name]} rows of {name}, but there are {number}: take all items, or "
                "leave compat out."
            )


def _check_files(by_category: Mapping[str, list]) -> None:
    for name, parts in FILES.items():
        rows = [marks for part in parts for marks in by_category[part]]
        failed = sum(SENTINEL in marks.values() for marks in rows)
        if failed or len(rows) < SIZES[name]:
            raise ValueError(
                f"The official script stops at {name}: it has {len(rows)} of {SIZES[name]} rows and {failed} replies "
                "without marks; judge the missing ones, or leave compat out."
            )
