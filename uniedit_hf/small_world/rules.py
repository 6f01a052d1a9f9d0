"""The stages for easy-VQA without any model: a classifier, a writer, an editor and a verifier that understand its
pictures exactly."""

from __future__ import annotations

import random
from collections.abc import Mapping

from uniedit_hf.calls.messages import Picture, encoded
from uniedit_hf.small_world.editor import EDITOR, edit
from uniedit_hf.small_world.instructions import Instruction, Plan, draw_instruction
from uniedit_hf.small_world.program import Copies, Keep, Move, Recolor, Reshape, Resize, taken_action
from uniedit_hf.small_world.topics import CATEGORIES
from uniedit_hf.small_world.verifier import JUDGE, verify
from uniedit_hf.synthesis.records import Draft, Rejection


EDIT_NAMES = {Recolor: "color", Reshape: "shape", Move: "location", Resize: "size", Copies: "count", Keep: "none"}


def classify_by_rules(draft: Draft, weights: Mapping[str, float], rng: random.Random) -> Draft:
    """What the instruction will ask: the question itself, which is about the shape or its colour, or one that is
    composed for its picture; drawn by the weights of the categories."""
    fitting = [category for category in CATEGORIES if category in (draft.row.attribute, *CATEGORIES[2:])]
    drawn = [weights.get(category, 0.0) for category in fitting]
    category = rng.choices(fitting, drawn)[0] if sum(drawn) else draft.row.attribute
    return draft.with_(category=category, short_answer=draft.answer)


def write_by_rules(draft: Draft, plan: Plan, rng: random.Random) -> Draft | Rejection:
    """An instruction according to a plan, with the program that it means."""
    instruction = draw_instruction(draft.scene, draft.row, plan, rng)
    if isinstance(instruction, str):
        return draft.rejected("instruct", instruction)
    choices = {"depth": plan.depth, "condition": plan.holds, "changed": plan.changes}
    return with_instruction(draft, instruction, plan.category, choices)


def with_instruction(
    draft: Draft, instruction: Instruction, category: str | None, choices: Mapping[str, int | bool]
) -> Draft:
    """The draft with what was written for its scene."""
    taken = taken_action(instruction.program, draft.scene)
    return draft.with_(
        category=category,
        question=instruction.question,
        short_answer=instruction.answer,
        source=instruction.source,
        instruction=instruction.text,
        program=instruction.program,
        unchanged=isinstance(taken, Keep),
        choices={
            **choices,
            "edit": EDIT_NAMES[type(taken)],
            "phrasing": ".".join(map(str, instruction.phrasing)),
        },
    )


def draw_exactly(draft: Draft) -> Draft:
    """The draft with its target; where nothing changes, the very bytes of the source."""
    target = draft.image
    if not draft.unchanged:
        target = Picture(encoded(edit(draft.image.pixels(), draft.scene, draft.program)))
    return draft.with_(target=target, editor=EDITOR)


def read_back(draft: Draft) -> Draft | Rejection:
    """The draft, if its target shows what the instruction means."""
    if not draft.unchanged:
        reason = verify(draft.target.pixels(), draft.scene, draft.program)
        if reason:
            return draft.rejected("verify", reason)
    return draft.with_(judge=JUDGE, scores={"instruction": 1.0})
