"""What is drawn before an instruction is written: every choice comes from the seed and the draft, and is kept."""

from __future__ import annotations

import random
from collections.abc import Sequence

from uniedit_hf.synthesis.records import Draft
from uniedit_hf.synthesis.settings import Instruct


# Edits within the scene, and those that are drawn anew.
VARIANTS = {
    "shape": ("change", "transfer"),
    "color": ("change", "transfer"),
    "count": ("change", "transfer"),
    "location": ("replace",),
    "knowledge": ("draw", "write"),
    "caption": ("render",),
    "ocr": ("render",),
    "math": ("render",),
}
NEW_CANVAS = ("caption", "ocr", "math")
MEDIA = (
    "chalkboard in a classroom",
    "sheet of lined paper",
    "neon sign on a brick wall",
    "whiteboard in an office",
    "piece of parchment",
    "computer screen",
    "paper label on a jar",
    "enamel plate on a door",
    "shop window",
    "page of a notebook",
)
FONTS = ("chalk handwriting", "neat handwriting", "serif letters", "sans-serif letters", "typewriter letters", "brush")
COLORS = ("red", "blue", "green", "yellow", "black", "white", "orange", "purple", "brown", "pink", "grey")
SHAPES = ("round", "square", "triangular", "rectangular", "oval", "star-shaped", "hexagonal")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def draw_choices(draft: Draft, settings: Instruct, rng: random.Random) -> dict[str, str | int | bool]:
    """The plan of an instruction: variant, depth, whether the condition holds and whether the picture changes, medium
    and font of what is rendered, and the wrong value that a false condition is built on, where there is a list."""
    depths = settings.depths
    choices: dict[str, str | int | bool] = {
        "variant": rng.choice(VARIANTS[draft.category]),
        "depth": rng.choices(list(depths), list(depths.values()))[0],
    }
    new = draft.category in NEW_CANVAS
    if choices["depth"]:
        choices["condition"] = rng.random() >= settings.false_conditions
        if not choices["condition"] and (other := _distractor(draft, rng)):
            choices["distractor"] = other
    # A new picture always differs from the source; an instruction without a condition always asks for a change.
    unchanged = choices["depth"] and not new and rng.random() < settings.unchanged
    choices["changed"] = not unchanged
    if new or choices["variant"] == "write":
        choices["medium"], choices["font"] = rng.choice(MEDIA), rng.choice(FONTS)
    return choices


def _distractor(draft: Draft, rng: random.Random) -> str | None:
    answer = (draft.short_answer or "").lower()
    match draft.category:
        case "color":
            return _other_than(answer, COLORS, rng)
        case "shape":
            return _other_than(answer, SHAPES, rng)
        case "count":
            number = number_in(answer)
            apart = rng.choice([step for step in (-2, -1, 1, 2, 3) if number is None or number + step > 0])
            return None if number is None else str(number + apart)
    return None


def number_in(text: str) -> int | None:
    """The number that a text is, in digits or, up to twelve, as a word."""
    if text.isdecimal() and len(text) < 6:
        return int(text)
    return NUMBERS.index(text) if text in NUMBERS else None


def _other_than(answer: str, values: Sequence[str], rng: random.Random) -> str:
    return rng.choice([value for value in values if value not in answer])
