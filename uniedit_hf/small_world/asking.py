"""Three ways to ask for the same edit of the same image, and two plans that lead from the first to the last.

    question   if the shape is red, give it the color of grass; otherwise shrink it.
    answer     the shape is red, the color of grass is green, so make it green.
    plain      make it green.
    plan       the shape is red, yes, the color of grass is green, so make it green.
    thinking   what color is the shape? red, red? yes, the color of grass is green, so make it green.

`question` is how intelligent edits are written. `answer` states the facts that decide: what is true of the image for
every condition on the path, then the fact on which the action depends; branches that are not taken are omitted.
`plain` is the last part of that. An action that names its result keeps its words from the instruction. Leaving the
image unchanged counts as an action. "The other side" and "the opposite corner" stay, because no other words name that
place; `answer` says on which side or in which corner the shape is. `plan` also states whether each condition holds.
`thinking` is a plan that asks each condition's question in words that the base can answer, and answers it. A model can
write a plan for itself before it draws.
"""

from __future__ import annotations

import random
from typing import Literal

from uniedit_hf.small_world.program import (
    Action,
    Closer,
    Condition,
    Copies,
    HasCorners,
    If,
    InHalf,
    Is,
    Move,
    Program,
    Recolor,
    Reshape,
    WiderThan,
    taken_action,
)
from uniedit_hf.small_world.scene import Scene
from uniedit_hf.small_world.wording import (
    CORNERS_QUESTION,
    NOUNS,
    NUMBER_WORDS,
    action_phrases,
    condition_phrases,
    question_of,
)


AskingStyle = Literal["question", "answer", "plain", "plan", "thinking"]
ASKING_STYLES: tuple[AskingStyle, ...] = ("question", "answer", "plain")
OTHER_HALF = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}

Phrases = tuple[str, ...]


def rephrased(asking: AskingStyle, instruction: str, program: Program, scene: Scene, rng: random.Random) -> str:
    """An instruction asked in one of three ways, in the words of the closed vocabulary.

    Args:
        asking: The way, `plan` or `thinking`.
        instruction: The instruction with its question.
        program: Its meaning.
        scene: The scene in its image.
        rng: Draws the phrasings; from the same state, `answer` ends in the words of `plain`.
    """
    if asking == "question":
        return instruction
    reasons, action = resolved(taken_action(program, scene), scene)
    phrases = [phrase for noun in NOUNS for phrase in dict.fromkeys(action_phrases(action, noun))]
    there = [phrase for phrase in phrases if phrase in instruction]
    plain = f"{max(there, key=len) if there else rng.choice(phrases)}."
    if asking == "plain":
        return plain
    if asking in ("plan", "thinking"):
        decided = verdicts(program, scene) if asking == "plan" else answered_questions(program, scene)
        first = [each[0] for each in reasons]
        return ", ".join((*decided, *first, f"so {plain if there else phrases[0] + '.'}"))
    known = dict.fromkeys((*facts(program, scene), *reasons))
    return ", ".join((*map(rng.choice, known), f"so {plain}"))


def verdicts(program: Program, scene: Scene) -> list[str]:
    """For every condition on the path that the scene takes, the fact that decides it, and "yes" or "no": whether the
    condition holds."""
    found = []
    while isinstance(program, If):
        holds = program.condition.is_true(scene)
        found += [fact(program.condition, scene)[0], "yes" if holds else "no"]
        program = program.then if holds else program.otherwise
    return found


def answered_questions(program: Program, scene: Scene) -> list[str]:
    """For every condition on the path that the scene takes, the question that it asks, in the words of the base's own
    training, and its answer."""
    found = []
    while isinstance(program, If):
        holds = program.condition.is_true(scene)
        *facts, question = question_steps(program.condition, scene)
        found += [*facts, f"{question} {'yes' if holds else 'no'}"]
        program = program.then if holds else program.otherwise
    return found


def question_steps(condition: Condition, scene: Scene) -> tuple[str, ...]:
    """The steps to the answer of a condition: what a thing in it stands for, an open question with its answer, and
    last a test of that answer; or a single yes/no question."""
    match condition:
        case Is("color", value, negated, thing):
            known = (f"the color of {thing} is {value}",) if thing else ()
            return *known, f"what color is the shape? {scene.color}", f"{'not ' if negated else ''}{value}?"
        case Is("shape", value, negated, thing):
            known = (f"the shape of {thing} is a {value}",) if thing else ()
            return *known, f"what shape is in the image? {scene.shape}", f"{'not ' if negated else ''}{value}?"
        case HasCorners(number, relation):
            words = NUMBER_WORDS[number] if relation == "exactly" else f"{relation} {NUMBER_WORDS[number]}"
            return f"{CORNERS_QUESTION} {NUMBER_WORDS[scene.corners]}", f"{words}?"
    return (question_of(condition),)


def facts(program: Program, scene: Scene) -> list[Phrases]:
    """For every condition on the path that the scene takes, the phrasings of the fact that decides it."""
    found = []
    while isinstance(program, If):
        found.append(fact(program.condition, scene))
        program = program.then if program.condition.is_true(scene) else program.otherwise
    return found


def fact(condition: Condition, scene: Scene) -> Phrases:
    """The fact of a scene that a condition depends on: its color, its shape, its number of corners, its half."""
    match condition:
        case Is("color"):
            return condition_phrases(Is("color", scene.color))
        case Is("shape"):
            return condition_phrases(Is("shape", scene.shape))
        case HasCorners():
            return condition_phrases(HasCorners(scene.corners))
        case InHalf(half) if not condition.is_true(scene):
            return condition_phrases(InHalf(OTHER_HALF[half]))
        case Closer(edge, other) if not condition.is_true(scene):
            return condition_phrases(Closer(other, edge))
        case WiderThan(part) if not condition.is_true(scene):
            return (f"the shape is not wider than a {part} of the image",)
    return condition_phrases(condition)


def resolved(action: Action, scene: Scene) -> tuple[list[Phrases], Action]:
    """The fact that an action depends on, and the action with its result named."""
    match action:
        case Recolor(color, thing) if thing:
            return [(f"the color of {thing} is {color}",)], Recolor(color)
        case Reshape(shape, thing) if thing:
            return [(f"the shape of {thing} is a {shape}",)], Reshape(shape)
        case Copies(None):
            return [fact(HasCorners(scene.corners), scene)], Copies(scene.corners)
        case Copies(number, thing) if thing:
            owner, _, part = thing.rpartition(" has ")
            return [(f"{owner} has {NUMBER_WORDS[number]} {part}",)], Copies(number)
        case Move("other side"):
            return [fact(InHalf("left"), scene)], action
        case Move("opposite corner"):
            return [fact(InHalf("top"), scene), fact(InHalf("left"), scene)], action
    return [], action
