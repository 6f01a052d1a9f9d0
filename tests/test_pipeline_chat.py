"""Conversations: texts and images in their order, several turns, and what is refused."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, picture, tiny_bagel, tiny_bagel_processor
from transformers import LogitsProcessor

from uniedit_hf import UniEditPipeline
from uniedit_hf.conversations import conversation_sample
from uniedit_hf.segments import UNDERSTANDING, ImageSegment, Sample, TextSegment


ONE, TWO = picture(64, 48), picture(48, 64, seed=1)
SHORT = {"max_new_tokens": 8}


@pytest.fixture(scope="module", params=FAMILIES)
def pipe(request) -> UniEditPipeline:
    family = FAMILIES[request.param]
    return UniEditPipeline(family.model(), family.processor())


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def image(each) -> dict:
    return {"type": "image", "image": each}


def user(*parts) -> dict:
    return {"role": "user", "content": list(parts)}


def test_an_image_and_a_question_are_answered_as_ever(pipe):
    asked = [user(image(ONE), text("what is this"))]
    assert pipe.chat(asked, **SHORT) == pipe.answer(ONE, "what is this", **SHORT)
    assert pipe.chat([{"role": "user", "content": "paint the red"}], **SHORT) == pipe.answer(
        None, "paint the red", **SHORT
    )


def test_the_order_reaches_the_model(pipe):
    """The context has the parts as they came, an earlier answer among them."""
    turns = [
        {"role": "system", "content": "make it"},
        user(text("is this red"), image(ONE), text("and this"), image(TWO)),
        {"role": "assistant", "content": "no"},
        user(text("then what")),
    ]
    fit = pipe.processor.open_source
    texts = [TextSegment(words, loss=words == "no") for words in ("make it", "is this red", "and this", "no")]
    images = [ImageSegment(fit(each), UNDERSTANDING) for each in (ONE, TWO)]
    sample = Sample([texts[0], texts[1], images[0], texts[2], images[1], texts[3], TextSegment("then what")])
    inputs = pipe.processor([sample])
    found = pipe.model.generate(**inputs, do_sample=False, **SHORT)[:, inputs["input_ids"].shape[1] :]
    assert pipe.chat(turns, **SHORT) == pipe.processor.batch_decode(found, skip_special_tokens=True)[0].strip()
    turned = [user(image(ONE), text("is this red")), user(text("is this red"), image(ONE))]
    ids = [pipe.processor([conversation_sample([each], fit)])["input_ids"] for each in turned]
    assert not torch.equal(*ids)


def test_conversations_in_lists_are_answered_alone(pipe):
    asked = [
        [user(image(ONE), text("what is this"))],
        [user(text("is this red"))],
        [user(text("paint"), image(TWO), text("and")), {"role": "assistant", "content": "no"}, user(text("yes"))],
    ]
    assert pipe.chat(asked, **SHORT) == [pipe.chat(each, **SHORT) for each in asked]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "The conversation is empty"),
        ("what", "The conversation is empty"),
        ([{"role": "tool", "content": "x"}], "role 'tool'"),
        (["what"], "role None"),
        ([{"role": "user", "content": " "}], "empty text"),
        ([{"role": "user", "content": []}], "no content"),
        ([{"role": "user"}], "no content"),
        ([user({"type": "audio"})], "type 'audio'"),
        ([user(image(ONE))], "no text"),
        ([{"role": "assistant", "content": "yes"}], "end the conversation with the user's"),
        ([{"role": "system", "content": [image(ONE)]}, user(text("yes"))], "only the user shows images"),
    ],
)
def test_what_is_not_a_conversation(pipe, messages, message):
    with pytest.raises(ValueError, match=message):
        pipe.chat(messages)


class Forbids(LogitsProcessor):
    """Never the likeliest token."""

    def __init__(self):
        self.calls = 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        return scores.scatter(1, scores.argmax(-1, keepdim=True), -torch.inf)


def test_a_logits_processor_works_with_a_thinking_budget():
    pipe = UniEditPipeline(tiny_bagel(), tiny_bagel_processor())
    own = Forbids()
    options = {"thinking_budget": 4, "max_new_tokens": 5, "min_new_tokens": 9}
    changed = pipe.answer(ONE, "what is this", logits_processor=[own], **options)
    assert own.calls >= 5 and changed != pipe.answer(ONE, "what is this", **options)


def test_a_logits_processor_reaches_every_family(pipe):
    own = Forbids()
    changed = pipe.answer(ONE, "what is this", logits_processor=[own], **SHORT)
    assert own.calls == 8 and changed != pipe.answer(ONE, "what is this", **SHORT)
