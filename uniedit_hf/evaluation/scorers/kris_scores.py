"""KRIS-Bench: edits that need knowledge. A judge gives up to four marks of 1 to 5; all marks of a group are pooled.

The official summary script crashes (it passes an argument that the function does not take), so there is no official
number to reproduce; `compat` covers the judge's prompt and how its replies are read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from uniedit_hf.evaluation.scorers import official_replies
from uniedit_hf.evaluation.scorers.marks import Marks, Scale, mean, read


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
SCALE = Scale(1, 5)
LABELS = {
    "consistency": ("consistency",),
    "instruction": ("instruction", "instruction following"),
    "knowledge": ("knowledge", "knowledge plausibility"),
    "quality": ("quality",),
}
SCORE = ("score", "rating")


def metrics(kind: str) -> tuple[str, ...]:
    """The names of the marks for an item of this type."""
    return ("consistency", "instruction", "knowledge", "quality") if kind in KNOWLEDGE else (
        "consistency", "instruction", "quality")  # fmt: skip


def meta(kind: str) -> str:
    """Whether a type asks for factual, conceptual or procedural knowledge.

    Raises:
        ValueError: If there is no such type.
    """
    for name, kinds in META.items():
        if kind in kinds:
            return name
    known = ", ".join(each for kinds in META.values() for each in kinds)
    raise ValueError(f"KRIS has no type {kind!r}: expected one of {known}.")


def explained(kind: str, compat: bool = False) -> bool:
    """Whether the judge's prompt describes the right result; the official script (`compat`) misspells
    anomaly_correction and so omits it.
    """
    return kind in EXPLAINED and not (compat and kind == "anomaly_correction")


def parse(reply: str, names: Iterable[str] = ("score",), compat: bool = False, kind: str = "") -> Marks:
    """Marks by name; a single mark also under "score" or as a bare "4/5".

    Args:
        compat: Read as the official script does, which accepts any digit from 1 to 5 as a single mark if it finds
            nothing else, and does not check the scale in JSON.
        kind: The item's type; with `compat`, types that need knowledge are read by a different script.
    """
    names = list(names)
    if compat:
        found = official_replies.kris_dual(reply) if len(names) > 1 else {
            names[0]: official_replies.kris(reply, names[0], kind in KNOWLEDGE)}  # fmt: skip
        if found is None or None in found.values():
            return Marks(problem="a mark that the official script does not find")
        return Marks(found)
    return read(reply, {name: LABELS.get(name, (name,)) for name in names}, SCALE, SCORE if len(names) == 1 else ())


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
