"""GEdit with VIEScore: a judge marks how well an edit follows its instruction (SC) and how good it looks (PQ), 0 to 10
each; an item's score is O = sqrt(SC * PQ). The official parser answers with random numbers where it cannot read a
reply; nothing here does, in no mode."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import sqrt
from typing import Literal

from uniedit_hf.evaluation.scorers.marks import Marks, mean


GROUPS = (
    "background_change", "color_alter", "material_alter", "motion_change", "ps_human", "style_change", "subject-add",
    "subject-remove", "subject-replace", "text_change", "tone_transfer",
)  # fmt: skip
DELIMITER = "||V^=^V||"


def parse(reply: str) -> Marks:
    """The lowest mark of a reply, as "score": from JSON with a list or a number under `score`, a list, or a number."""
    found = _read(reply)
    values = found.get("score") if isinstance(found, dict) else found
    values = values if isinstance(values, list) else [values]
    if not values or not all(type(value) in (int, float) for value in values):
        return Marks(problem="no list of numbers under score")
    if not all(0 <= value <= 10 for value in values):
        return Marks(problem=f"marks {values}, expected 0 to 10")
    return Marks({"score": min(values)})


def _read(reply: str):
    text = reply.split(DELIMITER)[1] if reply.count(DELIMITER) >= 2 else reply
    candidates = [text.strip(), *re.findall(r"\{.*\}", text, re.DOTALL), *re.findall(r"\[[^\[\]]*\]\s*$", text)]
    for candidate in candidates:
        try:
            return json.loads(candidate)
        except ValueError:
            continue
    return None


def overall(sc: float, pq: float) -> float:
    """O of one item."""
    return sqrt(sc * pq)


def summary(
    rows: Iterable[Mapping], language: str | None = "en", only_intersection: bool = False,
    compat: Literal["lmms-eval"] | None = None,
) -> dict[str, float | None]:  # fmt: skip
    """Means of SC, PQ and O for every group, as `GROUP SC`, and their means over groups as `SC`, `PQ` and `overall`.

    Args:
        rows: `group`, `language`, `intersection`, and `sc` and `pq`, which are `None` where no reply could be read.
        language: Of the instructions that count; all if `None`.
        only_intersection: Leave out items that are not in the subset that every model of the paper answered.
        compat: `"lmms-eval"` counts items without a mark as 0; else they are left out.
    """
    groups = defaultdict(list)
    for row in rows:
        if (language and row["language"] != language) or (only_intersection and not row["intersection"]):
            continue
        sc, pq = row["sc"], row["pq"]
        if sc is None or pq is None:
            if compat != "lmms-eval":
                continue
            sc = pq = 0.0
        groups[row["group"]].append((sc, pq, overall(sc, pq)))
    columns = [tuple(map(mean, zip(*each))) for each in groups.values()]
    named = {f"{group} {part}": value for group, values in zip(groups, columns)
             for part, value in zip(("SC", "PQ", "O"), values)}  # fmt: skip
    means = [mean(column) for column in zip(*columns)] if columns else [None] * 3
    return named | dict(zip(("SC", "PQ", "overall"), means))
