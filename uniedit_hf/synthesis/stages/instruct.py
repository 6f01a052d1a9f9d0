"""Writes the instruction: a chat model sees the picture and gets the texts of the category and a drawn plan."""

from __future__ import annotations

import json

from uniedit_hf.randomness import python_random
from uniedit_hf.small_world.instructions import Plan
from uniedit_hf.small_world.rules import write_by_rules
from uniedit_hf.synthesis.calls.caller import Caller, NoAnswer
from uniedit_hf.synthesis.calls.messages import Answer, ChatRequest
from uniedit_hf.synthesis.plans import NEW_CANVAS, draw_choices
from uniedit_hf.synthesis.prompt_texts import prompt
from uniedit_hf.synthesis.records import Draft, Rejection
from uniedit_hf.synthesis.settings import Instruct


STAGE = "instruct"


class Condition(Answer):
    condition: str
    holds: bool


class Writing(Answer):
    conditions: list[Condition]
    instruction: str
    expected: str
    text: str


async def instruct(draft: Draft, caller: Caller, settings: Instruct, seed: int) -> Draft | Rejection:
    """The draft with its instruction, written by a model."""
    choices = draw_choices(draft, settings, python_random(seed, draft.id, "plan"))
    common, own = prompt("instruct"), prompt(f"instruct_{draft.category}")
    plan = {"holds" if name == "condition" else name.replace("changed", "changes"): v for name, v in choices.items()}
    asked = {"question": draft.question, "answer": draft.short_answer, "plan": plan}
    request = ChatRequest(
        f"{common.text}\n\n{own.text}", json.dumps(asked, ensure_ascii=False), Writing, (draft.image,)
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


def instruct_by_rules(draft: Draft, settings: Instruct, seed: int) -> Draft | Rejection:
    """The draft with its instruction, written by the rules of easy-VQA, which need a condition at least."""
    rng = python_random(seed, draft.id, "plan")
    depths = {depth: weight for depth, weight in settings.depths.items() if depth}
    plan = Plan(
        draft.category,
        rng.choices(list(depths), list(depths.values()))[0],
        rng.random() >= settings.false_conditions,
        rng.random() >= settings.unchanged,
    )
    return write_by_rules(draft, plan, python_random(seed, draft.id, f"instruction {plan} 0"))


def _other_than_planned(written: Writing, choices: dict) -> str:
    if len(written.conditions) != choices["depth"]:
        return f"{len(written.conditions)} conditions where {choices['depth']} were asked for."
    if written.conditions and written.conditions[0].holds != choices["condition"]:
        return f"the outermost condition holds: {written.conditions[0].holds}; asked for was {choices['condition']}."
    if "medium" in choices and choices["changed"] and not written.text.strip():
        return "no text to be rendered where one was asked for."
    return ""
