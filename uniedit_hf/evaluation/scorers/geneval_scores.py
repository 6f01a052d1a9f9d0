"""GenEval: whether an image shows the objects of its prompt in the right number, color and position.

Rules and thresholds are those of the benchmark (Ghosh et al., 2023). The detector is another one, so the numbers are
not those of the official script.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uniedit_hf.evaluation.scorers.marks import mean


TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
THRESHOLD = 0.3
COUNTING_THRESHOLD = 0.9
MOST_OBJECTS = 16  # per class
SLACK = 0.1  # share of the objects' sizes by which they may overlap and still count as next to each other


@dataclass(frozen=True)
class Detection:
    """An object in an image: its box (left, top, right, bottom) in pixels, the detector's score, and its mask."""

    box: tuple[float, float, float, float]
    score: float = 1.0
    mask: Any = None


Objects = Mapping[str, Sequence[Detection]]
ColorsOf = Callable[[Sequence[Detection], str], Sequence[str]]


def kept(detections: Iterable[Detection], tag: str) -> list[Detection]:
    """The detections of one class that count for a prompt with this tag: those with a high enough score, best first,
    16 at most.
    """
    threshold = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    ranked = sorted(detections, key=lambda each: -each.score)
    return [each for each in ranked if each.score > threshold][:MOST_OBJECTS]


def evaluate(objects: Objects, metadata: Mapping, colors_of: ColorsOf) -> tuple[bool, list[str]]:
    """Whether an image shows what its prompt asks for, and what is wrong if not.

    Args:
        objects: Detections of every class that count, best first.
        metadata: The prompt's row: `include`, and perhaps `exclude`.
        colors_of: Returns the colors of some detections of a class; called only if the prompt names a color.
    """
    wrong: list[str] = []
    groups: list[Sequence[Detection] | None] = []
    for asked in metadata.get("include", ()):
        found = list(objects.get(asked["class"], ()))[: asked["count"]]
        problem = _problem(asked, found, groups, colors_of)
        groups.append(None if problem else found)
        wrong += [problem] if problem else []
    for banned in metadata.get("exclude", ()):
        number = len(objects.get(banned["class"], ()))
        if number >= banned["count"]:
            wrong.append(f"{number} {banned['class']}, expected fewer than {banned['count']}")
    return not wrong, wrong


def _problem(asked: Mapping, found: list[Detection], groups: list, colors_of: ColorsOf) -> str:
    name, count = asked["class"], asked["count"]
    if len(found) < count:
        return f"{len(found)} {name}, expected {count}"
    if "color" in asked and list(colors_of(found, name)).count(asked["color"]) < count:
        return f"{name} is not {asked['color']}"
    if "position" in asked:
        relation, target = asked["position"]
        if groups[target] is None:
            return f"nothing that {name} could be {relation}"
        pairs = [(one, other) for one in found for other in groups[target]]
        if not all(relation in relative_position(one.box, other.box) for one, other in pairs):
            return f"{name} is not {relation} its target"
    return ""


def relative_position(box: Sequence[float], other: Sequence[float]) -> set[str]:
    """The position of `box` relative to `other`: up to two of "left of", "right of", "above", "below"."""
    offset = [(box[i] + box[i + 2] - other[i] - other[i + 2]) / 2 for i in (0, 1)]
    sizes = [abs(box[i + 2] - box[i]) + abs(other[i + 2] - other[i]) for i in (0, 1)]
    apart = [math.copysign(max(abs(o) - SLACK * s, 0), o) for o, s in zip(offset, sizes)]
    if all(abs(each) < 1e-3 for each in apart):
        return set()
    x, y = (each / math.hypot(*offset) for each in apart)
    named = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, holds in named.items() if holds}


def summary(rows: Iterable[tuple[str, str, bool]]) -> dict[str, float | None]:
    """The benchmark's numbers.

    Args:
        rows: Tag, prompt and whether it is right, for every image.

    Returns:
        A share for each tag, `overall` (the mean of the tags), `images` (the share of right images) and `prompts`
        (the share of prompts with at least one).
    """
    by_tag, by_prompt = defaultdict(list), defaultdict(list)
    for tag, prompt, right in rows:
        by_tag[tag].append(right)
        by_prompt[tag, prompt].append(right)
    tags = {tag: mean(by_tag[tag]) for tag in TAGS if tag in by_tag}
    return tags | {
        "overall": mean(tags.values()),
        "images": mean(right for rights in by_tag.values() for right in rights),
        "prompts": mean(any(rights) for rights in by_prompt.values()),
    }
