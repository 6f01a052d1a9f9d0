"""The small BAGEL as a function of tensors gives what `BagelForConditionalGeneration` gives for all samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from uniedit_hf.models.bagel.flow import add_noise, shift_time, velocity_target
from uniedit_hf.pipeline import UniEditPipeline
from uniedit_hf.segments import ImageSegment, Sample, TextSegment
from uniedit_hf.small_world.base import static_vae
from uniedit_hf.small_world.base.static_model import (
    EOS,
    NO_LABEL,
    ModelShape,
    RowLayout,
    Rows,
    StaticModel,
    draw,
    fresh_weights,
    image_loss,
    see,
    several,
    text_loss,
    write,
)
from uniedit_hf.small_world.scene import Scene, render
from uniedit_hf.small_world.suite import DRAWING_SETTINGS, EDIT_SETTINGS


ASSET = Path(__file__).resolve().parents[1] / "assets" / "small_bagel"
SHAPE = ModelShape(133, 192, 416, 5, 6, 128, 512, 3, 4)
LAYOUT = RowLayout(vae=True, vit=True, text=24, copies=2)
SOURCE = render(Scene("circle", "red", (36.0, 8.0, 58.0, 30.0), (240, 240, 250)))
TARGET = render(Scene("circle", "blue", (36.0, 8.0, 58.0, 30.0), (240, 240, 250)))
CASES = {
    "both views": (("vae", "vit"), "make it blue."),
    "ViT view": (("vit",), "paint the shape blue."),
    "VAE view": (("vae",), "make it blue."),
    "no text": (("vit",), None),
    "drawing": ((), "a big blue circle at the right"),
}


@pytest.fixture(scope="module")
def pipe() -> UniEditPipeline:
    return UniEditPipeline.from_pretrained(ASSET)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return {name: weight[None].float() for name, weight in load_file(ASSET / "model.safetensors").items()}


@pytest.fixture(scope="module")
def model() -> StaticModel:
    return StaticModel(SHAPE)


def latents(pipe, weights, image) -> torch.Tensor:
    """(16, 32), scaled and shifted."""
    config = pipe.model.config.vae_config
    pixels = pipe.processor.prepare_target(image)[None]
    plain = {name: weight[0] for name, weight in weights.items()}
    return static_vae.to_tokens(config.scaling_factor * (static_vae.encode(plain, pixels) - config.shift_factor))[0]


def rows_of(pipe, weights, views, texts, copies_at=None) -> Rows:
    ids = [token for text in texts for token in (1, *pipe.processor.token_ids(text), 2)]
    padded = torch.zeros(1, 1, LAYOUT.text, dtype=torch.long)
    padded[0, 0, : len(ids)] = torch.tensor(ids, dtype=torch.long)
    patches = pipe.processor.image_processor.patchify_vit(pipe.processor.image_processor.prepare(SOURCE, "vit"))
    noised, time = copies_at or (torch.zeros(1, 1, 2, 16, 32), torch.zeros(1, 1, 2))
    return Rows(
        text=padded,
        text_length=torch.tensor([[len(ids)]]),
        has_vit=torch.tensor([["vit" in views]]),
        vit=see(weights, SHAPE, patches[None, None]),
        has_vae=torch.tensor([["vae" in views]]),
        vae=latents(pipe, weights, SOURCE)[None, None],
        noised=noised,
        time=time,
    )


def test_the_autoencoder_is_the_same(pipe, weights):
    pixels = pipe.processor.prepare_target(SOURCE)
    (wanted,) = pipe.model.encode_images([pixels])
    config = pipe.model.config.vae_config
    plain = {name: weight[0] for name, weight in weights.items()}
    found = config.scaling_factor * (static_vae.encode(plain, pixels[None]) - config.shift_factor)
    # The model encodes channels last, whose convolutions round by 2e-5 of latents of up to 5 on some processors.
    assert torch.allclose(found[0], wanted, atol=5e-5)
    assert torch.equal(static_vae.from_tokens(static_vae.to_tokens(found)), found)
    decoded = static_vae.decode(plain, found / config.scaling_factor + config.shift_factor)
    assert torch.allclose(decoded[0], pipe.model.decode_latents([wanted])[0], atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_the_image_loss_is_the_same(pipe, weights, model, case):
    views, text = CASES[case]
    segments = [ImageSegment(SOURCE, view) for view in views]
    segments += [] if text is None else [TextSegment(text)]
    segments += [ImageSegment(TARGET, "vae", loss=True)] * 2
    pack = pipe.processor.pack([Sample(segments, "a")], seed=3)
    with torch.no_grad():
        wanted = pipe.model(**pack)
    clean = latents(pipe, weights, TARGET)
    noise = torch.stack(list(pack["noise"])[-2:])
    time = shift_time(pack["timesteps"][-2:], pipe.model.config.timestep_shift)
    noised = add_noise(clean, noise, time[:, None, None])
    rows = rows_of(pipe, weights, views, [] if text is None else [text], (noised[None, None], time[None, None]))
    _, hidden = model(weights, rows, LAYOUT)
    velocity = velocity_target(clean, noise)[None, None]
    found = image_loss(weights, hidden, velocity, torch.ones(1, 1))
    assert found.item() == pytest.approx((wanted.image_sum / wanted.image_count).item(), rel=3e-4)


def test_the_text_loss_is_the_same(pipe, weights, model):
    sample = Sample(
        [ImageSegment(SOURCE, "vit"), TextSegment("what color is the shape?"), TextSegment("red", loss=True)], "a"
    )
    with torch.no_grad():
        wanted = pipe.model(**pipe.processor.pack([sample]))
    rows = rows_of(pipe, weights, ("vit",), ["what color is the shape?", "red"])
    labels = torch.full_like(rows.text, NO_LABEL)
    end = rows.text_length.item()
    labels[0, 0, end - 3 : end - 1] = rows.text[0, 0, end - 2 : end]
    hidden, _ = model(weights, rows, LAYOUT)
    found = text_loss(weights, hidden, labels)
    assert found.item() == pytest.approx((wanted.text_sum / wanted.text_count).item(), rel=1e-4)


def test_answers_are_the_same(pipe, weights, model):
    rows = rows_of(pipe, weights, ("vit",), ["what color is the shape?"])
    ids = write(model, weights, rows, RowLayout(False, True, LAYOUT.text, 0))[0, 0].tolist()
    words = pipe.processor.tokenizer.decode(ids[: ids.index(EOS)])
    assert words == pipe.answer(SOURCE, "what color is the shape?", max_new_tokens=6)


@pytest.mark.parametrize("case", ["both views", "ViT view", "drawing"])
def test_images_are_the_same(pipe, weights, model, case):
    views, text = CASES[case]
    if views:
        settings = EDIT_SETTINGS["bagel"]
        wanted = pipe.edit(SOURCE, text, seed=5, source_views=views, **settings)
    else:
        wanted = pipe.generate(text, seed=5, **DRAWING_SETTINGS["bagel"])
    noise = torch.randn(16, 32, generator=torch.Generator().manual_seed(5))[None, None]
    layout = RowLayout(True, True, LAYOUT.text, 1)
    found = draw(model, weights, rows_of(pipe, weights, views, [text]), layout, noise)
    config = pipe.model.config.vae_config
    plain = {name: weight[0] for name, weight in weights.items()}
    pixels = static_vae.decode(plain, static_vae.from_tokens(found[0]) / config.scaling_factor + config.shift_factor)
    image = np.asarray(pipe.processor.to_pil(pixels[0]), int)
    assert np.abs(image - np.asarray(wanted, int)).max() <= 2


def test_every_model_of_a_stack_is_by_itself(pipe, weights, model):
    """Two models in one stack, one of them changed: each gives what it gives alone."""
    both = several(weights, 2)
    both["llm2vae.bias"][1] += 1.0
    rows = rows_of(pipe, weights, ("vit",), ["make it blue."])
    twice = Rows(**{name: None if value is None else value.repeat(2, *[1] * (value.dim() - 1))
                    for name, value in vars(rows).items()})  # fmt: skip
    _, alone = model(weights, rows, LAYOUT)
    _, together = model(both, twice, LAYOUT)
    assert torch.allclose(together[0], alone[0], atol=1e-5) and torch.allclose(together[1], alone[0], atol=1e-5)
    target = torch.zeros(2, 1, 2, 16, 32)
    first, second = image_loss(both, together, target, torch.ones(2, 1)).tolist()
    assert first != pytest.approx(second)


def test_fresh_weights_are_those_of_a_checkpoint(weights):
    fresh = fresh_weights(SHAPE, 0)
    assert {name for name in weights if not name.startswith(("encoder.", "decoder."))} == set(fresh)
    assert all(fresh[name].shape == weights[name].shape for name in fresh)
