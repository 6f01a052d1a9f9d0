"""How programs are put into words, and the closed vocabulary of the small world.

Every function here lists the phrasings of one thing; the caller draws one. Texts are lower
case, like easy-VQA's own questions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import product

from uniedit_hf.small_world.easy_vqa import QUESTION_TEMPLATES
from uniedit_hf.small_world.program import (
    ALL_ACTIONS,
    ALL_CONDITIONS,
    COLOR_OF,
    NUMBER_OF,
    OWN_CORNERS,
    SHAPE_OF,
    Action,
    Closer,
    Condition,
    Copies,
    HasCorners,
    If,
    InHalf,
    Is,
    Keep,
    Move,
    Program,
    Recolor,
    Reshape,
    Resize,
    WiderThan,
)
from uniedit_hf.small_world.scene import PALETTE, SHAPES


NUMBER_WORDS = ("zero", "one", "two", "three", "four")
CORNERS_QUESTION = "how many corners does the shape have?"
LEADS = {
    "color": ("look at the color of the shape.", "find out what color the shape is."),
    "shape": ("look at what shape is in the image.", "find out what shape the image contains."),
    "corners": ("count the corners of the shape.", CORNERS_QUESTION),
}
NOUNS = ("it", "the shape")
IF_SO = ("if so,", "if not,")

Choose = Callable[[Sequence[str]], str]


def condition_phrases(condition: Condition) -> tuple[str, ...]:
    """Phrasings after "if"."""
    match condition:
        case Is("color", value, negated, ""):
            return (
                f"the shape is {_not(negated)}{value}",
                f"there is {_not(negated)}a {value} shape",
                f"the image {'does not contain' if negated else 'contains'} a {value} shape",
            )
        case Is("color", _, negated, thing):
            return (
                f"the shape {'does not have' if negated else 'has'} the color of {thing}",
                f"the color of the shape is {_not(negated)}that of {thing}",
            )
        case Is("shape", value, negated, ""):
            return (
                f"the shape is {_not(negated)}a {value}",
                f"there is {_not(negated)}a {value}",
                f"the image {'does not contain' if negated else 'contains'} a {value}",
            )
        case Is("shape", _, negated, thing):
            return (
                f"the shape {'does not look' if negated else 'looks'} like {thing}",
                f"it {'does not have' if negated else 'has'} the shape of {thing}",
            )
        case HasCorners(number, relation):
            return (f"the shape has {'' if relation == 'exactly' else relation + ' '}{NUMBER_WORDS[number]} corners",)
        case InHalf(half):
            return (f"the shape is in the {half} half of the image", f"it is in the {half} half")
        case Closer(edge, other):
            return (f"the shape is closer to the {edge} than to the {other}",)
        case WiderThan(part):
            return (f"the shape is wider than a {part} of the image",)
    raise TypeError(f"Not a condition: {condition!r}")


def action_phrases(action: Action, noun: str = "it") -> tuple[str, ...]:
    """Phrasings after the condition; `noun` is the text's name for the shape."""
    match action:
        case Recolor(color, ""):
            its_color = "its color" if noun == "it" else f"the color of {noun}"
            return (f"make {noun} {color}", f"paint {noun} {color}", f"change {its_color} to {color}")
        case Recolor(_, thing):
            return (f"give {noun} the color of {thing}", f"paint {noun} in the color of {thing}")
        case Reshape(shape, ""):
            return (f"turn {noun} into a {shape}", f"make {noun} a {shape}", f"change {noun} to a {shape}")
        case Reshape(_, thing):
            return (f"give {noun} the shape of {thing}", f"make {noun} look like {thing}")
        case Move("other side"):
            return (f"move {noun} to the other side", f"put {noun} on the other side")
        case Move("opposite corner"):
            return (f"move {noun} to the opposite corner", f"put {noun} in the opposite corner")
        case Move(place):
            return (f"move {noun} to the {place}", f"put {noun} at the {place}")
        case Resize(True):
            return (f"make {noun} bigger", f"enlarge {noun}")
        case Resize(False):
            return (f"make {noun} smaller", f"shrink {noun}")
        case Copies(int(number), ""):
            return (f"show {noun} {NUMBER_WORDS[number]} times", f"draw {NUMBER_WORDS[number]} copies of {noun}")
        case Copies(_, thing):
            return (f"show {noun} as many times as {thing}", f"draw as many copies of {noun} as {thing}")
        case Keep():
            return ("leave it as it is", "change nothing", "keep the image as it is")
    raise TypeError(f"Not an action: {action!r}")


def say(program: Program, choose: Choose) -> str:
    """The instruction for a program, without a final period.

    An if in the else branch follows as "otherwise, if ..."; an if in the then branch, which may contain no further if,
    follows its action: "make it red if it is in the left half or shrink it if not".
    """
    if not isinstance(program, If):
        return _say_action(program, choose)
    return f"if {choose(condition_phrases(program.condition))}, {say_branches(program, choose)}"


def say_branches(program: If, choose: Choose) -> str:
    """The two branches of an if, after its condition."""
    if isinstance(program.then, If):
        then = " ".join(
            (
                _say_action(program.then.then, choose),
                f"if {choose(condition_phrases(program.then.condition))}",
                f"or {_say_action(program.then.otherwise, choose)} if not",
            )
        )
    else:
        then = _say_action(program.then, choose)
    if isinstance(program.otherwise, If):
        return f"{then}; otherwise, {say(program.otherwise, choose)}"
    joint = choose(("; otherwise", ", or else"))
    return f"{then}{joint} {_say_action(program.otherwise, choose)}"


def _say_action(action: Action, choose: Choose) -> str:
    return choose([phrase for noun in NOUNS for phrase in dict.fromkeys(action_phrases(action, noun))])


def question_of(condition: Condition | Action) -> str:
    """The composed question for a condition, or for an action that refers to its value by a thing."""
    match condition:
        case Is("color", _, negated, thing) if thing:
            return f"does the shape {_not(negated)}have the color of {thing}?"
        case Is("shape", _, negated, thing) if thing:
            return f"does the shape {_not(negated)}look like {thing}?"
        case InHalf(half):
            return f"is the shape in the {half} half of the image?"
        case Closer(edge, other):
            return f"is the shape closer to the {edge} than to the {other}?"
        case WiderThan(part):
            return f"is the shape wider than a {part} of the image?"
        case Recolor(_, thing) if thing:
            return f"what is the color of {thing}?"
        case Reshape(_, thing) if thing:
            return f"what is the shape of {thing}?"
        case Copies(None, _) | HasCorners():
            return CORNERS_QUESTION
        case Copies(_, thing) if thing:
            owner, _, part = thing.rpartition(" has ")
            return f"how many {part} does {owner} have?"
    raise TypeError(f"No question stands behind {condition!r}")


def split_words(text: str) -> list[str]:
    """Words and punctuation marks, in order."""
    return re.findall(r"[a-z]+|[^\sa-z]", text.lower())


def count_words(text: str) -> int:
    """The number of words, without punctuation."""
    return len(re.findall(r"[a-z]+", text.lower()))


def instruction_texts() -> list[str]:
    """All phrases of instructions, their questions and their answers."""
    texts = [question for template in QUESTION_TEMPLATES for question in _filled(template)]
    texts += [text for leads in LEADS.values() for text in leads]
    texts += [*IF_SO, *NUMBER_WORDS, *PALETTE, *SHAPES, *COLOR_OF, *SHAPE_OF, *NUMBER_OF, OWN_CORNERS]
    texts += ["if", "or", "if not", "; otherwise,", ", or else", "yes", "no", "."]
    texts += [phrase for condition in ALL_CONDITIONS for phrase in condition_phrases(condition)]
    texts += [phrase for action in ALL_ACTIONS for noun in NOUNS for phrase in action_phrases(action, noun)]
    texts += [question_of(node) for node in (*ALL_CONDITIONS, *ALL_ACTIONS) if asks(node)]
    return texts


def asks(node: Condition | Action) -> bool:
    """Whether there is a composed question for the node: for all except named values and plain actions."""
    match node:
        case InHalf() | Closer() | WiderThan() | HasCorners():
            return True
        case Is(thing=thing) | Recolor(thing=thing) | Reshape(thing=thing) | Copies(thing=thing):
            return bool(thing)
    return False


def _filled(template: str) -> list[str]:
    things = [*SHAPES, *(f"{color} shape" for color in PALETTE)]
    fillings = product(SHAPES, PALETTE, things)
    return [template.format(shape=shape, color=color, thing=thing) for shape, color, thing in fillings]


def _not(negated: bool) -> str:
    return "not " if negated else ""
