"""An independent reading of instructions: what a person would take them to mean, written without the generator.

It knows neither the generator's programs nor its tables. From the text and plain facts about an image it computes
what the edited image has to show, and what the questions' answers are.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image


RGB = {
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "teal": (0, 128, 128),
    "brown": (165, 42, 42),
}
COLORS = list(RGB)
SHAPES = ["circle", "rectangle", "triangle"]
COLOR_OF = {
    "a ripe tomato": "red",
    "grass": "green",
    "the clear sky": "blue",
    "ripe bananas": "yellow",
    "coal": "black",
    "chocolate": "brown",
    "an elephant": "gray",
}
SHAPE_OF = {
    "a coin": "circle",
    "a wheel": "circle",
    "a slice of pizza": "triangle",
    "a pyramid": "triangle",
    "a door": "rectangle",
    "a brick": "rectangle",
}
COUNT_OF = {
    "wheels a bicycle": 2,
    "legs a bird": 2,
    "corners a triangle": 3,
    "legs a dog": 4,
    "wheels a car": 4,
}
NUMBERS = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4}
CORNERS = {"circle": 0, "triangle": 3, "rectangle": 4}


@dataclass(frozen=True)
class Fact:
    """What one shape in an image is, in pixels; x and y are the middle of its box."""

    shape: str
    color: str
    x: float
    y: float
    width: float
    height: float

    @property
    def size(self) -> float:
        return (self.width * self.height) ** 0.5

    def inside(self) -> Fact:
        x = min(max(self.x, self.width / 2), 64 - self.width / 2)
        y = min(max(self.y, self.height / 2), 64 - self.height / 2)
        return replace(self, x=x, y=y)

    def scaled(self, factor: float) -> Fact:
        return replace(self, width=self.width * factor, height=self.height * factor).inside()


# ---- facts about the data set's images, from its own answers and plain sums over pixels


def facts_of_data_set(folder: Path, split: str) -> dict[int, tuple[str | None, str | None]]:
    """(shape, color) of each image as far as its questions tell, None where they do not."""
    known: dict[int, dict[str, str]] = defaultdict(dict)
    for question, answer, image_id in json.loads((folder / split / "questions.json").read_text()):
        if answer in COLORS + SHAPES:
            known[image_id]["color" if answer in COLORS else "shape"] = answer
        elif (answer == "yes") != bool(re.search(r"\b(not|no)\b", question)):
            value = re.search("|".join(COLORS + SHAPES), question)[0]
            known[image_id]["color" if value in COLORS else "shape"] = value
    return defaultdict(
        lambda: (None, None),
        {image_id: (facts.get("shape"), facts.get("color")) for image_id, facts in known.items()},
    )


def measured(image: Image.Image) -> Fact:
    """The only shape of a clean image, from plain sums over how much of each pixel it covers."""
    pixels = np.asarray(image.convert("RGB")).astype(float)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    values, counts = np.unique(border, axis=0, return_counts=True)
    covered = np.abs(pixels - values[counts.argmax()]).sum(axis=2)
    full = np.unravel_index(covered.argmax(), covered.shape)
    color = next(name for name, rgb in RGB.items() if rgb == tuple(pixels[full]))
    covered /= covered.max()
    area, rows, columns = covered.sum(), covered.sum(axis=1), covered.sum(axis=0)
    centers = np.arange(64) + 0.5
    x, y = (columns @ centers) / area, (rows @ centers) / area
    touched = np.flatnonzero(rows > 0.1)
    third = (touched[-1] + 1 - touched[0]) / 3
    width, height = rows.max(), columns.max()
    if rows[centers < touched[0] + third].sum() < 0.5 * rows[centers > touched[-1] + 1 - third].sum():
        width = (area / (3**0.5 / 4)) ** 0.5
        return Fact("triangle", color, x, y - width * 3**0.5 / 12, width, width * 3**0.5 / 2)
    return Fact("rectangle" if area > 0.9 * width * height else "circle", color, x, y, width, height)


# ---- instructions


def target_of(instruction: str, fact: Fact) -> list[Fact]:
    """What the image shows after the instruction. Raises ValueError for a text that does not parse to its end."""
    text = instruction.removesuffix(".")
    if ", so " in text:
        said, text = text.split(", so ")
        if false := [each for each in said.split(", ") if not is_true(each, fact)]:
            raise ValueError(f"{false} is not true of {fact}")
        return _acted(text, fact)
    if asked := re.match(r"((?:is|does) [^?]*\?) if (so|not), ", text):
        holds = (answer_to(asked[1], fact) == "yes") == (asked[2] == "so")
        result, rest = _branches(text[asked.end() :], fact, holds)
    else:
        lead = re.match(r"(?:what|how|look|find|count)[^.?]*[.?] ", text)
        result, rest = _rule(text[lead.end() :] if lead else text, fact)
    if rest:
        raise ValueError(f"{rest!r} is left over from {instruction!r}")
    return result


def _rule(text: str, fact: Fact) -> tuple[list[Fact], str]:
    if not text.startswith("if "):
        return _next_action(text, fact)
    condition, rest = text.removeprefix("if ").split(", ", 1)
    return _branches(rest, fact, holds(condition, fact))


def _branches(text: str, fact: Fact, taken: bool) -> tuple[list[Fact], str]:
    then, rest = _next_action(text, fact)
    if rest.startswith(" if "):
        condition, rest = rest.removeprefix(" if ").split(" or ", 1)
        other, rest = _next_action(rest, fact)
        if not rest.startswith(" if not"):
            raise ValueError(f'expected "if not" before {rest!r}')
        then, rest = then if holds(condition, fact) else other, rest.removeprefix(" if not")
    if rest.startswith("; otherwise, if "):
        otherwise, rest = _rule(rest.removeprefix("; otherwise, "), fact)
    else:
        joint = re.match("; otherwise |, or else ", rest)
        if not joint:
            raise ValueError(f"expected another branch before {rest!r}")
        otherwise, rest = _next_action(rest[joint.end() :], fact)
    return then if taken else otherwise, rest


def _next_action(text: str, fact: Fact) -> tuple[list[Fact], str]:
    end = re.search(r"; otherwise|, or else| if | or |$", text).start()
    return _acted(text[:end], fact), text[end:]


def holds(condition: str, fact: Fact) -> bool:
    """Whether what stands behind "if" is true."""
    denied = " not " in f" {condition} "
    said = re.sub(r"\b(?:does not (contain|have|look)|not) ?", lambda m: f"{m[1] or ''} " if m[1] else "", condition)
    words = said.split()
    if edges := re.search(r"closer to the (\w+) than to the (\w+)", said):
        return _to_edge(fact, edges[1]) < _to_edge(fact, edges[2])
    if half := re.search(r"in the (\w+) half", said):
        return _to_edge(fact, half[1]) < 32
    if part := re.search(r"wider than a (quarter|third)", said):
        return (fact.width > {"quarter": 16, "third": 64 / 3}[part[1]]) != denied
    if corners := re.search(r"has (more than |fewer than |)(\w+) corners", said):
        number, own = NUMBERS[corners[2]], CORNERS[fact.shape]
        return {"": own == number, "more than ": own > number, "fewer than ": own < number}[corners[1]]
    if thing := re.search(r"(?:(?:has|have) the color|is that) of (.*)", said):
        return (COLOR_OF[thing[1]] == fact.color) != denied
    if thing := re.search(r"(?:looks?\s+like|(?:has|have)\s+the shape of) (.*)", said):
        return (SHAPE_OF[thing[1]] == fact.shape) != denied
    named = [word for word in words if word in COLORS + SHAPES]
    if len(named) != 1:
        raise ValueError(f"unknown condition {condition!r}")
    return (named[0] in (fact.color, fact.shape)) != denied


def is_true(statement: str, fact: Fact) -> bool:
    """Whether a statement about the image or about a thing is true."""
    if colored := re.fullmatch(f"the color of ({'|'.join(COLOR_OF)}) is (.*)", statement):
        return COLOR_OF[colored[1]] == colored[2]
    if shaped := re.fullmatch(f"the shape of ({'|'.join(SHAPE_OF)}) is a (.*)", statement):
        return SHAPE_OF[shaped[1]] == shaped[2]
    if counted := re.fullmatch(r"(a \w+) has (\w+) (\w+)", statement):
        return COUNT_OF[f"{counted[3]} {counted[1]}"] == NUMBERS[counted[2]]
    return holds(statement, fact)


def _acted(action: str, fact: Fact) -> list[Fact]:
    if action in ("leave it as it is", "change nothing", "keep the image as it is"):
        return [fact]
    noun = f"(?:it|the (?:shape|{'|'.join(SHAPES)})|the (?:{'|'.join(COLORS)}) shape)"
    said = re.sub(
        rf"\b(make|paint|give|turn|change|move|put|enlarge|shrink|show|copies of) {noun}\b", r"\1 IT", action
    )
    said = re.sub(rf"\b(?:its color|the color of {noun}) to", "IT to", said)
    match = re.fullmatch(
        r"(?:(?:make|paint) IT|change IT to) (?P<color>\w+)"
        r"|(?:give IT|paint IT in) the color of (?P<colored>.*)"
        r"|(?:turn IT into|make IT|change IT to) a (?P<shape>\w+)"
        r"|(?:give IT the shape of|make IT look like) (?P<shaped>.*)"
        r"|(?:move IT to|put IT (?:on|in|at)) the (?P<place>other side|opposite corner|\w+)"
        r"|(?P<bigger>make IT bigger|enlarge IT)|(?P<smaller>make IT smaller|shrink IT)"
        r"|show IT (?P<times>\w+) times|draw (?P<copies>\w+) copies of IT"
        r"|(?:show IT as many times|draw as many copies of IT) as (?P<owner>.*) has (?P<parts>\w+)",
        said,
    )
    if not match:
        raise ValueError(f"unknown action {action!r}")
    found = {name: value for name, value in match.groupdict().items() if value}
    if found.get("color") in ("bigger", "smaller"):
        found = {found["color"]: found["color"]}
    return _applied(found, fact)


def _applied(found: dict[str, str], fact: Fact) -> list[Fact]:
    if "color" in found or "colored" in found:
        color = found.get("color") or COLOR_OF[found["colored"]]
        assert color in COLORS, color
        return [replace(fact, color=color)]
    if "shape" in found or "shaped" in found:
        return [_reshaped(fact, found.get("shape") or SHAPE_OF[found["shaped"]])]
    if "place" in found:
        x, y = {
            "left": (16, fact.y),
            "right": (48, fact.y),
            "top": (fact.x, 16),
            "bottom": (fact.x, 48),
            "center": (32, 32),
            "other side": (64 - fact.x, fact.y),
            "opposite corner": (64 - fact.x, 64 - fact.y),
        }[found["place"]]
        return [replace(fact, x=x, y=y).inside()]
    if "bigger" in found or "smaller" in found:
        size = fact.size * 1.5 if "bigger" in found else fact.size / 1.5
        return [fact.scaled(min(max(size, 7), 37) / fact.size)]
    if "owner" in found:
        owned = f"{found['parts']} {found['owner']}"
        number = CORNERS[fact.shape] if owned == "corners it" else COUNT_OF[owned]
    else:
        number = NUMBERS[found.get("times") or found["copies"]]
    copy = fact.scaled(min(1, 26 / max(fact.width, fact.height)))
    return [replace(copy, x=x, y=y) for x, y in ((16, 16), (48, 16), (16, 48), (48, 48))[:number]]


def _reshaped(fact: Fact, shape: str) -> Fact:
    assert shape in SHAPES, shape
    if shape == fact.shape:
        return fact
    ratio = 3**0.5 / 2 if shape == "triangle" else 1
    return replace(fact, shape=shape, width=fact.size / ratio**0.5, height=fact.size * ratio**0.5).inside()


def _to_edge(fact: Fact, edge: str) -> float:
    return {"left": fact.x, "right": 64 - fact.x, "top": fact.y, "bottom": 64 - fact.y}[edge]


# ---- questions


def answer_to(question: str, fact: Fact) -> str:
    """The answer to any question of easy-VQA or composed one."""
    text = question.removesuffix("?")
    across = "left" if fact.x < 32 else "right"
    down = "top" if fact.y < 32 else "bottom"
    if re.search("^what color is the (shape|circle|rectangle|triangle)|^what is the color of the (sh|ci|re|tr)", text):
        return fact.color
    if re.search(r"^what shape |^what is the \w+ shape$", text):
        return fact.shape
    if thing := re.search("^what is the (color|shape) of (.*)", text):
        return (COLOR_OF if thing[1] == "color" else SHAPE_OF)[thing[2]]
    if number := re.search(r"^how many (\w+) does (.*) have$", text):
        owned = f"{number[1]} {number[2]}"
        count = CORNERS[fact.shape] if owned == "corners the shape" else COUNT_OF[owned]
        return next(word for word, value in NUMBERS.items() if value == count)
    if text in ("on which side of the image is the shape", "is the shape on the left or on the right"):
        return across
    if text == "is the shape at the top or at the bottom":
        return down
    if text == "in which corner of the image is the shape":
        return f"{down} {across}"
    if text == "where in the image is the shape":
        row = "top" if fact.y < 64 / 3 else "bottom" if fact.y > 128 / 3 else ""
        column = "left" if fact.x < 64 / 3 else "right" if fact.x > 128 / 3 else ""
        return f"{row} {column}".strip() or "center"
    if text == "is the shape small, medium or big":
        return "small" if fact.size < 17 else "big" if fact.size > 24 else "medium"
    if text == "which edge of the image is closest to the shape":
        return min(("left", "right", "top", "bottom"), key=lambda edge: _to_edge(fact, edge))
    if text == "is the shape wider than it is tall":
        return "yes" if fact.width > fact.height else "no"
    return "yes" if _yes(text, fact) else "no"


def _yes(text: str, fact: Fact) -> bool:
    if re.search("closer|half|wider|color of|look like", text):
        said = re.sub(r"^(?:is|does) the shape (not )?", r"the shape \1", text)
        return holds(said, fact)
    values = re.findall("|".join(COLORS + SHAPES), text)
    assert len(values) == 1, text
    return (values[0] in (fact.color, fact.shape)) != bool(re.search(r"\b(not|no)\b", text))


def hidden_words(instruction: str, answer: str | None, fact: Fact) -> set[str]:
    """The words that would give an answer away: the answer's own, and the value of each thing that is referred to."""
    hidden = set((answer or "").split())
    hidden |= {color for thing, color in COLOR_OF.items() if f"of {thing}" in instruction}
    hidden |= {shape for thing, shape in SHAPE_OF.items() if re.search(f"(like|shape of) {thing}\\b", instruction)}
    counts = {
        owned: count
        for owned, count in COUNT_OF.items()
        if f"as {' has '.join(owned.split(' ', 1)[::-1])}" in instruction
    }
    counts |= {"own": CORNERS[fact.shape]} if "as it has corners" in instruction else {}
    return hidden | {word for word, value in NUMBERS.items() if value in counts.values()}
