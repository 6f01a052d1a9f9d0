"""KRIS-Bench: edits that need knowledge. A judge gives up to four marks of 1 to 5; all marks of a group are pooled.

The official summary calls a function with an argument that it lacks and never ends, so there is no number of it to
reproduce; `compat` covers what its judge is shown and how its replies are read.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from uniedit_hf.evaluation.scorers.marks import Marks, mean


META = {
    "factual": (
        "color_change", "count_change", "part_completion", "position_movement", "size_adjustment",
        "anomaly_correction", "viewpoint_change", "temporal_prediction",
    ),
    "conceptual": (
        "practical_knowledge", "biology", "chemistry", "geography", "humanities", "mathematics", "medicine", "physics",
    ),
    "procedural": (
        "abstract_reasoning", "rule-based_reasoning", "multi-element_composition", "multi-instruction_execution",
    ),
}  # fmt: skip
KNOWLEDGE = (*META["conceptual"], "abstract_reasoning", "rule-based_reasoning")
EXPLAINED = (*KNOWLEDGE, "anomaly_correction")
OUT_OF_FIVE = (r"([1-5])\s*/\s*5", r"([1-5])\s+out of 5")


def metrics(kind: str) -> tuple[str, ...]:
    """The marks that an item of a type gets."""
    return ("consistency", "instruction", "knowledge", "quality") if kind in KNOWLEDGE else (
        "consistency", "instruction", "quality")  # fmt: skip


def meta(kind: str) -> str:
    """Whether a type asks for factual, conceptual or procedural knowledge.

    Raises:
        ValueError: There is no such type.
    """
    for name, kinds in META.items():
        if kind in kinds:
            return name
    known = ", ".join(each for kinds in META.values() for each in kinds)
    raise ValueError(f"KRIS has no type {kind!r}: expected one of {known}.")


def explained(kind: str, compat: bool = False) -> bool:
    """Whether the judge is told what the right result shows; `compat` misspells, and so forgets,
    anomaly_correction."""
    return kind in EXPLAINED and not (compat and kind == "anomaly_correction")


def quality_pictures(compat: bool = False) -> tuple[str, ...]:
    """What the judge of quality sees; with `compat` the edit also stands where the original should."""
    return ("edited", "edited") if compat else ("edited",)


def parse(reply: str, names: Iterable[str] = ("score",), compat: bool = False) -> Marks:
    """Marks by name: from a JSON object with `NAME_score` or `NAME`, and a single one from "4/5" or "4 out of 5".

    Args:
        compat: Take any lonely digit of 1 to 5 as the mark if nothing else is there, as the official script does.
    """
    names = list(names)
    for text in re.findall(r"\{[^{}]*\}", reply, re.DOTALL):
        try:
            found = json.loads(text)
        except ValueError:
            continue
        values = {name: found.get(f"{name}_score", found.get(name)) for name in names}
        if all(type(value) in (int, float) and 1 <= value <= 5 for value in values.values()):
            return Marks(values)
    patterns = (*OUT_OF_FIVE, r"\b([1-5])\b") if compat else OUT_OF_FIVE
    for pattern in patterns if len(names) == 1 else ():
        if match := re.search(pattern, reply):
            return Marks({names[0]: int(match[1])})
    return Marks(problem=f"no mark of 1 to 5 for {', '.join(names)}")


def summary(rows: Iterable[tuple[str, Mapping[str, float]]]) -> dict[str, float | None]:
    """Means of all marks on a scale of 0 to 100: by type, by kind of knowledge, and `overall`.

    Args:
        rows: Type and marks of every item.
    """
    pooled = defaultdict(list)
    for kind, marks in rows:
        for name in (kind, meta(kind), "overall"):
            pooled[name] += [25 * (mark - 1) for mark in marks.values()]
    return {name: mean(each) for name, each in pooled.items()}
