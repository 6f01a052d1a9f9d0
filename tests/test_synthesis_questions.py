"""Composed questions have the right answers, drawing prompts state what is there, and the vocabulary covers both."""

from __future__ import annotations

import dataclasses
from collections import Counter

from hypothesis import given, settings

from tests.instruction_parser import Fact, answer_to
from tests.test_synthesis_reader import scenes
from uniedit_hf.small_world.easy_vqa import load_easy_vqa, load_image, one_row_per_image
from uniedit_hf.small_world.questions import SIZE_QUESTION, composed_questions, drawing_of
from uniedit_hf.small_world.reader import read
from uniedit_hf.small_world.scene import render
from uniedit_hf.small_world.vocabulary import vocabulary
from uniedit_hf.small_world.wording import split_words


VOCABULARY = set(vocabulary())


@given(scene=scenes())
@settings(max_examples=200)
def test_composed_questions_are_answered_right(scene):
    fact = Fact(scene.shape, scene.color, *scene.center, scene.width, scene.height)
    questions = composed_questions(scene)
    assert len({question.text for question in questions}) == len(questions) > 0
    for question in questions:
        assert answer_to(question.text, fact) == question.answer, question
        assert set(split_words(f"{question.text} {question.answer}")) <= VOCABULARY


@given(scene=scenes())
def test_answers_are_clear_enough_to_be_read_from_the_pixels(scene):
    drawn = {question.text: question.answer for question in composed_questions(scene)}
    seen = {question.text: question.answer for question in composed_questions(read(render(scene)))}
    assert all(drawn[text] == seen[text] for text in drawn.keys() & seen.keys())


@given(scene=scenes())
def test_a_drawing_prompt_states_what_is_there(scene):
    drawing = drawing_of(scene)
    assert drawing.mismatches(scene, slack=0) == []
    for prompt in drawing.prompts():
        words = split_words(prompt)
        assert set(words) <= VOCABULARY
        assert {drawing.shape, drawing.color, drawing.size, *drawing.place.split()} <= set(words)


def test_a_drawing_is_wrong_in_what_differs():
    scene = read(load_image(load_easy_vqa("test")[0].image_path))
    drawing = drawing_of(scene.at((16, 16), 14.0))
    assert drawing.size == "small" and drawing.place == "top left"
    assert drawing.mismatches(scene.at((22.5, 16), 14.0)) == []  # within two pixels of the line
    assert drawing.mismatches(scene.at((40, 16), 14.0)) == ["place"]
    assert drawing.mismatches(scene.at((16, 16), 30.0)) == ["size"]
    other = dataclasses.replace(scene.at((16, 16), 14.0), color="black" if scene.color != "black" else "red")
    assert drawing.mismatches(other) == ["color"]


def test_every_topic_and_answer_occurs_on_real_pictures():
    found = [read(load_image(row.image_path)) for row in one_row_per_image(load_easy_vqa("train"))[:300]]
    questions = [question for scene in found for question in composed_questions(scene)]
    topics = Counter(question.topic for question in questions)
    assert set(topics) == {"place", "size", "comparison", "count"}
    sizes = Counter(question.answer for question in questions if question.text == SIZE_QUESTION)
    assert min(sizes[size] for size in ("small", "medium", "big")) > 30
    yes_no = Counter(question.answer for question in questions if question.answer in ("yes", "no"))
    assert 0.4 < yes_no["yes"] / yes_no.total() < 0.6
    assert len({drawing_of(scene).place for scene in found}) == 9
