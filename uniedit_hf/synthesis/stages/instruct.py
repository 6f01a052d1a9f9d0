"""Writes the instruction: a chat model gets the image, the prompts of the category and a randomly drawn plan."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

from uniedit_hf.calls.caller import Caller, NoAnswer
from uniedit_hf.calls.messages import Answer, ChatRequest
from uniedit_hf.randomness import python_random
from uniedit_hf.reading_text import NUMBERS
from uniedit_hf.synthesis.prompt_texts import prompt
from uniedit_hf.synthesis.records import Draft, Rejection
from uniedit_hf.synthesis.settings import Instruct


STAGE = "instruct"


class WrittenCondition(Answer):
    condition: str
    holds: bool


class Writing(Answer):
    conditions: list[WrittenCondition]
    instruction: str
    expected: str
    text: str


async def instruct(draft: Draft, caller: Caller, settings: Instruct, seed: int) -> Draft | Rejection:
    """The draft with its instruction, written by a model."""
    choices = draw_choices(draft, settings, python_random(seed, draft.id, "plan"))
    common, own = prompt("instruct"), prompt(f"instruct_{draft.category}")
    plan = {"holds" if name == "condition" else name.replace("changed", "changes"): v for name, v in choices.items()}
    message = {"question": draft.question, "answer": draft.short_answer, "plan": plan}
    request = ChatRequest(
        f"{common.text}\n\n{own.text}", json.dumps(message, ensure_ascii=False), Writing, (draft.image,)
    )
    written = await caller.answer(request)
    if isinstance(written, NoAnswer):
        return draft.rejected(STAGE, written.reason, written.detail, written.reply)
    fault = _other_than_planned(written, choices)
    if fault:
        return draft.rejected(STAGE, "not as planned", fault, written.model_dump_json())
    return draft.with_(
        choices={**choices, "prompt": f"{common.version}.{own.version}"},
        instruction=written.instruction.strip(),
        expected=written.expected.strip(),
        text=written.text.strip() or None,
        canvas="new" if draft.category in NEW_CANVAS else "scene",
        unchanged=not choices["changed"],
    )


def _other_than_planned(written: Writing, choices: dict) -> str:
    if len(written.conditions) != choices["depth"]:
        return f"{len(written.conditions)} conditions where {choices['depth']} were requested."
    if written.conditions and written.conditions[0].holds != choices["condition"]:
        return f"the outermost condition holds: {written.conditions[0].holds}; requested was {choices['condition']}."
    if "medium" in choices and choices["changed"] and not written.text.strip():
        return "no text to render, although one was requested."
    return ""


# Edits within the scene, and those that draw a new image.
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


def draw_choices(draft: Draft, settings: Instruct, rng: random.Random) -> dict[str, str | int | bool]:
    """Draws the plan of an instruction.

    Returns:
        `variant`; `depth`; `condition`, whether the outermost condition is true; `changed`, whether the image changes;
        `medium` and `font` of rendered text; and `distractor`, the wrong value of a false condition (color, shape and
        count only).
    """
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
    # A new image always differs from the source; an instruction without a condition always asks for a change.
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
    """The number that a text represents, in digits or, up to twelve, as a word."""
    if text.isdecimal() and len(text) < 6:
        return int(text)
    return NUMBERS.index(text) if text in NUMBERS else None


def _other_than(answer: str, values: Sequence[str], rng: random.Random) -> str:
    return rng.choice([value for value in values if value not in answer])
