"""The stages for easy-VQA without a model: a classifier, a writer, an editor and a verifier that understand its images
exactly.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING

from uniedit_hf.calls.messages import EncodedImage, encoded
from uniedit_hf.randomness import python_random
from uniedit_hf.small_world.asking import rephrased
from uniedit_hf.small_world.editor import EDITOR, edited_image
from uniedit_hf.small_world.instructions import EditPlan, Instruction, PlainEditPlan, draw_instruction, draw_plain_edit
from uniedit_hf.small_world.program import Copies, Keep, Move, Recolor, Reshape, Resize, taken_action
from uniedit_hf.small_world.topics import CATEGORIES
from uniedit_hf.small_world.verifier import JUDGE, fault_of_target
from uniedit_hf.synthesis.records import Draft, Rejection, record_id


if TYPE_CHECKING:
    from uniedit_hf.synthesis.settings import Instruct

EDIT_NAMES = {Recolor: "color", Reshape: "shape", Move: "location", Resize: "size", Copies: "count", Keep: "none"}


def classify_by_rules(draft: Draft, weights: Mapping[str, float], rng: random.Random) -> Draft:
    """Draws the category of the instruction by weight: the question itself, about the shape or its color, or one
    composed for its image.
    """
    fitting = [category for category in CATEGORIES if category in (draft.row.attribute, *CATEGORIES[2:])]
    drawn = [weights.get(category, 0.0) for category in fitting]
    category = rng.choices(fitting, drawn)[0] if sum(drawn) else draft.row.attribute
    return draft.with_(category=category, short_answer=draft.answer)


def instruct_by_rules(draft: Draft, settings: Instruct | None, seed: int) -> Draft | Rejection:
    """The draft with an instruction and its program, written according to the draft's plan.

    Args:
        draft: A draft with a category, a plan, or both.
        settings: Settings to draw a plan if the draft has none.
        seed: Decides every choice, with the draft's id.
    """
    plan = draft.plan or _draw_plan(draft, settings, seed)
    if isinstance(plan, PlainEditPlan):
        rng = python_random(seed, draft.id, f"plain {plan.kind} {draft.draw}")
        instruction = draw_plain_edit(draft.scene, plan.kind, rng)
        choices: dict[str, int | bool] = {"depth": 0, "changed": True}
    else:
        rng = python_random(seed, draft.id, f"instruction {plan.seed_text} {draft.draw}")
        instruction = draw_instruction(draft.scene, draft.row, plan, rng)
        choices = {"depth": plan.depth, "condition": plan.condition, "changed": plan.changed}
    if isinstance(instruction, str):
        return draft.rejected("instruct", instruction)
    written = _with_instruction(draft, instruction, plan.task_category, choices)
    if isinstance(plan, PlainEditPlan) or plan.asking == "question":
        return written
    phrasing = python_random(record_id(written), "asking")
    text = rephrased(plan.asking, instruction.text, instruction.program, draft.scene, phrasing)
    return written.with_(rephrased=text)


def _draw_plan(draft: Draft, settings: Instruct, seed: int) -> EditPlan:
    """A plan for a draft's category; the rules need at least one condition."""
    rng = python_random(seed, draft.id, "plan")
    depths = {depth: weight for depth, weight in settings.depths.items() if depth}
    return EditPlan(
        draft.category,
        rng.choices(list(depths), list(depths.values()))[0],
        rng.random() >= settings.false_conditions,
        rng.random() >= settings.unchanged,
    )


def _with_instruction(
    draft: Draft, instruction: Instruction, category: str | None, choices: Mapping[str, int | bool]
) -> Draft:
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
    """The draft with its target; if nothing changes, exactly the bytes of the source."""
    target = draft.image
    if not draft.unchanged:
        target = EncodedImage(encoded(edited_image(draft.image.pixels(), draft.scene, draft.program)))
    return draft.with_(target=target, editor=EDITOR)


def read_back(draft: Draft) -> Draft | Rejection:
    """The draft if its target shows the meaning of the instruction, otherwise a rejection."""
    if not draft.unchanged:
        reason = fault_of_target(draft.target.pixels(), draft.scene, draft.program)
        if reason:
            return draft.rejected("verify", reason)
    return draft.with_(judge=JUDGE, scores={"instruction": 1.0})
