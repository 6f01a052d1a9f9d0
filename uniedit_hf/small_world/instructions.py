"""Draws instructions: a question about the image, nested if and else logic, and edits that depend on the answers.

An `EditPlan` describes the instruction; it is filled from a scene and a row of easy-VQA. The answer itself is never in
the
text, and a wrong branch never gives the right image.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from uniedit_hf.small_world.asking import AskingStyle
from uniedit_hf.small_world.compare import mismatches
from uniedit_hf.small_world.easy_vqa import VqaRow
from uniedit_hf.small_world.program import (
    Action,
    Condition,
    Copies,
    If,
    Is,
    Keep,
    Program,
    Recolor,
    Reshape,
    actions,
    apply,
    changes,
    conditions,
)
from uniedit_hf.small_world.scene import Scene
from uniedit_hf.small_world.topics import (
    SORTS,
    Category,
    PlainKind,
    Topic,
    draw_any_action,
    draw_condition,
    draw_topic,
    plain_actions,
    subject,
)
from uniedit_hf.small_world.wording import (
    IF_SO,
    NOUNS,
    NUMBER_WORDS,
    action_phrases,
    count_words,
    say,
    say_branches,
    split_words,
)


MOST_WORDS = 45
ATTEMPTS = 100
KEEP_BESIDE = 0.35  # share of branches not taken that leave the image unchanged
PLAIN_NOUNS = (*NOUNS, "the {shape}", "the {color} shape")


@dataclass(frozen=True)
class EditPlan:
    """The plan of an instruction.

    Args:
        category: The subject of the embedded question.
        depth: Number of nested conditions, 1 to 3.
        condition: Whether the outermost condition is true of the image.
        changed: Whether the image changes; otherwise the branch that is taken leaves it unchanged.
        asking: How the edit is asked for.
    """

    category: Category
    depth: int
    condition: bool
    changed: bool
    asking: AskingStyle = "question"

    @property
    def task_category(self) -> str:
        """The category of the edit in the data set."""
        return self.category

    @property
    def seed_text(self) -> str:
        """The seed of an instruction's draws; kept stable, so that a seed gives the same rows in every release."""
        drawn = f"category={self.category!r}, depth={self.depth}, holds={self.condition}, changes={self.changed}"
        return f"Plan({drawn})"


@dataclass(frozen=True)
class PlainEditPlan:
    """A direct edit of one kind, without a question or a condition."""

    kind: PlainKind

    @property
    def task_category(self) -> str | None:
        """The category of the edit in the data set, which has none for size."""
        return None if self.kind == "size" else self.kind


@dataclass(frozen=True)
class Instruction:
    """A text with its meaning.

    Args:
        text: The text for the model.
        program: Its meaning.
        question: The embedded question, None for a plain edit.
        answer: Its answer on this image, None for a plain edit.
        source: "easy-vqa" where the question is a row of the data set, otherwise "composed".
        phrasing: The index of every phrasing that was drawn, in the order of the text.
    """

    text: str
    program: Program
    question: str | None
    answer: str | None
    source: Literal["easy-vqa", "composed"]
    phrasing: tuple[int, ...]


@dataclass
class Leaves:
    """The action of the branch that the scene takes (None elsewhere), and those of the other branches, which are
    consumed.
    """

    taken: Action | None
    beside: list[Action]


@dataclass
class Phrasing:
    """Chooses phrasings and records their indices.

    Args:
        rng: Draws the choices.
        spare_words: How many words longer than the shortest a phrasing may be.
    """

    rng: random.Random
    spare_words: int = MOST_WORDS
    drawn: list[int] = field(default_factory=list)

    def __call__(self, phrases: Sequence[str]) -> str:
        lengths = [phrase.count(" ") for phrase in phrases]
        most = min(lengths) + self.spare_words
        self.drawn.append(self.rng.choice([index for index, length in enumerate(lengths) if length <= most]))
        return phrases[self.drawn[-1]]


def draw_instruction(scene: Scene, row: VqaRow, plan: EditPlan, rng: random.Random) -> Instruction | str:
    """An instruction for an image according to a plan, or the reason why none was found.

    Args:
        scene: The scene in the image.
        row: A question about this image; it is embedded for the categories shape and color.
        plan: The plan.
        rng: Draws every choice.
    """
    reason = ""
    for _ in range(ATTEMPTS):
        topic = draw_topic(scene, row, plan.category, plan.condition, rng)
        program = None if topic is None else _draw_program(scene, topic, plan, rng)
        if program is None:
            reason = f"no {plan.category} edit for this image"
            continue
        instruction = _phrased(topic, program, rng)
        reason = fault(instruction, scene)
        if not reason:
            return instruction
    return reason


def draw_plain_edit(scene: Scene, kind: PlainKind, rng: random.Random) -> Instruction | str:
    """A direct instruction without question or condition, or the reason why none was found."""
    fitting = [action for action in plain_actions(kind) if changes(action, scene)]
    if not fitting:
        return f"no plain {kind} edit for this image"
    action, phrasing = rng.choice(fitting), Phrasing(rng)
    noun = phrasing(PLAIN_NOUNS).format(shape=scene.shape, color=scene.color)
    return Instruction(
        f"{phrasing(action_phrases(action, noun))}.", action, None, None, "composed", tuple(phrasing.drawn)
    )


def fault(instruction: Instruction, scene: Scene) -> str:
    """The reason why an instruction cannot be used, or an empty string."""
    if leaked_answers(instruction, scene):
        return "the instruction contains the answer"
    if count_words(instruction.text) > MOST_WORDS:
        return f"the instruction has more than {MOST_WORDS} words"
    if decides_nothing(instruction.program):
        return "a condition decides nothing"
    target = apply(instruction.program, scene)
    if sum(not mismatches(target, action.result(scene)) for action in actions(instruction.program)) > 1:
        return "a wrong branch gives the right image"
    return ""


def decides_nothing(program: Program) -> bool:
    """Whether both branches of any if are the same."""
    if not isinstance(program, If):
        return False
    same = program.then == program.otherwise
    return same or decides_nothing(program.then) or decides_nothing(program.otherwise)


def leaked_answers(instruction: Instruction, scene: Scene) -> list[str]:
    """The answers that the text contains: that of the embedded question, and every value that the text refers to by a
    thing ("the color of grass").
    """
    answers = [] if instruction.answer is None else split_words(instruction.answer)
    for node in (*conditions(instruction.program), *actions(instruction.program)):
        match node:
            case Is(value=value, thing=thing) | Recolor(color=value, thing=thing) | Reshape(shape=value, thing=thing):
                answers += [value] if thing else []
            case Copies(number, thing) if thing:
                answers.append(NUMBER_WORDS[scene.corners if number is None else number])
    words = set(split_words(instruction.text))
    return [answer for answer in answers if answer in words]


def _draw_program(scene: Scene, topic: Topic, plan: EditPlan, rng: random.Random) -> If | None:
    """A nested if whose taken branch ends in the topic's edit or, if nothing should change, in no edit."""
    outer = draw_condition(scene, topic.sorts, plan.condition, rng)
    mains = rng.sample(topic.actions, len(topic.actions))
    main = next((action for action in mains if changes(action, scene) or not plan.changed), None)
    if outer is None or main is None:
        return None
    keep_beside = KEEP_BESIDE if plan.changed else 0.0
    beside = [Keep() if rng.random() < keep_beside else draw_any_action(rng) for _ in range(plan.depth)]
    if not plan.changed:
        beside[rng.randrange(plan.depth)] = main
    leaves = Leaves(main if plan.changed else Keep(), beside)
    return _draw_if(scene, outer, plan.depth, leaves, frozenset({subject(outer)}), rng)


def _draw_if(
    scene: Scene, condition: Condition, depth: int, leaves: Leaves, about: frozenset[str], rng: random.Random
) -> If:
    """An if of a given depth. `about` has the subjects of this condition and of the enclosing ones; nested conditions
    are about others.
    """
    # A branch with two ifs can only be phrased after "otherwise".
    nested = None if depth == 1 else depth == 2 and rng.random() < 0.5
    branches: dict[bool, Program] = {}
    for branch in (True, False):
        within = leaves if condition.is_true(scene) == branch else Leaves(None, leaves.beside)
        if branch is nested:
            fresh = [sort for sort in SORTS if sort.subject not in about]
            truth = rng.random() < 0.5
            # The width is clear for every shape, so there is always a condition with the wanted truth.
            inner = draw_condition(scene, fresh, truth, rng) or draw_condition(scene, fresh, not truth, rng)
            branches[branch] = _draw_if(scene, inner, depth - 1, within, about | {subject(inner)}, rng)
        else:
            branches[branch] = within.taken or within.beside.pop()
    return If(condition, branches[True], branches[False])


def _phrased(topic: Topic, program: If, rng: random.Random) -> Instruction:
    """The program in words, with shorter and shorter phrasings until one is short enough."""
    for spare_words in (MOST_WORDS, 2, 1, 0):
        phrasing = Phrasing(rng, spare_words)
        text = _say_with_lead(topic, program, phrasing)
        if count_words(text) <= MOST_WORDS:
            break
    return Instruction(text, program, topic.question, topic.answer, topic.source, tuple(phrasing.drawn))


def _say_with_lead(topic: Topic, program: If, phrasing: Phrasing) -> str:
    """The instruction, sometimes preceded by its question."""
    lead = phrasing(["", *topic.leads])
    if lead and topic.proposition is not None:
        answered = IF_SO[0] if program.condition == topic.proposition else IF_SO[1]
        return f"{lead} {answered} {say_branches(program, phrasing)}."
    return f"{lead} {say(program, phrasing)}.".strip()
