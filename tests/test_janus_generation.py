"""Drawing and editing with Janus-Pro: equal to transformers where it can, and every request by itself."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from tiny_models import WORDS, picture, tiny_janus, tiny_janus_processor
from transformers import DynamicCache

from uniedit_hf.models.janus.generation_janus import JanusImageSettings
from uniedit_hf.pipeline import UniEditPipeline
from uniedit_hf.segments import ImageSegment, Sample, TextSegment


@pytest.fixture(scope="module")
def model():
    return tiny_janus()


@pytest.fixture(scope="module")
def processor():
    return tiny_janus_processor()


@pytest.fixture(scope="module")
def pipe(model, processor):
    return UniEditPipeline(model, processor, batch_size=5)


def text(draws: random.Random) -> str:
    return " ".join(draws.choices(WORDS, k=draws.randint(1, 9)))


def edit_context(seed: int = 1, words: str = "paint the circle red", views=("siglip", "vq")) -> Sample:
    source = picture(32, 32, seed)
    return Sample([*(ImageSegment(source, view) for view in views), TextSegment(words)])


def tokens_of(model, processor, sample: Sample, **settings) -> torch.Tensor:
    request = JanusImageSettings(32, 32, **settings)
    return model.generate_tokens([request], **processor.guidance_contexts([sample]))[0]


# ---- against transformers


@pytest.mark.parametrize("scale", [1.5, 5.0])
def test_greedy_drawings_are_those_of_transformers(model, processor, scale):
    draws = random.Random(1)
    prompts = [text(draws) for _ in range(4)]
    for prompt in prompts:
        inputs = processor(
            text=[f"<|User|>: {prompt}\n\n<|Assistant|>:"], generation_mode="image", return_tensors="pt"
        )
        stock = model.generate(**inputs, generation_mode="image", do_sample=False, guidance_scale=scale)[0]
        ours = tokens_of(model, processor, Sample([TextSegment(prompt)]), text_guidance_scale=scale, temperature=0)
        assert torch.equal(ours, stock)
    requests = [JanusImageSettings(32, 32, text_guidance_scale=scale, temperature=0)] * 4
    contexts = processor.guidance_contexts([Sample([TextSegment(prompt)]) for prompt in prompts])
    together = model.generate_tokens(requests, **contexts)
    padded = processor(
        text=[f"<|User|>: {prompt}\n\n<|Assistant|>:" for prompt in prompts],
        generation_mode="image",
        padding=True,
        return_tensors="pt",
    )
    stock = model.generate(**padded, generation_mode="image", do_sample=False, guidance_scale=scale)
    assert torch.equal(together, stock) and len({tuple(row.tolist()) for row in together}) > 2


def test_against_three_whole_passes(model, processor):
    """Without a cache and with every context by itself: the logits of each step, mixed by hand."""
    sample = edit_context()
    found = tokens_of(model, processor, sample, text_guidance_scale=4.0, image_guidance_scale=2.0, temperature=0)
    contexts = processor.guidance_contexts([sample])
    rows = contexts.pop("branches")[0]
    embeds = model.embed_context(
        contexts["input_ids"], contexts["token_type_ids"], contexts["siglip_images"], contexts["vq_images"]
    )[rows]
    ids: list[int] = []
    with torch.no_grad():
        for _ in range(16):
            drawn = model.prepare_embeddings_for_image_generation(torch.tensor([ids] * 3, dtype=torch.long))
            logits = []
            for row in range(3):
                whole = torch.cat([embeds[row], drawn[row]])[None]
                hidden = model.model.language_model(inputs_embeds=whole, use_cache=False).last_hidden_state
                logits.append(model.model.generation_head(hidden[:, -1])[0])
            full, text_free, nothing = logits
            guided = nothing + 2.0 * (text_free - nothing) + 4.0 * (full - text_free)
            ids.append(int(guided.argmax()))
    assert found.tolist() == ids


def test_writing_from_views_that_transformers_does_not_know(model, processor):
    """Greedy by whole forwards over a context with a VQ view."""
    sample = Sample([*edit_context().segments[:2], TextSegment("what colour is this")])
    inputs = processor([sample, Sample([TextSegment("yes")])])
    found = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    own = processor([sample])
    embeds = model.embed_context(own["input_ids"], own["token_type_ids"], own["siglip_images"], own["vq_images"])
    ids: list[int] = []
    with torch.no_grad():
        while len(ids) < 5 and (not ids or ids[-1] != 1):
            hidden = model.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
            ids.append(int(model.lm_head(hidden[0, -1]).argmax()))
            embeds = torch.cat([embeds, model.get_input_embeddings()(torch.tensor([[ids[-1]]]))], dim=1)
    assert found[: len(ids)] == ids


# ---- every request by itself


def test_batches_equal_singles(model, processor):
    draws = random.Random(2)
    samples, requests = [], []
    for number in range(12):
        views = draws.choice([("siglip", "vq"), ("siglip",), ("vq",), ()])
        samples.append(edit_context(number, text(draws), views))
        requests.append(
            JanusImageSettings(
                32,
                32,
                seed=draws.randint(0, 99),
                text_guidance_scale=draws.choice([1.0, 3.0, 5.0]),
                image_guidance_scale=draws.choice([1.0, 2.0, 5.0]),
                temperature=draws.choice([0.0, 0.7, 1.0]),
            )
        )
    together = model.generate_tokens(requests, **processor.guidance_contexts(samples))
    for request, sample, tokens in zip(requests, samples, together):
        alone = model.generate_tokens([request], **processor.guidance_contexts([sample]))[0]
        assert torch.equal(tokens, alone)
    assert len({tuple(tokens.tolist()) for tokens in together}) == 12


def test_drawing_and_writing_do_not_depend_on_how_packs_are_attended(model, processor):
    flexible = tiny_janus()
    flexible.set_attn_implementation({"text_config": "flex_attention"})
    samples = [edit_context(), Sample([TextSegment("a red circle")])]
    requests = [JanusImageSettings(32, 32, temperature=0)] * 2
    drawn = [each.generate_tokens(requests, **processor.guidance_contexts(samples)) for each in (model, flexible)]
    assert torch.equal(*drawn)
    written = [each.generate(**processor(samples), max_new_tokens=8, do_sample=False) for each in (model, flexible)]
    assert torch.equal(*written)
    assert flexible.model.language_model.config._attn_implementation == "flex_attention"


def test_an_edit_depends_on_everything_it_is_given(model, processor):
    plain = tokens_of(model, processor, edit_context(), image_guidance_scale=2.0)
    assert torch.equal(plain, tokens_of(model, processor, edit_context(), image_guidance_scale=2.0))
    others = [
        tokens_of(model, processor, edit_context(seed=2), image_guidance_scale=2.0),
        tokens_of(model, processor, edit_context(words="make it bigger"), image_guidance_scale=2.0),
        tokens_of(model, processor, edit_context(views=("siglip",)), image_guidance_scale=2.0),
        tokens_of(model, processor, edit_context(views=("vq",)), image_guidance_scale=2.0),
        tokens_of(model, processor, edit_context(), image_guidance_scale=1.0),
        tokens_of(model, processor, edit_context(), image_guidance_scale=2.0, text_guidance_scale=1.0),
        tokens_of(model, processor, edit_context(), image_guidance_scale=2.0, seed=1),
        tokens_of(model, processor, edit_context(), image_guidance_scale=2.0, temperature=0),
    ]
    assert all((other != plain).float().mean() > 0.2 for other in others)


@pytest.mark.parametrize(
    ("text_scale", "image_scale", "rows"), [(1, 1, 1), (5, 1, 2), (1, 5, 3), (5, 5, 2), (5, 2, 3)]
)
def test_contexts_that_do_not_count_are_not_computed(model, processor, text_scale, image_scale, rows):
    seen = []
    query = model.model.language_model.layers[0].self_attn.q_proj
    hook = query.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].numel() // query.in_features))
    scales = {"text_guidance_scale": float(text_scale), "image_guidance_scale": float(image_scale)}
    tokens_of(model, processor, edit_context(), **scales)
    hook.remove()
    length = processor.guidance_contexts([edit_context()])["input_ids"].shape[1]
    assert seen == [rows * length, *[rows] * 15], "one cache for all, a token a step"


def test_the_context_without_words_keeps_the_source(processor):
    contexts = processor.guidance_contexts([edit_context()])
    marks = processor.markers
    full, text_free, nothing = contexts["input_ids"][contexts["branches"][0]]
    assert torch.equal(full[:41], text_free[:41]) and (text_free[41:-1] == marks.pad).all()
    assert nothing[0] == marks.bos and (nothing[1:-1] == marks.pad).all() and nothing[-1] == marks.begin
    drawing = processor.guidance_contexts([Sample([TextSegment("a circle")])] * 3)
    assert drawing["branches"].tolist() == [[0, 1, 1]] * 3 and len(drawing["input_ids"]) == 2


def test_callback_and_pixels(model, processor):
    calls = []
    request = JanusImageSettings(height=16, width=32)
    contexts = processor.guidance_contexts([edit_context()])
    (pixels,) = model.generate_images([request], **contexts, callback_on_step_end=calls.append)
    assert [(call.number, call.total) for call in calls] == [(step, 16) for step in range(1, 17)]
    assert torch.equal(calls[-1].preview()[0], pixels)
    whole = model.decode_tokens(calls[-1].latents[0][None])[0]
    assert torch.equal(pixels, whole[:, 8:24]) and pixels.dtype == torch.float32


def test_temperature_and_chances(model, processor):
    """Over many seeds the first token is drawn as often as its probability says."""
    contexts = processor.guidance_contexts([Sample([TextSegment("a red circle")])] * 400)
    requests = [JanusImageSettings(32, 32, seed=seed, text_guidance_scale=1.0) for seed in range(400)]
    steps = []
    model.generate_tokens(requests, **contexts, callback_on_step_end=steps.append)
    counts = torch.bincount(torch.cat(steps[0].latents), minlength=48) / 400
    inputs = processor.guidance_contexts([Sample([TextSegment("a red circle")])])
    embeds = model.embed_context(inputs["input_ids"], inputs["token_type_ids"])[:1]
    with torch.no_grad():
        hidden = model.model.language_model(inputs_embeds=embeds, past_key_values=DynamicCache()).last_hidden_state
        likely = model.model.generation_head(hidden[0, -1]).softmax(-1)
    assert (counts - likely).abs().max() < 0.08 and (counts > 0).sum() > 4


# ---- through the pipeline


def test_the_three_verbs(pipe):
    source = picture(64, 48, 1)
    edited = pipe.edit(source, "paint the circle red", seed=1)
    assert edited.size == (32, 24), "what the source takes of the square"
    many = pipe.edit([source, picture(20, 60, 2)], "paint the circle red", seed=[1, 2])
    assert [each.size for each in many] == [(32, 24), (11, 32)]
    # the tokens are equal (above); a decoder may round differently for another number of images
    assert np.abs(np.asarray(many[0], int) - np.asarray(edited, int)).max() <= 1
    assert pipe.generate("a red circle", seed=0).size == (32, 32)
    assert isinstance(pipe.answer(source, "what is this", max_new_tokens=3), str)
    questions = ["what colour is this", "is this a square"]
    alone = [pipe.answer(source, question, max_new_tokens=5) for question in questions]
    assert pipe.answer(source, questions, max_new_tokens=5) == alone


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda pipe: pipe.edit(picture(), " "), "The instruction is empty"),
        (lambda pipe: pipe.edit(picture(100, 4), "a"), "is 100 x 4 pixels, which Janus-Pro would scale to 32 x 1"),
        (lambda pipe: pipe.edit(picture(), "a", source_views=["vit"]), "no view 'vit': JanusProcessor"),
        (lambda pipe: pipe.edit(picture(), "a", num_timesteps=5), "There is no setting num_timesteps: choose from"),
        (lambda pipe: pipe.edit(picture(), "a", size=(64, 64)), "64 x 64 pixels cannot be drawn: Janus-Pro draws 32"),
        (lambda pipe: pipe.edit(picture(), "a", text_guidance_scale=0.5), "text_guidance_scale is 0.5, but guidance"),
        (lambda pipe: pipe.edit(picture(), "a", temperature=-1), "temperature is -1: use 0 for the most likely"),
        (lambda pipe: pipe.generate([]), "There is nothing to do"),
        (lambda pipe: pipe.answer(b"no picture", "a"), "is not an image that can be read"),
    ],
)
def test_bad_requests(pipe, act, sentence):
    with pytest.raises(ValueError) as refused:
        act(pipe)
    assert sentence in str(refused.value) and "\n" not in str(refused.value)
