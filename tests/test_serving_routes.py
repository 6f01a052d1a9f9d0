"""The server through the official `openai` client, which draws, edits, asks and streams, against the pipeline."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_models import FAMILIES, picture, tiny_bagel, tiny_bagel_config, tiny_bagel_processor
from tokenizers import AddedToken


pytest.importorskip("openai", reason="the official client is in the extra synthesis")
pytest.importorskip("fastapi", reason="the server needs the extra serving")

import httpx2  # noqa: E402
from openai import BadRequestError, NotFoundError  # noqa: E402
from serving_parts import FAST, data_url, opened, png, same, served, spelling_pipe, tiny_pipe  # noqa: E402

from uniedit_hf import UniEditPipeline  # noqa: E402
from uniedit_hf.thinking import CLOSE  # noqa: E402


SIZES = {"bagel": "64x48", "janus": "32x24"}
PROMPT, INSTRUCTION, QUESTION = "a red circle", "paint the circle red", "what is this"
SOURCE = picture(64, 48)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def server(family):
    with served(tiny_pipe(family)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return server.client()


@pytest.fixture(scope="module")
def pipe(family) -> UniEditPipeline:
    """Another pipeline of the same weights, to compare with."""
    return tiny_pipe(family)


def size_of(family: str) -> tuple[int, int]:
    return tuple(map(int, SIZES[family].split("x")))


def asked(*parts) -> list[dict]:
    content = [{"type": "text", "text": each} if isinstance(each, str) else shown(each) for each in parts]
    return [{"role": "user", "content": content}]


def shown(image) -> dict:
    return {"type": "image_url", "image_url": {"url": data_url(image)}}


# ---- drawing


def test_drawings_are_the_pipelines_own(client, pipe, family):
    made = client.images.generate(
        model="tiny", prompt=PROMPT, n=3, size=SIZES[family], extra_body={"seed": 5, **FAST[family]}
    )
    expected = pipe.generate([PROMPT] * 3, size=size_of(family), seed=[5, 6, 7], **FAST[family])
    assert [same(opened(each.b64_json), image) for each, image in zip(made.data, expected)] == [True] * 3
    assert [each.seed for each in made.data] == [5, 6, 7]
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens > 0


def test_a_seed_is_drawn_and_told(client, family):
    options = {"model": "tiny", "prompt": PROMPT, "size": SIZES[family]}
    first, second = (client.images.generate(**options, extra_body=FAST[family]).data[0] for _ in range(2))
    assert first.seed != second.seed and first.b64_json != second.b64_json
    again = client.images.generate(**options, extra_body={"seed": first.seed, **FAST[family]}).data[0]
    assert (opened(again.b64_json) == opened(first.b64_json)).all()


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_formats(client, pipe, family, kind):
    made = client.images.generate(
        model="tiny", prompt=PROMPT, size=SIZES[family], output_format=kind, output_compression=95,
        extra_body={"seed": 5, **FAST[family]},
    )  # fmt: skip
    expected = pipe.generate(PROMPT, size=size_of(family), seed=5, **FAST[family])
    found = opened(made.data[0].b64_json)
    assert found.shape == np.asarray(expected).shape and made.output_format == kind


# ---- editing


def test_edits_by_form_and_by_json(server, client, pipe, family):
    settings = {"seed": 3, "text_guidance_scale": 2.5, "image_guidance_scale": 1.5, **FAST[family]}
    expected = pipe.edit(SOURCE, INSTRUCTION, **settings)
    file = ("source.png", png(SOURCE), "image/png")
    made = client.images.edit(model="tiny", image=file, prompt=INSTRUCTION, extra_body=settings)
    assert same(opened(made.data[0].b64_json), expected)
    made = client.images.edit(model="tiny", image=[file], prompt=INSTRUCTION, n=2, extra_body=settings)
    assert same(opened(made.data[0].b64_json), expected) and made.data[1].seed == 4
    for image in ({"image": data_url(SOURCE)}, {"images": [{"image_url": data_url(SOURCE)}]}):
        body = {"model": "tiny", "prompt": INSTRUCTION, **image, **settings}
        made = httpx2.post(f"{server.address}/v1/images/edits", json=body, timeout=60).json()
        assert same(opened(made["data"][0]["b64_json"]), expected)
    other = pipe.edit(SOURCE, INSTRUCTION, **settings | {"text_guidance_scale": 1.0})
    assert not same(opened(made["data"][0]["b64_json"]), other), "the settings bite"


def test_settings_of_bagel_as_extra_fields():
    pipe, settings = tiny_pipe(), {"seed": 3, "num_timesteps": 5, "timestep_shift": 2.0, "guidance_renorm": "channel"}
    settings |= {"guidance_interval": [0.1, 0.9], "guidance_renorm_min": 0.2, "source_views": ["vae"]}
    expected = tiny_pipe().edit(SOURCE, INSTRUCTION, **settings | {"guidance_interval": (0.1, 0.9)})
    with served(pipe) as server:
        file = ("source.png", png(SOURCE), "image/png")
        made = server.client().images.edit(model="tiny", image=file, prompt=INSTRUCTION, extra_body=settings)
    assert same(opened(made.data[0].b64_json), expected)


def thinking_pipe() -> UniEditPipeline:
    """A model whose tokenizer knows the closing tag, as a word."""
    processor = tiny_bagel_processor()
    processor.tokenizer.add_tokens([AddedToken(CLOSE, normalized=False)])
    text = tiny_bagel_config().text_config.to_dict() | {"vocab_size": 40}
    return UniEditPipeline(tiny_bagel(text_config=text), processor)


def test_thinking_before_drawing_and_answering():
    pipe = thinking_pipe()
    thoughts = pipe.think(SOURCE, INSTRUCTION, max_new_tokens=6)
    drawn = pipe.edit(SOURCE, INSTRUCTION, thoughts=thoughts, seed=3, num_timesteps=4)
    answer = pipe.answer(SOURCE, QUESTION, thinking_budget=5, max_new_tokens=7)
    with served(thinking_pipe()) as server:
        client, file = server.client(), ("source.png", png(SOURCE), "image/png")
        settings = {"seed": 3, "num_timesteps": 4, "thinking_budget": 6}
        made = client.images.edit(model="tiny", image=file, prompt=INSTRUCTION, extra_body=settings).data[0]
        question = {"model": "tiny", "messages": asked(SOURCE, QUESTION), "max_tokens": 7}
        found = client.chat.completions.create(**question, extra_body={"thinking_budget": 5}).choices[0].message
        pieces = [each.choices[0].delta for each in client.chat.completions.create(
            **question, extra_body={"thinking_budget": 5}, stream=True
        )]  # fmt: skip
    assert same(opened(made.b64_json), drawn) and made.thoughts == thoughts
    assert found.content == answer and found.reasoning_content
    assert "".join(each.content or "" for each in pieces) == answer
    told = "".join(getattr(each, "reasoning_content", None) or "" for each in pieces)
    assert told.strip() == found.reasoning_content


# ---- asking


def test_answers_keep_the_order_of_texts_and_images(client, pipe):
    one, two = picture(64, 48), picture(48, 64, seed=1)
    first = client.chat.completions.create(model="tiny", messages=asked(one, QUESTION), max_tokens=8)
    assert first.choices[0].message.content == pipe.answer(one, QUESTION, max_new_tokens=8)
    turns = [
        {"role": "system", "content": "make it"},
        *asked("is this red", one, "and this", two),
        {"role": "assistant", "content": "no"},
        *asked("then what"),
    ]
    local = [
        {"role": "system", "content": "make it"},
        {"role": "user", "content": [
            {"type": "text", "text": "is this red"}, {"type": "image", "image": one},
            {"type": "text", "text": "and this"}, {"type": "image", "image": two},
        ]},
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": "then what"},
    ]  # fmt: skip
    found = client.chat.completions.create(model="tiny", messages=turns, max_tokens=8).choices[0]
    assert found.message.content == pipe.chat(local, max_new_tokens=8)
    moved = client.chat.completions.create(model="tiny", messages=[*turns[2:], turns[3]], max_tokens=8).choices[0]
    assert moved.finish_reason == "length" and found.finish_reason in ("length", "stop")


def test_answers_stream(client, pipe):
    stream = client.chat.completions.create(
        model="tiny", messages=asked(SOURCE, QUESTION), max_tokens=8, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    *chunks, usage = list(stream)
    told = [each.choices[0].delta.content for each in chunks if each.choices[0].delta.content]
    assert "".join(told) == pipe.answer(SOURCE, QUESTION, max_new_tokens=8) and len(told) > 2
    assert chunks[-1].choices[0].finish_reason == "length" and usage.usage.completion_tokens == 8


def test_drawings_stream(client, pipe, family):
    settings = {"bagel": {"num_timesteps": 7}, "janus": {}}[family]
    events = list(
        client.images.generate(
            model="tiny", prompt=PROMPT, size=SIZES[family], stream=True, partial_images=2,
            extra_body={"seed": 5, **settings},
        )
    )  # fmt: skip
    assert [each.type.rpartition(".")[2] for each in events] == ["partial_image", "partial_image", "completed"]
    expected = pipe.generate(PROMPT, size=size_of(family), seed=5, **settings)
    assert same(opened(events[-1].b64_json), expected)
    assert not same(opened(events[0].b64_json), expected) and events[1].partial_image_index == 1
    file = ("source.png", png(SOURCE), "image/png")
    (edit,) = client.images.edit(
        model="tiny", image=file, prompt=INSTRUCTION, stream=True, extra_body={"seed": 5, **settings}
    )
    assert edit.type == "image_edit.completed"
    assert same(opened(edit.b64_json), pipe.edit(SOURCE, INSTRUCTION, seed=5, **settings))


def test_stop_texts_end_an_answer(client, pipe):
    whole = pipe.answer(SOURCE, QUESTION, max_new_tokens=24)
    words = whole.split()
    stop = words[3]
    expected = whole[: whole.find(stop)]
    options = {"model": "tiny", "messages": asked(SOURCE, QUESTION), "max_tokens": 24, "stop": [stop, "never"]}
    found = client.chat.completions.create(**options).choices[0]
    assert (found.message.content, found.finish_reason) == (expected, "stop")
    pieces = list(client.chat.completions.create(**options, stream=True))
    assert "".join(each.choices[0].delta.content or "" for each in pieces) == expected
    assert pieces[-1].choices[0].finish_reason == "stop"


def test_draws_of_words_follow_seed_and_temperature(client):
    def answer(seed, **options):
        made = client.chat.completions.create(
            model="tiny", messages=asked(SOURCE, QUESTION), max_tokens=12, seed=seed, **options
        )
        return made.choices[0].message.content

    drawn = [answer(seed, temperature=2.0) for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1] and len(set(drawn)) == 3
    assert answer(1, temperature=2.0, top_p=1e-6) == answer(2, temperature=0.0), "the likeliest token alone"


@pytest.fixture(scope="module")
def spelling():
    return spelling_pipe()


SCHEMA = {
    "type": "object",
    "properties": {
        "quality": {"enum": [1, 2, 3]},
        "premise": {"type": "boolean"},
        "color": {"type": "string", "pattern": "^(red|blue)$"},
    },
    "required": ["quality", "premise", "color"],
    "additionalProperties": False,
}


def test_answers_match_a_json_schema(spelling):
    form = {"type": "json_schema", "json_schema": {"name": "Grade", "schema": SCHEMA, "strict": True}}
    with served(spelling) as server:
        client = server.client()
        found = set()
        for seed in range(6):
            made = client.chat.completions.create(
                model="tiny", messages=asked(SOURCE, QUESTION), response_format=form, max_tokens=120,
                temperature=3.0, seed=seed,
            )  # fmt: skip
            answer = json.loads(made.choices[0].message.content)
            assert made.choices[0].finish_reason == "stop"
            assert set(answer) == set(SCHEMA["required"]) and answer["quality"] in (1, 2, 3)
            assert isinstance(answer["premise"], bool) and answer["color"] in ("red", "blue")
            found.add(json.dumps(answer))
        assert len(found) > 1
        greedy = client.chat.completions.create(
            model="tiny", messages=asked(QUESTION), response_format=form, max_tokens=200
        )
        assert set(json.loads(greedy.choices[0].message.content)) == set(SCHEMA["required"])
        with pytest.raises(BadRequestError, match="JSON schema cannot be followed: Invalid type: nope"):
            bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nope"}}}
            client.chat.completions.create(model="tiny", messages=asked(QUESTION), response_format=bad)


def test_a_model_that_cannot_spell_json_says_so(client):
    with pytest.raises(BadRequestError, match="no tokens for the signs of JSON"):
        client.chat.completions.create(model="tiny", messages=asked(QUESTION), response_format={"type": "json_object"})


# ---- status


def test_models_health_and_metrics(server, client):
    assert [each.id for each in client.models.list()] == ["tiny"] and client.models.retrieve("tiny").id == "tiny"
    for call in (
        lambda: client.models.retrieve("other"),
        lambda: client.chat.completions.create(model="other", messages=asked(QUESTION)),
        lambda: client.images.generate(model="other", prompt=PROMPT),
    ):
        with pytest.raises(NotFoundError, match="no such model") as error:
            call()
        assert error.value.code == "model_not_found"
    assert httpx2.get(f"{server.address}/health").json() == {"status": "ok"}
    client.chat.completions.create(model="tiny", messages=asked(QUESTION), max_tokens=2)
    text = httpx2.get(f"{server.address}/metrics").text
    assert 'uniedit_requests_total{route="/v1/chat/completions",status="200"}' in text
    assert "uniedit_jobs_waiting 0.0" in text and 'uniedit_batch_size_count{verb="chat"}' in text
    described = httpx2.get(f"{server.address}/openapi.json").json()["paths"]
    assert {"/v1/images/generations", "/v1/images/edits", "/v1/chat/completions", "/health"} <= set(described)
