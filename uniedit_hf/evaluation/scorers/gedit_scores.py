"""GEdit with VIEScore: a judge marks how well an edit follows its instruction (SC) and how good it looks (PQ), 0 to 10
each; an item's score is O = sqrt(SC * PQ). The official parser returns random numbers for a reply that it cannot read;
this code never does, in any mode.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import sqrt
from typing import Literal

from uniedit_hf.evaluation.scorers import official_replies
from uniedit_hf.evaluation.scorers.marks import Marks, Scale, mean, read


GROUPS = (
    "background_change", "color_alter", "material_alter", "motion_change", "ps_human", "style_change", "subject-add",
    "subject-remove", "subject-replace", "text_change", "tone_transfer",
)  # fmt: skip
SCALE = Scale(0, 10, whole=False, most=2)
Compat = Literal["uniedit", "lmms-eval"]


def parse(reply: str, compat: Compat | None = None) -> Marks:
    """The lowest mark of a reply, as "score": from JSON with a list or a number under `score`, or a line with that
    label; or of a reply that consists of only a list or a number.

    Args:
        compat: Read as VIEScore's parser does, without checking the scale, but never guess.
    """
    if compat:
        found = official_replies.gedit(reply)
        return Marks(problem="VIEScore's parser gives up") if found is None else Marks({"score": found})
    marks = read(reply, {"score": ("score", "scores")}, SCALE, others=("score",))
    return marks if marks.problem else Marks({"score": min(marks.marks.values())})


def overall(sc: float, pq: float) -> float:
    """The overall score O of one item."""
    return sqrt(sc * pq)


def summary(
    rows: Iterable[Mapping], language: str | None = "en", only_intersection: bool = False, compat: Compat | None = None
) -> dict[str, float | None]:
    """Means of SC, PQ and O for every group, as `GROUP SC`, and their means over groups as `SC`, `PQ` and `overall`.

    The three are `None` unless every group has an item, because they are NaN in the official script; `items SC`,
    `items PQ` and `items O` are the means over items.

    Args:
        rows: `group`, `language`, `intersection`, and `sc` and `pq`, which are `None` if no reply could be read.
        language: Only instructions in this language count; all if `None`.
        only_intersection: Leave out items that are not in the subset that every model of the paper answered.
        compat: `"lmms-eval"` counts items without a mark as 0 instead of leaving them out; its `SC`, `PQ` and
            `overall` are means over items, 0 without items.
    """
    lmms, groups = compat == "lmms-eval", defaultdict(list)
    for row in rows:
        if (language and row["language"] != language) or (only_intersection and not row["intersection"]):
            continue
        sc, pq = row["sc"], row["pq"]
        if sc is None or pq is None:
            if not lmms:
                continue
            sc = pq = 0.0
        groups[row["group"]].append((sc, pq, overall(sc, pq)))
    columns = {group: tuple(map(mean, zip(*each))) for group, each in groups.items()}
    named = {f"{group} {part}": value for group, values in columns.items()
             for part, value in zip(("SC", "PQ", "O"), values)}  # fmt: skip
    pooled = [mean(column) for column in zip(*(item for each in groups.values() for item in each))] or [None] * 3
    named |= dict(zip(("items SC", "items PQ", "items O"), pooled))
    if lmms:
        means = [value or 0.0 for value in pooled]
    elif all(group in columns for group in GROUPS):
        means = [mean(columns[group][part] for group in GROUPS) for part in range(3)]
    else:
        means = [None] * 3
    return named | dict(zip(("SC", "PQ", "overall"), means))
