"""Answers, edits and drawings: a request's result is its own, whatever it is batched with and however it is cached."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import WORDS, picture, tiny_bagel, tiny_bagel_processor
from transformers import DynamicCache, StaticCache, StoppingCriteria

from uniedit_hf.models.bagel.flow import guide, schedule
from uniedit_hf.models.bagel.generation_bagel import ImageSettings
from uniedit_hf.pipeline import UniEditPipeline
from uniedit_hf.segments import ImageSegment, Sample, TextSegment


STEPS = 4


@pytest.fixture(scope="module")
def model():
    return tiny_bagel()


@pytest.fixture(scope="module")
def processor():
    return tiny_bagel_processor()


@pytest.fixture(scope="module")
def pipe(model, processor):
    return UniEditPipeline(model, processor, batch_size=7)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def assert_same_pictures(found: list[Image.Image], expected: list[Image.Image]) -> None:
    """8-bit pixels: a value that lies between two may be rounded either way."""
    for one, other in zip(found, expected, strict=True):
        assert one.size == other.size
        difference = np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int))
        assert difference.max() <= 1 and (difference > 0).mean() < 0.01


# ---- fifty requests


class LatentsOfRequests:
    """A callback that keeps the last latents of every request, in the order of the requests."""

    def __init__(self):
        self.latents: list[torch.Tensor] = []

    def __call__(self, pipe: UniEditPipeline, index: int, timestep: torch.Tensor, shown: dict) -> None:
        if index + 1 == shown["num_steps"]:
            self.latents += shown["latents"]


def draw_text(draws: random.Random) -> str:
    return " ".join(draws.choices(WORDS, k=draws.randint(1, 9)))


def draw_picture(draws: random.Random) -> Image.Image:
    return picture(draws.randint(20, 200), draws.randint(20, 200), draws.randint(0, 99))


def draw_settings(draws: random.Random) -> dict:
    return {
        "seed": draws.randint(0, 2**31),
        "text_guidance_scale": draws.choice([1.0, 2.5, 4.0]),
        "guidance_interval": draws.choice([(0.0, 1.0), (0.4, 1.0), (0.2, 0.8)]),
        "guidance_renorm": draws.choice(["global", "channel", "text_channel"]),
        "guidance_renorm_min": draws.choice([0.0, 0.3]),
        "timestep_shift": draws.choice([1.0, 3.0]),
    }


def draw_size(draws: random.Random) -> tuple[int, int]:
    return 16 * draws.randint(1, 6), 16 * draws.randint(1, 6)


def as_columns(requests: list[dict]) -> dict[str, list]:
    return {name: [request[name] for request in requests] for name in requests[0]}


def assert_batches_equal_singles(verb, requests: list[dict], names: tuple[str, ...]) -> None:
    """`names` are the arguments that come by position; the rest are settings."""
    many, single = LatentsOfRequests(), LatentsOfRequests()
    columns = as_columns(requests)
    places = [columns.pop(name) for name in names]
    together = verb(*places, **columns, num_timesteps=STEPS, callback_on_step_end=many)
    alone = []
    for request in requests:
        settings = {name: value for name, value in request.items() if name not in names}
        place = (request[name] for name in names)
        alone.append(verb(*place, **settings, num_timesteps=STEPS, callback_on_step_end=single))
    assert len(many.latents) == len(single.latents) == len(requests)
    assert max(relative_error(*pair) for pair in zip(many.latents, single.latents)) < 1e-4
    assert_same_pictures(together, alone)


def test_seventeen_edits(pipe):
    draws = random.Random(1)
    requests = [
        {"image": draw_picture(draws), "instruction": draw_text(draws), **draw_settings(draws)}
        | {"image_guidance_scale": draws.choice([1.0, 1.5, 2.0])}
        for _ in range(17)
    ]
    assert_batches_equal_singles(pipe.edit, requests, ("image", "instruction"))


def test_sixteen_drawings(pipe):
    draws = random.Random(2)
    requests = [
        {"prompt": draw_text(draws), "size": draw_size(draws)}
        | draw_settings(draws)
        | {"image_guidance_scale": draws.choice([1.0, 1.5])}
        for _ in range(16)
    ]
    assert_batches_equal_singles(pipe.generate, requests, ("prompt",))


def test_seventeen_answers(pipe):
    draws = random.Random(3)
    images = [draw_picture(draws) if draws.random() < 0.8 else None for _ in range(17)]
    questions = [draw_text(draws) for _ in images]
    together = pipe.answer(images, questions, max_new_tokens=12)
    alone = [pipe.answer(image, question, max_new_tokens=12) for image, question in zip(images, questions)]
    assert together == alone
    assert len(set(together)) > 10 and any(together)  # the questions are told apart


def test_one_value_serves_all(pipe):
    image = picture(64, 48)
    texts = ["paint the circle red", "make it bigger"]
    found = pipe.edit(image, texts, seed=3, num_timesteps=STEPS)
    assert_same_pictures(found, [pipe.edit(image, text, seed=3, num_timesteps=STEPS) for text in texts])
    assert pipe.answer(image, texts, max_new_tokens=5) == [pipe.answer(image, t, max_new_tokens=5) for t in texts]


def test_seeds(pipe):
    def draw(seed):
        return np.asarray(pipe.generate("a red square", size=(32, 32), seed=seed, num_timesteps=STEPS))

    assert (draw(5) == draw(5)).all()
    assert (draw(5) != draw(6)).any()
    assert (draw(None) != draw(None)).any()


def test_what_a_request_says_matters(pipe):
    """Otherwise the comparisons above would prove nothing."""

    def draw(seed=1, instruction="paint the circle red", **settings):
        last = LatentsOfRequests()
        pipe.edit(
            picture(64, 48, seed), instruction, seed=0, num_timesteps=STEPS, callback_on_step_end=last, **settings
        )
        return last.latents[0]

    plain = draw()
    for other in (
        draw(seed=2),
        draw(instruction="make it blue"),
        draw(text_guidance_scale=1.0),
        draw(image_guidance_scale=1.0),
        draw(guidance_renorm="global"),
        draw(guidance_interval=(0.9, 1.0)),
        draw(timestep_shift=1.0),
        draw(source_views=("vit",)),
    ):
        assert relative_error(other, plain) > 1e-3


# ---- contexts of many turns and images


def turns() -> list[Sample]:
    first, second = picture(64, 48, 1), picture(40, 72, 2)
    return [
        Sample([ImageSegment(first, "vit"), TextSegment("what colour is this")]),
        Sample([TextSegment("make it")]),
        Sample(
            [
                ImageSegment(first, "vae"),
                ImageSegment(first, "vit"),
                TextSegment("is this a red circle"),
                ImageSegment(second, "vit"),
                TextSegment("and this"),
                TextSegment("yes"),
            ]
        ),
        Sample(
            [TextSegment("a square"), ImageSegment(second, "vae"), TextSegment("bigger"), ImageSegment(first, "vit")]
        ),
    ]


def test_drawing_from_many_turns(model, processor):
    requests = [ImageSettings(48, 64, seed=i, num_timesteps=STEPS, image_guidance_scale=1.5) for i in range(4)]
    contexts = processor.guidance_contexts(turns())
    together = model.generate_latents(requests, **contexts)
    for sample, request, latents in zip(turns(), requests, together):
        (alone,) = model.generate_latents([request], **processor.guidance_contexts([sample]))
        assert relative_error(latents, alone) < 1e-4


def test_guidance_contexts_by_hand(model, processor):
    """The three branches of a request, each drawn without guidance for a step, make its guided step."""
    image = picture(64, 48, 1)
    full = Sample([ImageSegment(image, "vae"), ImageSegment(image, "vit"), TextSegment("paint it")])
    branches = [full, Sample(full.segments[:2]), Sample(full.segments[2:])]
    settings = {"height": 48, "width": 64, "num_timesteps": 2, "seed": 4}
    single = ImageSettings(**settings, text_guidance_scale=1.0)
    ends = [model.generate_latents([single], **processor.guidance_contexts([each]))[0] for each in branches]
    start = torch.randn(12, 64, generator=torch.Generator().manual_seed(4))
    guided = guide(*(start - end for end in ends), text_scale=4.0, image_scale=2.0, renorm="global")
    request = ImageSettings(**settings, image_guidance_scale=2.0, guidance_interval=(0.0, 1.0))
    (found,) = model.generate_latents([request], **processor.guidance_contexts([full]))
    assert relative_error(found, start - guided) < 1e-4


class RowsSeen:
    """How many rows each pass of the decoder took: of contexts, then of images of 32 x 32 pixels being drawn."""

    def __init__(self, model):
        self.rows: list[int] = []
        self.hooks = [
            module.register_forward_pre_hook(lambda _, arguments, of=of: self.rows.append(len(arguments[0]) // of))
            for module, of in ((model.model.language_model, 1), (model.model.llm2vae, 4))
        ]

    def __enter__(self):
        return self.rows

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()


@pytest.mark.parametrize(
    ("segments", "settings", "rows"),
    [
        # text to image: the context without images is the context itself
        (["text"], {}, [2, 2, 2, 2]),
        (["text"], {"image_guidance_scale": 1.5}, [2, 2, 2, 2]),
        (["text"], {"text_guidance_scale": 1.0}, [2, 1, 1, 1]),
        (["text"], {"guidance_interval": (0.9, 1.0)}, [2, 2, 1, 1]),
        # editing: three contexts where both guide
        (["image", "text"], {"image_guidance_scale": 2.0}, [3, 3, 3, 3]),
        (["image", "text"], {}, [3, 2, 2, 2]),
        (["image", "text"], {"text_guidance_scale": 1.0}, [3, 1, 1, 1]),
        # an image alone: the context without its text is the context itself
        (["image"], {"image_guidance_scale": 2.0}, [2, 2, 2, 2]),
    ],
)
def test_equal_branches_are_computed_once(model, processor, segments, settings, rows):
    parts = {"text": TextSegment("a red circle"), "image": ImageSegment(picture(32, 32), "vit")}
    request = ImageSettings(32, 32, num_timesteps=STEPS, **{"guidance_interval": (0.0, 1.0)} | settings)
    contexts = processor.guidance_contexts([Sample([parts[name] for name in segments])])
    with RowsSeen(model) as seen:
        model.generate_latents([request], **contexts)
    assert seen == rows


def test_requests_share_equal_contexts(model, processor):
    """Four seeds of one prompt: its two contexts are encoded once."""
    requests = [ImageSettings(32, 32, seed=seed, num_timesteps=STEPS, guidance_interval=(0, 1)) for seed in range(4)]
    contexts = processor.guidance_contexts([Sample([TextSegment("a red circle")])] * 4)
    with RowsSeen(model) as seen:
        model.generate_latents(requests, **contexts)
    assert seen == [2, 8, 8, 8]


def test_callback_and_start(model, processor):
    contexts = processor.guidance_contexts([Sample([TextSegment("a red circle")])])
    request = ImageSettings(32, 48, seed=9, num_timesteps=STEPS)
    calls = []
    (latents,) = model.generate_latents([request], **contexts, callback_on_step_end=calls.append)
    assert [(call.number, call.total) for call in calls] == [(1, 3), (2, 3), (3, 3)]
    assert torch.equal(calls[-1].latents[0], latents) and latents.shape == (6, 64) and latents.dtype == torch.float32
    noise = torch.randn(6, 64, generator=torch.Generator().manual_seed(9))
    (again,) = model.generate_latents([request], **contexts, noise=[noise])
    assert torch.equal(again, latents)
    (pixels,) = model.generate_images([request], **contexts)
    assert pixels.shape == (3, 32, 48)


def test_schedule():
    times = schedule(50, 3.0)
    assert len(times) == 50 and times[0] == 1 and times[-1] == 0
    torch.testing.assert_close(schedule(3, 3.0), torch.tensor([1.0, 0.75, 0.0]))


# ---- generate()


def written(model, processor, samples, **options) -> tuple[list[list[int]], torch.Tensor]:
    """Tokens behind the contexts, and the logits they were chosen from (rows, tokens, vocabulary)."""
    inputs = processor(samples)
    options = {"max_new_tokens": 8, "do_sample": False} | options
    output = model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)
    return output.sequences[:, inputs["input_ids"].shape[1] :].tolist(), torch.stack(output.logits, dim=1)


def test_rows_of_a_batch_are_independent(model, processor):
    tokens, logits = written(model, processor, turns())
    for row, sample in enumerate(turns()):
        own, own_logits = written(model, processor, [sample])
        assert tokens[row][: len(own[0])] == own[0]
        assert relative_error(logits[row, : own_logits.shape[1]], own_logits[0]) < 1e-4


@pytest.mark.parametrize(
    ("options", "cache"),
    [
        ({}, DynamicCache),
        ({"cache_implementation": "static"}, StaticCache),
    ],
)
def test_caches(model, processor, options, cache):
    expected, expected_logits = written(model, processor, turns())
    found, logits = written(model, processor, turns(), **options)
    assert found == expected and relative_error(logits, expected_logits) < 1e-4
    output = model.generate(**processor(turns()), **options, max_new_tokens=2, return_dict_in_generate=True)
    assert isinstance(output.past_key_values, cache)


def test_a_static_cache_of_ones_own(model, processor):
    expected, _ = written(model, processor, turns())
    inputs = processor(turns())
    cache = StaticCache(config=model.config.text_config, max_cache_len=inputs["input_ids"].shape[1] + 40)
    assert written(model, processor, turns(), past_key_values=cache)[0] == expected


def test_without_a_cache(model, processor):
    """Text alone; with images transformers always caches, as for any model that is given embeddings."""
    samples = [Sample([TextSegment("make it bigger")]), Sample([TextSegment("what is this red square")])]
    expected, expected_logits = written(model, processor, samples)
    lengths = []
    query = model.model.language_model.layers[0].self_attn.q_proj
    hook = query.register_forward_pre_hook(lambda _, arguments: lengths.append(len(arguments[0])))
    found, logits = written(model, processor, samples, use_cache=False)
    hook.remove()
    assert found == expected and relative_error(logits, expected_logits) < 1e-4
    # the first pass leaves the padding out; the others take all of both rows
    assert [after - before for before, after in zip(lengths[1:], lengths[2:])] == [2] * 6 and len(lengths) == 8


@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
def test_attention_implementations(model, processor, implementation):
    expected, expected_logits = written(model, processor, turns())
    model.set_attn_implementation(implementation)
    found, logits = written(model, processor, turns())
    model.set_attn_implementation("sdpa")
    assert found == expected and relative_error(logits, expected_logits) < 1e-4


def test_against_a_plain_loop(model, processor):
    """Greedy by whole forwards over prompts that grow by a token."""
    context = [Sample([ImageSegment(picture(64, 48, 1), "vit"), TextSegment("what colour is this")])]
    expected, _ = written(model, processor, context)
    inputs = dict(processor(context))
    ids: list[int] = []
    with torch.no_grad():
        while len(ids) < 8:
            token = model(**inputs, use_cache=False).logits[0, -1].argmax()
            ids.append(token.item())
            ones = torch.ones(1, 1, dtype=torch.long)
            last = {name: inputs[name][:, -1:] for name in ("position_ids", "split_ids")}
            more = {"input_ids": token.view(1, 1), "attention_mask": ones, "token_type_ids": ones}
            more |= {"sample_ids": 0 * ones, "split_kinds": 0 * ones}
            more |= {"position_ids": last["position_ids"] + 1, "split_ids": last["split_ids"]}
            inputs |= {name: torch.cat([inputs[name], value], dim=1) for name, value in more.items()}
    assert ids == expected[0]


def test_sampling_and_return_sequences(model, processor):
    def sample(seed: int, count: int = 3) -> list[list[int]]:
        torch.manual_seed(seed)
        options = {"do_sample": True, "temperature": 1.5, "top_k": 10, "num_return_sequences": count}
        return written(model, processor, turns()[:2], **options)[0]

    first = sample(0)
    assert len(first) == 6 and sample(0) == first and sample(1) != first
    assert len({tuple(tokens) for tokens in first}) > 2


def test_beams(model, processor):
    together, _ = written(model, processor, turns(), num_beams=3)
    alone = [written(model, processor, [sample], num_beams=3)[0][0] for sample in turns()]
    for row, own in zip(together, alone):
        assert row[: len(own)] == own


class StopAtSecondToken(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        self.calls = getattr(self, "calls", 0) + 1
        return torch.full((len(input_ids),), self.calls == 2)


def test_stopping(model, processor):
    tokens, _ = written(model, processor, turns()[:1], stopping_criteria=[StopAtSecondToken()])
    assert len(tokens[0]) == 2
    full = written(model, processor, turns()[:1])[0][0]
    stop = full[2]
    tokens, _ = written(model, processor, turns()[:1], eos_token_id=[model.config.eos_token_id, stop])
    assert tokens[0] == full[: full.index(stop) + 1]


def test_a_row_that_has_ended_is_padded(model, processor):
    """Each row ends by itself; the rest of it is padding."""
    tokens, _ = written(model, processor, turns(), max_new_tokens=12)
    ends = {tokens[0][1], model.config.eos_token_id}
    stopped, _ = written(model, processor, turns(), max_new_tokens=12, eos_token_id=list(ends))
    lengths = set()
    for row, full in zip(stopped, tokens):
        cut = next((index + 1 for index, token in enumerate(full) if token in ends), len(full))
        assert row[:cut] == full[:cut] and set(row[cut:]) <= {model.config.pad_token_id}
        lengths.add(cut)
    assert len(lengths) > 1


def test_precomputed_latents_stand_for_pixels(model, processor):
    sample = turns()[2]
    inputs = processor([sample])
    expected = model.generate(**inputs, max_new_tokens=6)
    latents = model.encode_images(inputs.pop("vae_images"))
    assert torch.equal(model.generate(**inputs, latents=latents, max_new_tokens=6), expected)


# ---- packs


def test_a_pack_is_its_samples(model, processor):
    """Losses of a pack are the sums of its samples' own, drawn by the same seeds."""
    first, second = picture(64, 48, 1), picture(40, 72, 2)
    samples = [
        Sample([ImageSegment(first, "vit"), TextSegment("paint it"), ImageSegment(second, "vae", loss=True)], "edit"),
        Sample([TextSegment("a circle"), ImageSegment(first, "vae", loss=True)], "drawing"),
        Sample([ImageSegment(second, "vit"), TextSegment("what"), TextSegment("a red circle", loss=True)], "answer"),
        Sample([TextSegment("red and blue", loss=True)], "text"),
        Sample(
            [ImageSegment(first, "vae"), ImageSegment(second, "vae", loss=True), TextSegment("yes", loss=True)], "b"
        ),
    ]
    with torch.no_grad():
        together = model(**processor.pack(samples, seed=3, epoch=1, posterior="sample"))
        alone = [model(**processor.pack([sample], seed=3, epoch=1, posterior="sample")) for sample in samples]
    for name in ("text_sum", "image_sum"):
        torch.testing.assert_close(together[name], sum(each[name] for each in alone), rtol=1e-5, atol=1e-5)
    for name in ("text_count", "image_count"):
        assert together[name] == sum(each[name] for each in alone)
    assert together.text_count == 4 + 4 + 2  # each answer's words and its end
    assert together.image_count == sum(len(noise) for noise in processor.pack(samples)["noise"]) - 12


def test_images_of_a_batch_are_independent(model):
    """Images of one size share a batch of the autoencoder, others do not; neither matters."""
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.randn(3, *size, generator=generator) for size in [(32, 48), (48, 32), (32, 48), (64, 64)]]
    noise = [torch.randn(16, x.shape[1] // 8, x.shape[2] // 8, generator=generator) for x in pictures]
    for given in (None, noise):
        together = model.encode_images(pictures, given)
        for index, picture_ in enumerate(pictures):
            (alone,) = model.encode_images([picture_], given and [given[index]])
            assert relative_error(together[index], alone) < 1e-5
    assert relative_error(model.encode_images(pictures)[0], model.encode_images(pictures, noise)[0]) > 1e-3
