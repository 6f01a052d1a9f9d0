"""Bad input gives one clear sentence before anything is drawn, and names which request it was."""

from __future__ import annotations

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from tiny_models import picture, tiny_bagel, tiny_bagel_processor

from uniedit_hf.pipeline import UniEditPipeline


FAST = {"num_timesteps": 2, "seed": 0}


@pytest.fixture(scope="module")
def pipe() -> UniEditPipeline:
    return UniEditPipeline(tiny_bagel(), tiny_bagel_processor(), batch_size=2)


@pytest.fixture
def drawn(pipe, monkeypatch) -> list[int]:
    """How many requests each batch drew."""
    counts: list[int] = []
    draw = type(pipe.model).generate_images

    def counting(model, settings, *arguments, **options):
        counts.append(len(settings))
        return draw(model, settings, *arguments, **options)

    monkeypatch.setattr(type(pipe.model), "generate_images", counting)
    return counts


def assert_one_sentence(error: pytest.ExceptionInfo) -> None:
    text = str(error.value)
    assert "\n" not in text and text.rstrip(".").count(". ") <= 1 and len(text) < 400


# ---- texts


@pytest.mark.parametrize(
    "ask",
    [
        lambda pipe, text: pipe.edit(picture(32, 32), text, **FAST),
        lambda pipe, text: pipe.generate(["a circle", text], **FAST),
        lambda pipe, text: pipe.answer(None, text),
        lambda pipe, text: pipe.think(None, text),
        lambda pipe, text: pipe.chat([{"role": "user", "content": text}]),
        lambda pipe, text: pipe.generate("a circle", thoughts=text, **FAST),
        lambda pipe, text: pipe.processor(text=text),
    ],
)
def test_half_a_character(pipe, drawn, ask):
    """Tokenizers raise a TypeError about their own types."""
    with pytest.raises(ValueError, match=r"has half a character \(a lone surrogate\): use valid Unicode") as error:
        ask(pipe, "paint \ud83d it")
    assert_one_sentence(error)
    assert not drawn


# ---- images


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def header_bomb() -> bytes:
    """A PNG of a few bytes whose header says 50,000 x 50,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


BAD_PICTURES = {
    "truncated": (png(picture(200, 200))[:-500], "cannot be read"),
    "header bomb": (header_bomb(), "is larger than the limit of 89,478,485 pixels"),
    "no picture": (b"hello", "is not an image"),
    "nothing": (b"", "is not an image"),
    "missing file": ("there/is/none.png", "does not exist"),
    "address": ("https://example.org/cat.png", "is an address"),
    "number": (7, "is of type int"),
    "none": (None, "is of type NoneType"),
}


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_a_bad_picture(pipe, drawn, kind):
    image, message = BAD_PICTURES[kind]
    with pytest.raises(ValueError, match=rf"^image.*{message}") as error:
        pipe.edit(image, "paint it", **FAST)
    assert_one_sentence(error)
    with pytest.raises(ValueError, match=rf"^image 3 .*{message}|^image 3.*{message}") as error:
        pipe.edit([picture()] * 3 + [image], "paint it", **FAST)
    assert_one_sentence(error)
    assert drawn == []
    if image is not None:
        with pytest.raises(ValueError, match=f"^image 1.*{message}"):
            pipe.answer([picture(), image], "what is this")


def odd_modes() -> dict[str, Image.Image]:
    colour = picture(64, 48, 1)
    grey = np.asarray(colour.convert("L"))
    see_through = colour.convert("RGBA")
    see_through.putalpha(0)
    return {
        "RGBA": see_through,
        "palette": colour.convert("P"),
        "16-bit": Image.fromarray(grey.astype(np.uint16) * 257),
        "CMYK": colour.convert("CMYK"),
        "L": colour.convert("L"),
        "1": colour.convert("1"),
    }


@pytest.mark.parametrize("mode", odd_modes())
def test_odd_modes_are_converted(pipe, mode):
    image = odd_modes()[mode]
    seen = np.asarray(pipe.processor.image_processor.fit(image, "vae")).astype(int)
    colour = picture(64, 48, 1)
    expected = {"RGBA": Image.new("RGB", (64, 48), "white"), "16-bit": colour.convert("L"), "L": colour.convert("L")}
    wanted = expected.get(mode, image.convert("RGB")).convert("RGB")
    assert np.abs(seen - np.asarray(wanted).astype(int)).max() <= 2
    assert pipe.edit(image, "paint it", **FAST).size == (64, 48)


# ---- words, lists and settings


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pipe: pipe.edit(picture(), "", **FAST), "The instruction is empty"),
        (lambda pipe: pipe.edit(picture(), " \n", **FAST), "The instruction is empty"),
        (lambda pipe: pipe.edit(picture(), None, **FAST), "The instruction is a NoneType"),
        (lambda pipe: pipe.edit(picture(), ["paint it", "", "x"], **FAST), "The instruction 1 is empty"),
        (lambda pipe: pipe.generate("", **FAST), "The prompt is empty"),
        (lambda pipe: pipe.generate(["a", "b", " "], **FAST), "The prompt 2 is empty"),
        (lambda pipe: pipe.answer(picture(), ""), "The question is empty"),
        (lambda pipe: pipe.answer(None, ["what", ""]), "The question 1 is empty"),
        (lambda pipe: pipe.edit([], [], **FAST), "nothing to do: the list for image and instruction is empty"),
        (lambda pipe: pipe.edit(picture(), [], **FAST), "There is nothing to do: the list for instruction is empty"),
        (lambda pipe: pipe.generate([], **FAST), "There is nothing to do: the list for prompt is empty"),
        (lambda pipe: pipe.answer([], []), "There is nothing to do"),
        (
            lambda pipe: pipe.edit([picture()] * 2, ["a"] * 3, **FAST),
            r"The lists differ in length \(\{'image': 2, 'instruction': 3\}\)",
        ),
        (lambda pipe: pipe.answer([None] * 2, ["a"] * 3), "The lists differ in length"),
        (lambda pipe: pipe.generate(["a"] * 2, num_timesteps=2, seed=[1]), "seed has 1 values for 2 requests"),
        (lambda pipe: pipe.generate(["a"] * 2, **FAST, text_guidance_scale=[2.0] * 3), "scale has 3 values"),
        (lambda pipe: pipe.generate("a", **FAST, size=(40, 64)), "40 x 64 pixels cannot be drawn.*multiples of 16"),
        (lambda pipe: pipe.generate("a", **FAST, size=(0, 64)), "0 x 64 pixels cannot be drawn.*for example 16 x 64"),
        (lambda pipe: pipe.generate("a", **FAST, size=(256, 64)), "256 x 64.*from 16 to 128, for example 128 x 64"),
        (lambda pipe: pipe.generate("a", **FAST | {"seed": "a"}), r"seed is 'a', but must be a whole number"),
        (lambda pipe: pipe.generate("a", **FAST | {"seed": 1.5}), r"seed is 1.5, but must be a whole number"),
        (lambda pipe: pipe.generate("a", **FAST, size=64), r"size is 64, but must be two whole numbers"),
        (lambda pipe: pipe.generate("a", **FAST, size=(64.0, 64)), r"size is \(64.0, 64\), but must be two"),
        (lambda pipe: pipe.edit(picture(), "a", **FAST, size=(64, 30)), "64 x 30 pixels cannot be drawn"),
        (lambda pipe: pipe.edit(picture(), "a", **FAST, text_guidance_scale=0.9), "text_guidance_scale is 0.9"),
        (lambda pipe: pipe.edit(picture(), "a", **FAST, image_guidance_scale=0), "image_guidance_scale is 0"),
        (lambda pipe: pipe.edit(picture(), "a", **FAST, text_guidance_scale=float("nan")), "guidance_scale is nan"),
        (lambda pipe: pipe.edit(picture(), "a", **FAST, guidance_renorm="local"), "guidance_renorm is 'local': use"),
        (lambda pipe: pipe.edit(picture(), "a", **FAST, guidance_renorm_min=2.0), "guidance_renorm_min is 2.0"),
        (lambda pipe: pipe.edit(picture(), "a", **FAST, guidance_interval=0.4), "guidance_interval is 0.4"),
        (lambda pipe: pipe.generate("a", num_timesteps=1), "num_timesteps is 1"),
        (lambda pipe: pipe.generate("a", **FAST, timestep_shift=0), "timestep_shift is 0"),
        (
            lambda pipe: pipe.generate("a", **FAST, guidance=3),
            "There is no setting guidance: choose from .*guidance_interval, .*num_timesteps.*, size, ",
        ),
        (lambda pipe: pipe.edit(picture(), "a", **FAST, width=64), "There is no setting width: give size="),
        (lambda pipe: pipe.edit(picture(), "a", **FAST, generator=0), "no setting generator: give seed"),
        (lambda pipe: pipe.generate("a", num_inference_steps=2), "25 steps are num_timesteps=26"),
        (lambda pipe: pipe.generate("a", **FAST, guidance_scale=2.0), "give text_guidance_scale"),
        (lambda pipe: pipe.edit(picture(), "a", **FAST, source_views=["vit", "siglip"]), "no view 'siglip'"),
        (lambda pipe: pipe.edit(picture(), "a", **FAST, source_views="vit"), "source_views is 'vit'"),
    ],
)  # fmt: skip
def test_bad_requests(pipe, drawn, call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(pipe)
    assert_one_sentence(error)
    assert drawn == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": [(32, 32)] * 4 + [(40, 32)]}, "Request 4: An image of 40 x 32 pixels cannot be drawn"),
        ({"text_guidance_scale": [4.0, 4.0, 4.0, 0.5, 4.0]}, "Request 3: text_guidance_scale is 0.5"),
        ({"guidance_renorm": ["global"] * 4 + ["all"]}, "Request 4: guidance_renorm is 'all'"),
        ({"num_timesteps": [2, 2, 2, 2, 3]}, r"The requests ask for \[2, 3\] timesteps"),
    ],
)
def test_one_bad_request_of_many_is_named_before_any_is_drawn(pipe, drawn, settings, message):
    """The bad one is in the last batch of three."""
    with pytest.raises(ValueError, match=message) as error:
        pipe.generate(["a red circle"] * 5, seed=0, **{"num_timesteps": 2, "size": (32, 32)} | settings)
    assert_one_sentence(error)
    assert drawn == []


def test_an_unknown_option_of_an_answer(pipe):
    with pytest.raises((ValueError, TypeError), match="temprature"):
        pipe.answer(picture(), "what is this", temprature=2.0)


def test_a_batch_of_none():
    with pytest.raises(ValueError, match="batch_size is 0, but at least one request"):
        UniEditPipeline(tiny_bagel(), tiny_bagel_processor(), batch_size=0)


# ---- folders


def test_a_folder_that_is_no_checkpoint(tmp_path):
    (tmp_path / "readme.md").write_text("nothing")
    with pytest.raises(OSError, match="is not a BAGEL checkpoint") as error:
        UniEditPipeline.from_pretrained(tmp_path)
    assert "readme.md" in str(error.value) and "\n" not in str(error.value)


def test_a_name_that_is_neither_a_folder_nor_on_the_hub():
    with pytest.raises(OSError, match="no/such-model"):
        UniEditPipeline.from_pretrained("no/such-model", local_files_only=True)


def test_a_model_of_another_kind(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(ValueError, match="gpt2|GPT2"):
        UniEditPipeline.from_pretrained(tmp_path)
