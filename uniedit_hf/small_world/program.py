"""The meaning of an instruction as data: conditions and actions on a scene, nested by if and else.

Text, target and truth of an instruction all come from one program, so they cannot disagree. A value is named ("red")
or, where a node carries a `thing`, referred to by it ("the color of a ripe tomato").
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from uniedit_hf.small_world.scene import PALETTE, SHAPES, SIDE, Scene, ShapeName, mirrored, overlap


Half = Literal["left", "right", "top", "bottom"]

COLOR_OF = {
    "a ripe tomato": "red",
    "grass": "green",
    "the clear sky": "blue",
    "ripe bananas": "yellow",
    "coal": "black",
    "chocolate": "brown",
    "an elephant": "gray",
}
SHAPE_OF: dict[str, ShapeName] = {
    "a coin": "circle",
    "a wheel": "circle",
    "a slice of pizza": "triangle",
    "a pyramid": "triangle",
    "a door": "rectangle",
    "a brick": "rectangle",
}
NUMBER_OF = {
    "a bicycle has wheels": 2,
    "a bird has legs": 2,
    "a triangle has corners": 3,
    "a dog has legs": 4,
    "a car has wheels": 4,
}
OWN_CORNERS = "it has corners"  # a count that has to be read from the image
PARTS = {"quarter": SIDE / 4, "third": SIDE / 3}
PLACES = {"left": (16.0, None), "right": (48.0, None), "top": (None, 16.0), "bottom": (None, 48.0), "center": (32, 32)}
QUARTERS = ((16.0, 16.0), (48.0, 16.0), (16.0, 48.0), (48.0, 48.0))
GROWTH = 1.5
SMALLEST, BIGGEST = 7.0, 37.0  # allowed sizes of a resized shape; those of the data set are 8 to 33
LONGEST_IN_QUARTER = 26.0
PLACE_MARGIN, WIDTH_MARGIN = 3.0, 2.0  # pixels from the dividing line within which a condition is unclear
LEAST_MOVE = 10.0


@dataclass(frozen=True)
class Is:
    """The shape or the color is (or is not) a value."""

    attribute: Literal["shape", "color"]
    value: str
    negated: bool = False
    thing: str = ""

    def is_true(self, scene: Scene) -> bool:
        return ((scene.shape if self.attribute == "shape" else scene.color) == self.value) != self.negated

    def clear(self, scene: Scene) -> bool:
        return True


@dataclass(frozen=True)
class HasCorners:
    """The shape has exactly, more than or fewer than a number of corners. A circle has none."""

    number: int
    relation: Literal["exactly", "more than", "fewer than"] = "exactly"

    def is_true(self, scene: Scene) -> bool:
        if self.relation == "exactly":
            return scene.corners == self.number
        return scene.corners > self.number if self.relation == "more than" else scene.corners < self.number

    def clear(self, scene: Scene) -> bool:
        return True


@dataclass(frozen=True)
class InHalf:
    """The center of the shape is in one half of the image."""

    half: Half

    def is_true(self, scene: Scene) -> bool:
        return edge_distance(scene, self.half) < SIDE / 2

    def clear(self, scene: Scene) -> bool:
        return abs(edge_distance(scene, self.half) - SIDE / 2) >= PLACE_MARGIN


@dataclass(frozen=True)
class Closer:
    """The center of the shape is closer to one edge of the image than to another."""

    edge: Half
    other: Half

    def is_true(self, scene: Scene) -> bool:
        return edge_distance(scene, self.edge) < edge_distance(scene, self.other)

    def clear(self, scene: Scene) -> bool:
        return abs(edge_distance(scene, self.edge) - edge_distance(scene, self.other)) >= PLACE_MARGIN


@dataclass(frozen=True)
class WiderThan:
    """The shape is wider than a part of the image."""

    part: str

    def is_true(self, scene: Scene) -> bool:
        return scene.width > PARTS[self.part]

    def clear(self, scene: Scene) -> bool:
        return abs(scene.width - PARTS[self.part]) >= WIDTH_MARGIN


@dataclass(frozen=True)
class Recolor:
    color: str
    thing: str = ""

    def result(self, scene: Scene) -> list[Scene]:
        return [replace(scene, color=self.color)]


@dataclass(frozen=True)
class Reshape:
    shape: ShapeName
    thing: str = ""

    def result(self, scene: Scene) -> list[Scene]:
        return [scene if scene.shape == self.shape else scene.turned_into(self.shape)]


@dataclass(frozen=True)
class Move:
    """To one of `PLACES`, or to the mirrored place: "other side" (left and right) or "opposite corner" (both)."""

    place: str

    def result(self, scene: Scene) -> list[Scene]:
        if self.place in ("other side", "opposite corner"):
            return [mirrored(scene, down=self.place == "opposite corner")]
        x, y = PLACES[self.place]
        return [scene.at((scene.center[0] if x is None else x, scene.center[1] if y is None else y))]


@dataclass(frozen=True)
class Resize:
    bigger: bool

    def result(self, scene: Scene) -> list[Scene]:
        size = scene.size * (GROWTH if self.bigger else 1 / GROWTH)
        return [scene.at(scene.center, min(max(size, SMALLEST), BIGGEST))]


@dataclass(frozen=True)
class Copies:
    """As many copies of the shape, each in the center of a quarter of the image, by rows. A shape that is too large
    for a quarter is drawn smaller. `number` is None if the thing is `OWN_CORNERS`.
    """

    number: int | None
    thing: str = ""

    def result(self, scene: Scene) -> list[Scene]:
        number = scene.corners if self.number is None else self.number
        scale = min(1.0, LONGEST_IN_QUARTER / max(scene.width, scene.height))
        return [scene.at(center, scene.size * scale) for center in QUARTERS[:number]]


@dataclass(frozen=True)
class Keep:
    """Leave the image unchanged."""

    def result(self, scene: Scene) -> list[Scene]:
        return [scene]


Condition = Is | HasCorners | InHalf | Closer | WiderThan
Action = Recolor | Reshape | Move | Resize | Copies | Keep


@dataclass(frozen=True)
class If:
    condition: Condition
    then: Program
    otherwise: Program


Program = If | Action


def apply(program: Program, scene: Scene) -> list[Scene]:
    """The scenes that the program makes of a scene: one, or several after a count edit."""
    return taken_action(program, scene).result(scene)


def taken_action(program: Program, scene: Scene) -> Action:
    """The action at the end of the branches that the scene takes."""
    while isinstance(program, If):
        program = program.then if program.condition.is_true(scene) else program.otherwise
    return program


def depth(program: Program) -> int:
    """The maximum number of nested conditions, 0 for an action."""
    return 1 + max(depth(program.then), depth(program.otherwise)) if isinstance(program, If) else 0


def conditions(program: Program) -> Iterator[Condition]:
    """All conditions, outermost first."""
    if isinstance(program, If):
        yield program.condition
        yield from conditions(program.then)
        yield from conditions(program.otherwise)


def actions(program: Program) -> Iterator[Action]:
    """All actions, in the order in which the text names them."""
    if isinstance(program, If):
        yield from actions(program.then)
        yield from actions(program.otherwise)
    else:
        yield program


def changes(action: Action, scene: Scene) -> bool:
    """Whether the action makes a clearly visible difference on this scene."""
    after = action.result(scene)
    if isinstance(action, Resize):
        return bool(math.isclose(max(after[0].size / scene.size, scene.size / after[0].size), GROWTH, rel_tol=1e-6))
    if isinstance(action, Move):
        return math.dist(after[0].center, scene.center) >= LEAST_MOVE
    if isinstance(action, Copies):
        return len(after) > 1 and not overlap([copy.box for copy in after])
    return after != [scene]


def edge_distance(scene: Scene, edge: Half) -> float:
    """Pixels from the center of the shape to one edge of the image."""
    x, y = scene.center
    return {"left": x, "right": SIDE - x, "top": y, "bottom": SIDE - y}[edge]


ALL_CONDITIONS: tuple[Condition, ...] = (
    *(Is("color", color, negated) for color in PALETTE for negated in (False, True)),
    *(Is("color", color, negated, thing) for thing, color in COLOR_OF.items() for negated in (False, True)),
    *(Is("shape", shape, negated) for shape in SHAPES for negated in (False, True)),
    *(Is("shape", shape, negated, thing) for thing, shape in SHAPE_OF.items() for negated in (False, True)),
    *(HasCorners(number) for number in (3, 4)),
    *(HasCorners(number, "more than") for number in (2, 3)),
    *(HasCorners(number, "fewer than") for number in (3, 4)),
    *(InHalf(half) for half in ("left", "right", "top", "bottom")),
    *(Closer(*edges) for pair in (("top", "left"), ("top", "right")) for edges in (pair, pair[::-1])),
    *(WiderThan(part) for part in PARTS),
)
ALL_ACTIONS: tuple[Action, ...] = (
    *(Recolor(color) for color in PALETTE),
    *(Recolor(color, thing) for thing, color in COLOR_OF.items()),
    *(Reshape(shape) for shape in SHAPES),
    *(Reshape(shape, thing) for thing, shape in SHAPE_OF.items()),
    *(Move(place) for place in (*PLACES, "other side", "opposite corner")),
    *(Resize(bigger) for bigger in (True, False)),
    *(Copies(number) for number in (2, 3, 4)),
    *(Copies(number, thing) for thing, number in NUMBER_OF.items()),
    Copies(None, OWN_CORNERS),
    Keep(),
)
