"""Thinking, callbacks and streams of the pipeline, on a tiny model."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from tiny_models import (
    picture,
    tiny_bagel,
    tiny_bagel_config,
    tiny_bagel_processor,
    tiny_janus,
    tiny_janus_processor,
    tiny_tokenizer,
)
from tokenizers import AddedToken

from uniedit_hf.models.bagel.generation_bagel import ImageSettings
from uniedit_hf.pipeline import UniEditPipeline
from uniedit_hf.segments import ImageSegment, Sample, TextSegment
from uniedit_hf.streams import Finished, Preview, TextPiece
from uniedit_hf.thinking import CLOSE, ThinkingBudget, split_thoughts


STEPS = 7
FAST = {"num_timesteps": STEPS, "seed": 3}
INSTRUCTION = "paint the circle red"


@pytest.fixture(scope="module")
def pipe() -> UniEditPipeline:
    """A model whose tokenizer knows the closing tag, as a word."""
    processor = tiny_bagel_processor()
    processor.tokenizer.add_tokens([AddedToken(CLOSE, normalized=False)])
    text = tiny_bagel_config().text_config.to_dict() | {"vocab_size": 40}
    return UniEditPipeline(tiny_bagel(text_config=text), processor, batch_size=2)


def pixels(image) -> np.ndarray:
    return np.asarray(image)


# ---- thinking


@pytest.mark.parametrize(
    ("text", "thoughts", "rest"),
    [
        ("<think> it is red </think> yes", "it is red", "yes"),
        ("it is red </think> yes", "it is red", "yes"),
        ("<think> it is", "it is", ""),
        ("yes", "", "yes"),
        ("<think></think>", "", ""),
    ],
)
def test_thoughts_and_the_rest(text, thoughts, rest):
    assert split_thoughts(text) == (thoughts, rest)


def test_a_drawing_after_thoughts_is_drawn_from_them(pipe):
    image = picture()
    thoughts = pipe.think(image, INSTRUCTION, max_new_tokens=6)
    assert len(pipe.processor.token_ids(thoughts)) in range(1, 7)
    thinking = pipe.edit(image, INSTRUCTION, thinking_budget=6, **FAST)
    given = pipe.edit(image, INSTRUCTION, thoughts=thoughts, **FAST)
    assert (pixels(thinking) == pixels(given)).all()
    for other in (pipe.edit(image, INSTRUCTION, **FAST), pipe.edit(image, INSTRUCTION, thoughts="two", **FAST)):
        assert (pixels(other) != pixels(given)).any()


def test_contexts_with_thoughts_are_the_references(pipe):
    """The request to think leads all contexts with text, the thoughts end the first one alone."""
    request = ImageSettings(64, 64, seed=1, num_timesteps=4, image_guidance_scale=1.5, guidance_interval=(0, 1))
    processor, model, source = pipe.processor, pipe.model, picture()
    system = TextSegment(processor.thinking_prompts["draw"])
    views = [ImageSegment(source, view) for view in processor.source_views]
    words, thought = TextSegment(INSTRUCTION), "make it two"
    by_hand = [
        Sample([system, *views, words, TextSegment(thought)]),
        Sample([system, *views]),
        Sample([system, words]),
    ]
    (found,) = model.generate_latents(
        [request], **processor.guidance_contexts([Sample([system, *views, words])], [thought])
    )
    contexts = processor.contexts(by_hand, "draw")
    (expected,) = model.generate_latents([request], torch.tensor([[0, 1, 2]]), **contexts)
    assert torch.equal(found, expected)


def test_the_budget_closes_the_thoughts_and_an_answer_follows(pipe):
    written = []
    generate = pipe.model.generate

    def recording(**options):
        output = generate(**options)
        written.append(output[0, options["input_ids"].shape[1] :].tolist())
        return output

    pipe.model.generate = recording
    try:
        answer = pipe.answer(picture(), "what is this", thinking_budget=4, max_new_tokens=5, min_new_tokens=9)
    finally:
        del pipe.model.generate
    (close,) = pipe.processor.tokenizer(CLOSE, add_special_tokens=False)["input_ids"]
    assert written[0].index(close) <= 4 and len(written[0]) <= 4 + 1 + 5
    assert answer and CLOSE not in answer


def test_thoughts_that_end_by_themselves_are_left_alone():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([CLOSE])
    budget = ThinkingBudget(tokenizer, prompt_length=1, budget=2)
    close = budget.close_ids[0]
    scores = budget(torch.tensor([[9, close], [9, 2]]), torch.zeros(2, 40))
    assert (scores == 0).all()
    scores = budget(torch.tensor([[9, close, 2], [9, 2, 2]]), torch.zeros(2, 40))
    assert (scores[0] == 0).all() and scores[1].argmax() == close and scores[1].isinf().sum() == 39


def test_thinking_in_lists_is_thinking_alone(pipe):
    images, texts = [picture(seed=i) for i in range(3)], [INSTRUCTION, "make it bigger", "then two"]
    together = pipe.think(images, texts, max_new_tokens=5)
    assert together == [pipe.think(i, t, max_new_tokens=5) for i, t in zip(images, texts)]
    edits = pipe.edit(images, texts, thinking_budget=5, **FAST)
    alone = pipe.edit(images[2], texts[2], thoughts=together[2], **FAST)
    assert np.abs(pixels(edits[2]).astype(int) - pixels(alone)).max() <= 1


def test_what_cannot_be_thought(pipe):
    with pytest.raises(ValueError, match="thoughts and thinking_budget are both given"):
        pipe.edit(picture(), INSTRUCTION, thoughts="two", thinking_budget=3, **FAST)
    with pytest.raises(ValueError, match="source_views is empty"):
        pipe.edit(picture(), INSTRUCTION, source_views=[], **FAST)


# ---- callbacks


def test_the_callback_of_diffusers(pipe):
    seen = []

    def look(given, index, timestep, shown):
        assert given is pipe
        seen.append((index, round(timestep.item(), 4), shown["latents"][0].clone()))
        return {"latents": [torch.zeros_like(x) for x in shown["latents"]]} if index == 2 else None

    changed = pipe.edit(picture(), INSTRUCTION, callback_on_step_end=look, **FAST)
    assert [index for index, _, _ in seen] == list(range(STEPS - 1))
    assert seen[0][1] == 1.0 and [t for _, t, _ in seen] == sorted((t for _, t, _ in seen), reverse=True)
    assert (pixels(changed) != pixels(pipe.edit(picture(), INSTRUCTION, **FAST))).any()


def test_an_interrupted_drawing_ends_where_it_is(pipe):
    seen = []

    def interrupt(given, index, timestep, shown):
        seen.append(index)
        given._interrupt = index == 1

    pipe.edit(picture(), INSTRUCTION, callback_on_step_end=interrupt, **FAST)
    assert seen == [0, 1]
    assert pipe.edit(picture(), INSTRUCTION, **FAST).size == (64, 64)


def test_the_preview_is_where_the_velocity_leads(pipe):
    """x_0 = x_t - t v, computed here from two neighboring states."""
    shown_at = {}

    def look(given, index, timestep, shown):
        shown_at[index] = (timestep.item(), shown["latents"][0].clone(), shown["preview"]()[0])

    pipe.generate("a red square", size=(32, 32), callback_on_step_end=look, **FAST)
    (time, before, _), (later, after, _) = shown_at[1], shown_at[2]
    velocity = (before - after) / (later - shown_at[3][0])
    request = ImageSettings(32, 32, num_timesteps=STEPS)
    (expected,) = pipe.model._pixels([before - later * velocity], [request])
    torch.testing.assert_close(shown_at[2][2], expected, atol=2e-3, rtol=2e-3)
    assert time > later
    torch.testing.assert_close(shown_at[5][2], pipe.model._pixels([shown_at[5][1]], [request])[0])


# ---- streams


def test_a_stream_of_an_edit_ends_in_the_edit(pipe):
    events = list(pipe.stream_edit(picture(), INSTRUCTION, thinking_budget=6, num_previews=3, **FAST))
    *before, last = events
    assert isinstance(last, Finished)
    thought = "".join(event.text for event in before if isinstance(event, TextPiece))
    assert (
        thought
        == last.thoughts
        == " ".join(split_thoughts(pipe.think(picture(), INSTRUCTION, max_new_tokens=6))).strip()
    )
    previews = [event for event in before if isinstance(event, Preview)]
    assert [(event.step, event.steps) for event in previews] == [(2, 6), (4, 6)]
    assert all(event.image.size == (64, 64) for event in previews)
    assert before.index(previews[0]) > max(i for i, event in enumerate(before) if isinstance(event, TextPiece))
    expected = pipe.edit(picture(), INSTRUCTION, thinking_budget=6, **FAST)
    assert (pixels(last.result) == pixels(expected)).all()


def test_a_stream_of_an_answer(pipe):
    options = {"thinking_budget": 4, "max_new_tokens": 6, "min_new_tokens": 11}
    *pieces, last = pipe.stream_answer(picture(), "what is this", **options)
    assert len(pieces) > 2 and any(p.thought for p in pieces) and any(not p.thought for p in pieces)
    assert "".join(p.text for p in pieces if not p.thought) == last.result
    assert "".join(p.text for p in pieces if p.thought) == last.thoughts
    assert last.result == pipe.answer(picture(), "what is this", **options)


@pytest.mark.parametrize("kind", ["edit", "answer", "thinking"])
def test_closing_a_stream_stops_the_work(pipe, kind):
    """The thread is gone when `close` returns, long before its work would have ended."""
    streams = {
        "edit": lambda: pipe.stream_edit(picture(), INSTRUCTION, num_timesteps=100_000, num_previews=99_999, seed=0),
        "answer": lambda: pipe.stream_answer(picture(), "what", max_new_tokens=3000, min_new_tokens=3000),
        "thinking": lambda: pipe.stream_generate("a red square", thinking_budget=3000, num_timesteps=100_000),
    }
    stream = streams[kind]()
    next(stream)
    assert any(thread.name == "uniedit-stream" for thread in threading.enumerate())
    stream.close()
    assert not any(thread.name == "uniedit-stream" for thread in threading.enumerate())


def test_a_mistake_in_a_stream_is_raised_where_it_is_read(pipe):
    with pytest.raises(ValueError, match="The instruction is empty"):
        next(pipe.stream_edit(picture(), "", **FAST))


def test_janus_streams_as_well():
    """Previews of tokens, an answer in pieces, and no thoughts where the family has no way to ask for them."""
    pipe = UniEditPipeline(tiny_janus(), tiny_janus_processor())
    *before, last = pipe.stream_edit(picture(), INSTRUCTION, num_previews=4, seed=3)
    previews = [event for event in before if isinstance(event, Preview)]
    assert [event.step for event in previews] == [4, 8, 12] and previews[0].steps == 16
    assert (pixels(last.result) == pixels(pipe.edit(picture(), INSTRUCTION, seed=3))).all()
    *pieces, last = pipe.stream_answer(picture(), "what is this", max_new_tokens=6)
    assert "".join(piece.text for piece in pieces) == last.result
    with pytest.raises(ValueError, match="JanusProcessor cannot be asked for thoughts"):
        pipe.edit(picture(), INSTRUCTION, thinking_budget=4)
