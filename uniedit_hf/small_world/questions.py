"""Questions and drawing prompts computed from a scene, in addition to easy-VQA's own questions.

A question is only asked about a scene if its answer is clear by a margin of a few pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from uniedit_hf.small_world.program import (
    PLACE_MARGIN,
    WIDTH_MARGIN,
    Closer,
    Condition,
    Half,
    HasCorners,
    InHalf,
    WiderThan,
    edge_distance,
)
from uniedit_hf.small_world.scene import SIDE, Scene
from uniedit_hf.small_world.wording import NUMBER_WORDS, question_of


ROWS, COLUMNS = ("top", "", "bottom"), ("left", "", "right")
EDGES: tuple[Half, ...] = ("left", "right", "top", "bottom")
SMALL_BELOW, BIG_FROM = 17.0, 24.0  # pixels; about a third of the data set's shapes each
SIZE_MARGIN = 1.0
SIDE_QUESTION = "on which side of the image is the shape?"
CORNER_QUESTION = "in which corner of the image is the shape?"
PLACE_QUESTION = "where in the image is the shape?"
SIZE_QUESTION = "is the shape small, medium or big?"
LEFT_OR_RIGHT_QUESTION = "is the shape on the left or on the right?"
TOP_OR_BOTTOM_QUESTION = "is the shape at the top or at the bottom?"
EDGE_QUESTION = "which edge of the image is closest to the shape?"
TALLER_QUESTION = "is the shape wider than it is tall?"


@dataclass(frozen=True)
class ComposedQuestion:
    """A composed question with its answer and its subject."""

    text: str
    answer: str
    topic: Literal["place", "size", "comparison", "count"]


@dataclass(frozen=True)
class DrawingPrompt:
    """The content of a drawing prompt."""

    shape: str
    color: str
    size: Literal["small", "medium", "big"]
    place: str

    def prompts(self) -> tuple[str, ...]:
        """The phrasings of the prompt."""
        preposition = "in" if self.place == "center" else "at"
        thing = f"a {self.size} {self.color} {self.shape} {preposition} the {self.place}"
        return (thing, f"draw {thing}", f"{thing} of the image")

    def mismatches(self, scene: Scene, slack: float = 2.0) -> list[str]:
        """Which of shape, color, size and place a scene gets wrong; sizes and places within `slack` pixels of the
        stated range count as right."""
        sizes = {_size_word(scene.size + offset) for offset in (-slack, 0.0, slack)}
        x, y = scene.center
        places = {place_word(x + dx, y + dy) for dx in (-slack, 0.0, slack) for dy in (-slack, 0.0, slack)}
        right = {
            "shape": scene.shape == self.shape,
            "color": scene.color == self.color,
            "size": self.size in sizes,
            "place": self.place in places,
        }
        return [name for name, matches in right.items() if not matches]


def drawing_of(scene: Scene) -> DrawingPrompt:
    """The drawing prompt that a scene fulfills."""
    return DrawingPrompt(scene.shape, scene.color, _size_word(scene.size), place_word(*scene.center))


def composed_questions(scene: Scene) -> list[ComposedQuestion]:
    """All questions about place, size, comparison and count whose answer is clear on this scene."""
    conditions: list[tuple[Condition, str]] = [
        *((InHalf(half), "place") for half in EDGES),
        *(
            (Closer(*edges), "comparison")
            for edges in (("top", "left"), ("left", "top"), ("top", "right"), ("right", "top"))
        ),
        *((WiderThan(part), "size") for part in ("quarter", "third")),
    ]
    questions = [
        ComposedQuestion(question_of(condition), "yes" if condition.is_true(scene) else "no", topic)
        for condition, topic in conditions
        if condition.clear(scene)
    ]
    questions.append(ComposedQuestion(question_of(HasCorners(0)), NUMBER_WORDS[scene.corners], "count"))
    if side := clear_side(scene):
        questions += [ComposedQuestion(text, side, "place") for text in (SIDE_QUESTION, LEFT_OR_RIGHT_QUESTION)]
    if level := clear_level(scene):
        questions.append(ComposedQuestion(TOP_OR_BOTTOM_QUESTION, level, "place"))
    if place := clear_place(scene):
        questions.append(ComposedQuestion(PLACE_QUESTION, place, "place"))
    if min(abs(scene.size - SMALL_BELOW), abs(scene.size - BIG_FROM)) >= SIZE_MARGIN:
        questions.append(ComposedQuestion(SIZE_QUESTION, _size_word(scene.size), "size"))
    if scene.shape == "rectangle" and abs(scene.width - scene.height) >= WIDTH_MARGIN:
        questions.append(
            ComposedQuestion(TALLER_QUESTION, "yes" if scene.width > scene.height else "no", "comparison")
        )
    if abs(abs(scene.center[0] - SIDE / 2) - abs(scene.center[1] - SIDE / 2)) >= PLACE_MARGIN:
        nearest = min(EDGES, key=lambda edge: edge_distance(scene, edge))
        questions.append(ComposedQuestion(EDGE_QUESTION, nearest, "comparison"))
    return questions


def clear_side(scene: Scene) -> str | None:
    """ "left" or "right", or None near the middle."""
    return _clear_half(scene, "left", "right")


def clear_level(scene: Scene) -> str | None:
    """ "top" or "bottom", or None near the middle."""
    return _clear_half(scene, "top", "bottom")


def clear_place(scene: Scene) -> str | None:
    """One of the nine places of `place_word`, or None near a dividing line."""
    x, y = scene.center
    around = {
        place_word(x + dx, y + dy) for dx in (-WIDTH_MARGIN, WIDTH_MARGIN) for dy in (-WIDTH_MARGIN, WIDTH_MARGIN)
    }
    return around.pop() if len(around) == 1 else None


def place_word(x: float, y: float) -> str:
    """The ninth of the image in which a point is: "top left", "top", ..., "center", ..., "bottom right"."""
    row, column = (min(max(int(v // (SIDE / 3)), 0), 2) for v in (y, x))
    return f"{ROWS[row]} {COLUMNS[column]}".strip() or "center"


def question_texts() -> list[str]:
    """Every composed question, answer and drawing prompt, up to the words of shapes and colors."""
    places = [place_word(x, y) for y in (0, 32, 63) for x in (0, 32, 63)]
    return [
        SIDE_QUESTION,
        CORNER_QUESTION,
        PLACE_QUESTION,
        SIZE_QUESTION,
        TALLER_QUESTION,
        LEFT_OR_RIGHT_QUESTION,
        TOP_OR_BOTTOM_QUESTION,
        EDGE_QUESTION,
        *(
            p
            for size in ("small", "medium", "big")
            for place in places
            for p in DrawingPrompt("circle", "red", size, place).prompts()
        ),
    ]


def _clear_half(scene: Scene, first: str, second: str) -> str | None:
    if not InHalf(first).clear(scene):
        return None
    return first if InHalf(first).is_true(scene) else second


def _size_word(size: float) -> Literal["small", "medium", "big"]:
    return "small" if size < SMALL_BELOW else "big" if size >= BIG_FROM else "medium"
