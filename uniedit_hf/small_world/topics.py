"""Topics of intelligent instructions: one embedded question with the conditions and edits that depend on it."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from uniedit_hf.small_world.easy_vqa import VqaRow
from uniedit_hf.small_world.program import (
    ALL_ACTIONS,
    ALL_CONDITIONS,
    OWN_CORNERS,
    Action,
    Closer,
    Condition,
    Copies,
    HasCorners,
    InHalf,
    Is,
    Move,
    Recolor,
    Reshape,
    Resize,
    WiderThan,
)
from uniedit_hf.small_world.questions import CORNER_QUESTION, SIDE_QUESTION, clear_level, clear_side
from uniedit_hf.small_world.scene import Scene
from uniedit_hf.small_world.wording import CORNERS_QUESTION, LEADS, NUMBER_WORDS, asks, question_of


Category = Literal["shape", "color", "count", "location", "knowledge"]
PlainKind = Literal["color", "shape", "location", "size", "count"]

CATEGORIES: tuple[Category, ...] = ("shape", "color", "count", "location", "knowledge")
PLAIN_KINDS: tuple[PlainKind, ...] = ("color", "shape", "location", "size", "count")
_CLASSES = {"color": Recolor, "shape": Reshape, "location": Move, "size": Resize, "count": Copies}


@dataclass(frozen=True)
class Sort:
    """Conditions with the same subject and the same wording."""

    subject: str
    conditions: tuple[Condition, ...]


@dataclass(frozen=True)
class Topic:
    """An embedded question with possible conditions and edits.

    Args:
        question: The question.
        answer: Its answer on this image.
        sorts: Possible outermost conditions.
        actions: Possible main edits.
        source: The origin of the question.
        leads: Sentences that may precede the instruction.
        proposition: The proposition of a yes/no question of easy-VQA, so that "if so" can follow it.
    """

    question: str
    answer: str
    sorts: Sequence[Sort]
    actions: Sequence[Action]
    source: Literal["easy-vqa", "composed"] = "composed"
    leads: Sequence[str] = ()
    proposition: Is | None = None


def draw_topic(scene: Scene, row: VqaRow, category: Category, truth: bool, rng: random.Random) -> Topic | None:
    """A topic of a category for an image, or None if the image has none.

    Args:
        scene: The scene in the image.
        row: A question about it, which is the topic of the categories shape and color.
        category: The subject of the question.
        truth: Whether the outermost condition should be true.
        rng: Draws every choice.
    """
    match category:
        case "count":
            return _count_topic(scene, rng)
        case "location":
            return _location_topic(scene, truth, rng)
        case "knowledge":
            return _knowledge_topic(scene, truth, rng)
    return _yes_no_topic(row) if not row.is_open else _open_topic(row)


def draw_condition(scene: Scene, sorts: Sequence[Sort], truth: bool, rng: random.Random) -> Condition | None:
    """A condition that is clear on the scene and truth, or does not; None if there is none. One sort is as frequent
    as another, negated conditions being a sort of their own, so that the sort says little about the truth."""
    for sort in rng.sample(sorts, len(sorts)):
        fitting = [c for c in sort.conditions if c.clear(scene) and c.is_true(scene) == truth]
        if fitting:
            return rng.choice(fitting)
    return None


def sorted_out(conditions: Iterable[Condition]) -> tuple[Sort, ...]:
    """Conditions by sort."""
    sorts: dict[tuple[str, ...], list[Condition]] = defaultdict(list)
    for condition in conditions:
        sorts[_sort(condition)].append(condition)
    return tuple(Sort(name[0], tuple(members)) for name, members in sorts.items())


@cache
def simple_actions() -> tuple[Action, ...]:
    """Direct edits of color, shape, place and size, all kinds equally often."""
    kinds = [plain_actions(kind) for kind in ("color", "shape", "location", "size")]
    return tuple(kind[index % len(kind)] for index in range(max(map(len, kinds))) for kind in kinds)


def draw_any_action(rng: random.Random) -> Action:
    """An edit of any sort, also one that refers to things, so that no sort occurs only in the taken branch."""
    named = map(plain_actions, ("color", "shape", "location", "size"))
    return rng.choice(rng.choice((*named, _KNOWN_EDITS, _MIRRORED, (*_KNOWN_COPIES, _OWN_COPIES))))


@cache
def plain_actions(kind: PlainKind) -> tuple[Action, ...]:
    """The edits of one kind that name their result."""
    return tuple(a for a in ALL_ACTIONS if isinstance(a, _CLASSES[kind]) and not asks(a) and a not in _MIRRORED)


def subject(condition: Condition) -> str:
    """The subject of a condition."""
    return _sort(condition)[0]


def _sort(condition: Condition) -> tuple[str, ...]:
    """The subject of a condition, and its wording."""
    match condition:
        case Is(attribute, _, negated):
            return attribute, "is not" if negated else "is"
        case HasCorners(_, relation):
            return "shape", relation
        case InHalf(half):
            return ("side" if half in ("left", "right") else "level"), "half"
        case Closer():
            return "edges", "closer"
        case WiderThan():
            return "width", "wider"
    raise TypeError(f"Not a condition: {condition!r}")


SORTS = sorted_out(ALL_CONDITIONS)
_COLOR_SORTS = tuple(sort for sort in SORTS if sort.subject == "color")
_SHAPE_SORTS = tuple(sort for sort in SORTS if sort.subject == "shape")
_CORNER_SORTS = sorted_out(c for c in ALL_CONDITIONS if isinstance(c, HasCorners))
_PLACE_SORTS = sorted_out(c for c in ALL_CONDITIONS if isinstance(c, (InHalf, Closer)))
_KNOWN_SORTS = sorted_out(c for c in ALL_CONDITIONS if isinstance(c, Is) and c.thing)
_MIRRORED = (Move("other side"), Move("opposite corner"))
_MOVES = tuple(a for a in ALL_ACTIONS if isinstance(a, Move))
_KNOWN_EDITS = tuple(a for a in ALL_ACTIONS if isinstance(a, (Recolor, Reshape)) and a.thing)
_OWN_COPIES = Copies(None, OWN_CORNERS)
_KNOWN_COPIES = tuple(a for a in ALL_ACTIONS if isinstance(a, Copies) and a.thing and a != _OWN_COPIES)
_EDITS_OF = {name: tuple(a for a in ALL_ACTIONS if isinstance(a, _CLASSES[name])) for name in ("shape", "color")}


def _yes_no_topic(row: VqaRow) -> Topic:
    # `is no circle present?` would contain the word of a negative answer, so it is never quoted.
    leads = [] if "no" in row.question.split() else [row.question]
    proposition, opposite = (Is(row.attribute, row.value, negated) for negated in (row.negated, not row.negated))
    sorts = sorted_out([proposition, opposite])
    return Topic(row.question, row.answer, sorts, simple_actions(), "easy-vqa", leads, proposition)


def _open_topic(row: VqaRow) -> Topic:
    """A question for the color is followed by conditions on the color and an edit of it; so for the shape."""
    sorts = _COLOR_SORTS if row.attribute == "color" else _SHAPE_SORTS
    leads = [row.question, *LEADS[row.attribute]]
    return Topic(row.question, row.answer, sorts, _EDITS_OF[row.attribute], "easy-vqa", leads)


def _count_topic(scene: Scene, rng: random.Random) -> Topic:
    """The corners of the shape as a condition or as the number of copies, or a number that has to be known."""
    how = rng.choice(("condition", "own corners", "thing"))
    if how == "condition" or (how == "own corners" and not scene.corners):
        answer = NUMBER_WORDS[scene.corners]
        return Topic(CORNERS_QUESTION, answer, _CORNER_SORTS, simple_actions(), leads=LEADS["corners"])
    action = _OWN_COPIES if how == "own corners" else rng.choice(_KNOWN_COPIES)
    number = scene.corners if action.number is None else action.number
    return Topic(question_of(action), NUMBER_WORDS[number], SORTS, [action])


def _location_topic(scene: Scene, truth: bool, rng: random.Random) -> Topic | None:
    """The position of the shape, as a condition of a move or as the reference of "the other side"."""
    side, level = clear_side(scene), clear_level(scene)
    how = rng.choice(("condition", "side", "corner"))
    if how == "side" and side:
        return Topic(SIDE_QUESTION, side, SORTS, [Move("other side")])
    if how == "corner" and side and level:
        return Topic(CORNER_QUESTION, f"{level} {side}", SORTS, [Move("opposite corner")])
    where = draw_condition(scene, _PLACE_SORTS, truth, rng)
    return where and Topic(question_of(where), "yes" if truth else "no", sorted_out([where]), _MOVES)


def _knowledge_topic(scene: Scene, truth: bool, rng: random.Random) -> Topic:
    """A thing represents the color or the shape of the edit, or of the outermost condition."""
    if rng.random() < 0.5 and (known := draw_condition(scene, _KNOWN_SORTS, truth, rng)):
        return Topic(question_of(known), "yes" if truth else "no", sorted_out([known]), simple_actions())
    action = rng.choice(_KNOWN_EDITS)
    answer = action.color if isinstance(action, Recolor) else action.shape
    return Topic(question_of(action), answer, SORTS, [action])
