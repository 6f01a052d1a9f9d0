"""What the verifier and the checks of an instruction reject, each for its reason."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from uniedit_hf.small_world.editor import edited_image
from uniedit_hf.small_world.instructions import Instruction, fault, leaked_answers
from uniedit_hf.small_world.program import Copies, If, InHalf, Is, Keep, Move, Recolor, Reshape, Resize, apply, changes
from uniedit_hf.small_world.scene import Scene, render
from uniedit_hf.small_world.verifier import fault_of_target


CIRCLE = Scene("circle", "red", (10.0, 20.0, 26.0, 36.0), (240, 245, 250))
RECOLOR = Recolor("blue")


@pytest.mark.parametrize(
    ("drawn", "reason"),
    [
        ([replace(CIRCLE, color="blue")], ""),
        ([CIRCLE], "wrong in color"),
        ([replace(CIRCLE, color="blue").turned_into("rectangle")], "wrong in shape"),
        ([replace(CIRCLE, color="blue").at((19.0, 28.0))], "wrong in place"),
        ([replace(CIRCLE, color="blue").at(CIRCLE.center, 18.0)], "wrong in size"),
        ([replace(CIRCLE, color="blue", background=(240, 245, 240))], "wrong in background"),
        ([replace(CIRCLE, color="green").at((40.0, 28.0))], "wrong in color and place"),
        ([replace(CIRCLE, color="blue"), replace(CIRCLE, color="blue").at((48.0, 48.0))], "wrong in count"),
    ],
)
def test_the_verifier_says_what_is_wrong(drawn, reason):
    told = fault_of_target(render(*drawn), CIRCLE, RECOLOR)
    assert told.endswith(reason) and bool(told) == bool(reason)


def test_a_target_that_cannot_be_read_is_rejected():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert fault_of_target(noise, CIRCLE, RECOLOR) == "the target cannot be read"


@pytest.mark.parametrize(
    "program",
    [
        RECOLOR,
        Reshape("triangle"),
        Move("opposite corner"),
        Resize(True),
        Copies(3),
        If(Is("color", "teal"), RECOLOR, Keep()),
    ],
)
def test_the_editor_draws_what_the_program_says(program):
    image = render(CIRCLE)
    edited = edited_image(image, CIRCLE, program)
    assert fault_of_target(edited, CIRCLE, program) == ""
    assert (edited is image) == (apply(program, CIRCLE) == [CIRCLE])


def instruction(text, program, question="what color is the shape?", answer="red"):
    return Instruction(text, program, question, answer, "composed", ())


@pytest.mark.parametrize(
    ("text", "program", "leaked"),
    [
        ("if the shape is red, make it blue.", If(Is("color", "red"), RECOLOR, Keep()), ["red"]),
        ("if the shape is teal, make it blue.", If(Is("color", "teal"), RECOLOR, Keep()), []),
        ("give it the color of grass, not green.", Recolor("green", "grass"), ["green"]),
        ("make it look like a wheel, a circle.", Reshape("circle", "a wheel"), ["circle"]),
        ("show it as many times as a dog has legs, four.", Copies(4, "a dog has legs"), ["four"]),
        ("if it has the color of coal, black.", If(Is("color", "black", thing="coal"), RECOLOR, Keep()), ["black"]),
    ],
)
def test_leaks_are_found(text, program, leaked):
    assert leaked_answers(instruction(text, program), CIRCLE) == leaked


def test_instructions_are_rejected_for_a_reason():
    fine = If(InHalf("left"), Recolor("blue"), Keep())
    assert fault(instruction("if it is in the left half, make it blue; otherwise change nothing.", fine), CIRCLE) == ""
    assert "contains the answer" in fault(instruction("make the red shape blue.", fine), CIRCLE)
    assert "more than 45 words" in fault(instruction("make it blue " * 20, fine), CIRCLE)
    same = If(InHalf("left"), Recolor("blue"), Recolor("blue"))
    assert "decides nothing" in fault(instruction("make it blue.", same), CIRCLE)
    near = If(InHalf("left"), Move("left"), Keep())  # the circle is at the left already
    assert "wrong branch" in fault(instruction("move it to the left.", near), CIRCLE)


def test_edits_that_make_no_difference_are_known():
    assert not any(changes(action, CIRCLE) for action in (Recolor("red"), Reshape("circle"), Move("left"), Keep()))
    assert all(changes(action, CIRCLE) for action in (RECOLOR, Reshape("triangle"), Move("right"), Resize(True)))
    small = CIRCLE.at(CIRCLE.center, 8.0)
    assert changes(Resize(True), small) and not changes(Resize(False), small)
    assert not changes(Copies(None, "it has corners"), CIRCLE)  # a circle has none
