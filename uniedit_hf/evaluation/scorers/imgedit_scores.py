"""ImgEdit, single turn: three marks of 1 to 5 for an edit, whose mean is its score; types and all items are
averaged."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Literal

from uniedit_hf.evaluation.scorers import official_replies
from uniedit_hf.evaluation.scorers.marks import Marks, Scale, mean, read
from uniedit_hf.evaluation.scorers.reply_text import plain_text


TYPES = ("replace", "add", "adjust", "remove", "style", "action", "extract", "background", "compose")
SCALE, LISTED = Scale(1, 5), Scale(1, 5, least=3, most=3)
Compat = Literal["uniedit", "lmms-eval"]
# Names of the three criteria in our prompt and in the official ones.
KNOWN = (
    ("instruction", "quality", "preservation"),
    *(("prompt compliance", "visual naturalness", f"physical & detail {last}") for last in ("integrity", "coherence")),
    ("prompt compliance", "visual seamlessness", "physical & detail fidelity"),
    ("style fidelity", "content preservation", "rendering quality"),
    ("action fidelity", "identity preservation", "visual & anatomical coherence"),
    ("object identity", "mask precision", "visual quality"),
    ("instruction compliance", "visual seamlessness", "physical consistency"),
    ("instruction compliance", "visual naturalness", "physical consistency & fine detail"),
)
# Words in the names of criteria, for other prompts.
CRITERIA = re.compile(
    r"instruction|compliance|naturalness|seamlessness|integrity|coherence|fidelity|preservation|quality|identity|"
    r"precision|purity|consistency",
    re.IGNORECASE,
)
SUMMARY = re.compile(
    r"\b(?:overall|average|mean|total|sum|reason\w*)\b|^(?:final )?(?:scores?|ratings?)$", re.IGNORECASE
)
COUNT = re.compile(r"\b(?:objects?|people|items?|number|count|changed|steps?|size|scale|edits?)\b", re.IGNORECASE)
LABELED = re.compile(  # words before a number, on their line or the next
    r"^\W*(?:\d[.)]\s*)?([A-Za-z][A-Za-z &/,'-]{0,60}?)(?: ?\(.*?\))?[\"']? ?"
    r"(?:[:=|-] ?|[:=|-]? ?\n\W*(?:score[\"']? ?[:=] ?)?)[\"']?\d",
    re.MULTILINE | re.IGNORECASE,
)


def parse(reply: str, compat: Compat | None = None) -> Marks:
    """The marks of a reply, named "1", "2", "3": those of its three criteria, under any names. A count of objects or
    an "overall" value is not a mark.

    Args:
        compat: `"uniedit"` reads only lines of the form `words: digits`, so "4." and "**4**" are lost and the mean is
            over the rest; `"lmms-eval"` takes the last three numbers after a colon, or of lines.
    """
    if compat:
        found = (official_replies.imgedit_uniedit if compat == "uniedit" else official_replies.imgedit_lmms)(reply)
        return _numbered(found) if found else Marks(problem="no marks")
    for labels in (*KNOWN, _labels(reply)):
        marks = read(reply, {label: (label,) for label in labels}, SCALE)
        if len(marks.marks) == 3:
            return _numbered(marks.marks.values())
    if not labels:
        marks = read(reply, {"scores": ("scores", "score")}, LISTED)
        return Marks(marks.marks, marks.problem)
    return Marks(problem=marks.problem if len(labels) == 3 else f"{len(labels)} marks, expected 3")


def _labels(reply: str) -> list[str]:
    """The labels before a number in a reply: those that name criteria, or else all possible ones."""
    lines = plain_text(re.sub(r"[{},;]", "\n", reply))
    found = [label for label in dict.fromkeys(map(str.lower, LABELED.findall(lines))) if not SUMMARY.search(label)]
    criteria = [label for label in found if CRITERIA.search(label)]
    return criteria if len(criteria) > 1 else [each for each in found if each in criteria or not COUNT.search(each)]


def _numbered(marks: Iterable[float], problem: str = "") -> Marks:
    return Marks({str(index): mark for index, mark in enumerate(marks, 1)}, problem)


def score(marks: Marks, cap: bool = False, compat: Compat | None = None) -> float:
    """The mean of the marks, rounded to two digits.

    Args:
        cap: Whether to limit the second and third mark to the first, as the prompt asks the judge to do. No official
            code does so.
        compat: `"lmms-eval"` does not round.
    """
    values = list(marks.marks.values())
    if cap:
        values = [min(value, values[0]) for value in values]
    return sum(values) / len(values) if compat == "lmms-eval" else round(sum(values) / len(values), 2)


def summary(rows: Iterable[tuple[str, float | None]], compat: Compat | None = None) -> dict[str, float | None]:
    """A mean for each type, and `overall` over all items (not over types), rounded to two digits as in the benchmark.

    Args:
        rows: Type and score of every item; `None` if no reply could be read. Such items are left out, but count as 0
            with `compat="lmms-eval"`, which does not round.
    """
    by_type = defaultdict(list)
    for kind, value in rows:
        if value is None and compat == "lmms-eval":
            value = 0.0
        if value is not None:
            by_type[kind].append(value)
    means = {kind: mean(each) for kind, each in by_type.items()}
    means["overall"] = mean(value for each in by_type.values() for value in each)
    if compat == "lmms-eval":
        return means | {"overall": means["overall"] or 0.0}
    return {kind: None if value is None else round(value, 2) for kind, value in means.items()}
