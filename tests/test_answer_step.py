"""Steps of writing on plain weights with memories of their own: the numbers of the modules, whatever happens to the
cache in between."""

from __future__ import annotations

import pytest
import torch
from tiny_models import picture, tiny_bagel, tiny_bagel_processor, tiny_janus, tiny_janus_processor
from transformers import DynamicCache, LogitsProcessor, StaticCache

from uniedit_hf.models.bagel import answer_step
from uniedit_hf.models.bagel.answer_step import AnswerStep
from uniedit_hf.models.bagel.step_memory import GrowingMemory
from uniedit_hf.models.janus import token_drawing
from uniedit_hf.models.janus.generation_janus import JanusImageSettings
from uniedit_hf.segments import ImageSegment, Sample, TextSegment


@pytest.fixture(scope="module")
def model():
    """With norms and biases that are not those of a new model."""
    model = tiny_bagel()
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def processor():
    return tiny_bagel_processor()


def questions(number: int) -> list[Sample]:
    """Of different lengths."""
    words = ["what colour is this", "make it", "is this a red circle and then"][:number]
    images = [[ImageSegment(picture(64, 48, 1), "vit")], [], [ImageSegment(picture(64, 48, 2), "vit")]]
    return [Sample([*image, TextSegment(text)]) for image, text in zip(images, words)]


def written(model, inputs, **options):
    usual = {"do_sample": False, "max_new_tokens": 12, "return_dict_in_generate": True, "output_logits": True}
    torch.manual_seed(0)
    return model.generate(**inputs, **usual | options)


@pytest.fixture
def steps(monkeypatch):
    """Counts the steps; `steps.off()` makes the modules write."""

    class Steps:
        count = 0

        def off(self):
            monkeypatch.setattr(answer_step, "_has_step", lambda *_: False)

    seen, logits = Steps(), AnswerStep.logits

    def counted(*arguments):
        seen.count += 1
        return logits(*arguments)

    monkeypatch.setattr(AnswerStep, "logits", counted)
    return seen


def check(model, inputs, steps, expected: int, **options) -> None:
    """The step writes what modules write, in this many steps."""
    found, calls = written(model, inputs, **options), steps.count
    steps.off()
    modules = written(model, inputs, **options)
    assert calls == steps.count == expected
    assert torch.equal(found.sequences, modules.sequences)
    for one, other in zip(found.logits or (), modules.logits or ()):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("cache", [None, "static"])
def test_the_step_writes_what_modules_write(model, processor, steps, number, cache):
    check(model, processor(questions(number)), steps, 11, cache_implementation=cache)


def test_more_tokens_than_a_memory_has_room_for(model, processor, steps):
    check(model, processor(questions(2)), steps, 149, max_new_tokens=150)


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True, "top_k": 5}])
def test_rows_that_move_or_are_many(model, processor, steps, cache, options):
    check(model, processor(questions(2)), steps, 11, cache_implementation=cache, output_logits=False, **options)


def test_a_cache_that_is_cut(model, processor):
    """Candidates from the prompt are appended, and those that are wrong are cut off again."""
    inputs = processor([Sample([TextSegment("red circle red circle red circle red")])])
    plain = written(model, inputs, max_new_tokens=40).sequences
    assert torch.equal(written(model, inputs, max_new_tokens=40, prompt_lookup_num_tokens=3).sequences, plain)


class OtherPrompt(LogitsProcessor):
    """Adds the logits after another prompt, which has a cache of its own."""

    def __init__(self, model, ids: torch.Tensor):
        self.model, self.ids, self.cache = model, ids, DynamicCache()

    def __call__(self, input_ids, scores):
        new = self.ids if not self.cache.get_seq_length() else input_ids[:, -1:]
        past = self.cache.get_seq_length()
        places = torch.arange(past, past + new.shape[1])[None]
        output = self.model(input_ids=new, position_ids=places, past_key_values=self.cache, logits_to_keep=1)
        return scores + output.logits[:, -1]


def test_two_caches_in_turn(model, processor, steps):
    other = processor([Sample([TextSegment("make it")])])["input_ids"]
    inputs = processor([Sample([TextSegment("a red circle")])])
    found = written(model, inputs, logits_processor=[OtherPrompt(model, other)])
    assert steps.count == 22
    steps.off()
    assert torch.equal(found.sequences, written(model, inputs, logits_processor=[OtherPrompt(model, other)]).sequences)


@pytest.mark.parametrize("kind", [None, "static", "reset"])
def test_a_cache_is_continued(model, processor, kind):
    """By a second answer after the first, in one cache; a reset cache is as new."""
    inputs = processor([Sample([TextSegment("a red circle")])])
    size = inputs["input_ids"].shape[1] + 40
    cache = StaticCache(config=model.config.text_config, max_cache_len=size) if kind else DynamicCache()
    first = written(model, inputs, past_key_values=cache)
    if kind == "reset":
        cache.reset()
        again = written(model, inputs, past_key_values=cache).sequences
        assert torch.equal(again, first.sequences)
        return
    second = written(model, {"input_ids": first.sequences}, past_key_values=cache)
    assert torch.equal(second.sequences, written(model, inputs, max_new_tokens=24).sequences)
    if kind is None:
        keys = cache.layers[0].keys
        assert keys.shape[2] == second.sequences.shape[1] - 1 and cache.get_seq_length() == keys.shape[2]


def test_memories_grow_by_half(model):
    cache = DynamicCache()
    cache.update(torch.randn(2, 2, 100, 8), torch.randn(2, 2, 100, 8), 0)
    before = cache.layers[0].keys.clone()
    memory = GrowingMemory(cache.layers[0])
    assert memory.size == 192 and torch.equal(cache.layers[0].keys, before) and not memory.moved()
    cache.crop(-1)
    assert memory.moved()


def test_what_is_not_plain_has_no_step(model, processor, steps):
    inputs = processor(questions(1))
    for module in (model.lm_head, model.model.language_model.embed_tokens, model.model.language_model.layers[0].mlp):
        hook = module.register_forward_hook(lambda *_: None)
        written(model, inputs)
        hook.remove()
        assert steps.count == 0
    model.compile_layers = True
    with torch.no_grad():
        assert answer_step.answer_step(model.model.language_model) is None
    model.compile_layers = None
    half = tiny_bagel().to(torch.bfloat16)
    half.generate(**processor(questions(1)), max_new_tokens=3, do_sample=False)
    assert steps.count == 0


@torch.no_grad()
def test_janus_draws_the_same_on_plain_weights(monkeypatch):
    model, processor = tiny_janus(), tiny_janus_processor()
    source = picture(32, 32, 1)
    views = [ImageSegment(source, "siglip"), ImageSegment(source, "vq")]
    samples = [Sample([*views, TextSegment("paint the circle red")]), Sample([TextSegment("a circle")])]
    contexts = processor.guidance_contexts(samples)
    requests = [JanusImageSettings(32, 32, seed=i, image_guidance_scale=2.0) for i in range(2)]
    found = model._drawn(requests, **contexts)
    assert found.memory is not None
    monkeypatch.setattr(token_drawing, "plain_experts", lambda *_: None)
    modules = model._drawn(requests, **contexts)
    assert modules.memory is None and torch.equal(found.tokens, modules.tokens)
    assert torch.allclose(found.log_probs, modules.log_probs, atol=1e-4)
