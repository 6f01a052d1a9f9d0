"""BAGEL's image processor against the reference's sizes and pixels (tests/fixtures/README.md)."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor

import uniedit_hf  # noqa: F401  registers the Auto classes
from benchmarks.reference import as_in_pillow_13
from uniedit_hf.images import ImageError
from uniedit_hf.models.bagel.image_processing_bagel import BagelImageProcessor, fit_size


FIXTURES = Path(__file__).parent / "fixtures" / "bagel_tiny"
REFERENCE = json.loads((FIXTURES / "resize.json").read_text())
VAE, VIT = (1024, 512, 16), (980, 224, 14)


@pytest.fixture(scope="module")
def pixels():
    return load_file(FIXTURES / "resize.safetensors")


@pytest.fixture
def small():
    """The two small settings of the reference pixels."""
    return BagelImageProcessor(
        vae_size={"longest_edge": 64, "shortest_edge": 32}, vit_size={"longest_edge": 70, "shortest_edge": 28}
    )


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


# --- sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REFERENCE["transforms"])
def test_sizes_are_the_references(name):
    table = REFERENCE["table"]
    assert len(table) == 70
    for row in table:
        assert fit_size(row["width"], row["height"], *REFERENCE["transforms"][name]) == tuple(row[name]), row


def test_the_defaults_are_the_references():
    processor = BagelImageProcessor()
    for row in REFERENCE["table"]:
        assert processor.resized_size(row["width"], row["height"], "vae") == tuple(row["vae"])
        assert processor.resized_size(row["width"], row["height"], "vit") == tuple(row["vit_inference"])


def test_a_large_square_shrinks_by_the_ratio_of_pixels():
    assert fit_size(1500, 1500, 2048, 512, 16) == (1200, 1200)  # 1504 * 1806336 / 1504**2 = 1201


def test_narrow_images_keep_one_stride():
    assert fit_size(1, 5000, *VAE) == (16, 1024)
    assert fit_size(5000, 1, *VIT) == (980, 14)
    assert fit_size(1, 1, *VAE) == (512, 512)


sides = st.integers(1, 20_000)
views = st.sampled_from([VAE, VIT, (518, 224, 14), (980, 378, 14), (64, 64, 8), (64, 32, 16)])


@given(sides, sides, views)
def test_fitted_sizes(width, height, view):
    longest, shortest, stride = view
    fitted = fit_size(width, height, *view)
    assert all(side % stride == 0 and stride <= side <= longest for side in fitted)
    if max(fitted) < longest:  # there was room to grow
        assert min(fitted) >= shortest
    if width != height:
        assert fitted == fit_size(height, width, *view)[::-1]
        assert (fitted[0] >= fitted[1]) == (width > height) or fitted[0] == fitted[1]
    if max(width, height) < 3 * min(width, height):  # rounding moves a side by half a stride at most, twice
        ratio = (fitted[0] / fitted[1]) / (width / height)
        assert abs(ratio - 1) <= 2 * stride / min(fitted)
    assert fit_size(*fitted, *view) == fitted, "fitting twice changes nothing"


@given(sides, st.integers(1, 20_000), views)
def test_a_wider_image_is_not_fitted_lower_than_a_square(side, extra, view):
    width, height = fit_size(side + extra, side, *view)
    square, _ = fit_size(side, side, *view)
    assert width >= square >= height


@given(sides, st.integers(1, 20_000), views)
def test_larger_squares_are_fitted_larger(side, extra, view):
    assert fit_size(side, side, *view)[0] <= fit_size(side + extra, side + extra, *view)[0]


def test_tokens():
    processor = BagelImageProcessor()
    assert processor.tokens(2000, 2000, "vae") == 64 * 64
    assert processor.tokens(2000, 2000, "vit") == 70 * 70
    assert processor.tokens(640, 480, "vae") == (688 // 16) * (512 // 16)
    assert processor.tokens(64, 32, "vae", resize=False) == 4 * 2
    with pytest.raises(ValueError, match="65 x 32 pixels, but both sides must be multiples of 16"):
        processor.tokens(65, 32, "vae", resize=False)


# --- pixels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(3))
def test_pixels_are_the_references(index, pixels, small):
    image = pixels[f"{index}.rgb"].numpy()
    result = f"{index}.small"
    assert torch.equal(small.prepare(as_in_pillow_13(result, image), "vae"), pixels[result])
    assert torch.equal(small.prepare(image, "vit"), pixels[f"{index}.patch14"])


def test_reading_as_the_reference_does_at_inference(small):
    image = noise(100, 75)
    source = small.fit(image, "vae")
    assert source.size == (64, 48)
    assert torch.equal(small.prepare(source, "vae"), small.prepare(image, "vae"))
    read = small.prepare(source, "vit")
    by_hand = image.resize((64, 48), Image.Resampling.BICUBIC).resize((70, 42), Image.Resampling.BICUBIC)
    assert torch.allclose(read, torch.from_numpy(np.array(by_hand)).permute(2, 0, 1) / 127.5 - 1, atol=1e-6)
    assert not torch.equal(read, small.prepare(image, "vit"))


def test_a_narrow_image(small):
    assert small.prepare(noise(1, 5000), "vae").shape == (3, 64, 16)
    assert BagelImageProcessor().prepare(noise(5000, 1), "vit").shape == (3, 14, 980)


def test_a_small_world_that_is_not_resized():
    edges = {"longest_edge": 64, "shortest_edge": 64}
    processor = BagelImageProcessor(vae_size=edges, vit_size=edges, vit_stride=8)
    image = noise(64, 64)
    read = processor.prepare(image, "vit")
    assert torch.equal(read, processor.prepare(image, "vae"))
    assert np.array_equal(np.asarray(processor.to_pil(read)), np.asarray(image))
    assert processor.patchify_vit(read).shape == (64, 192)
    assert processor.tokens(64, 64, "vae") == 16


def test_patches_are_row_column_channel(small):
    image = torch.arange(3 * 28 * 42).view(3, 28, 42)
    patches = small.patchify_vit(image)
    assert patches.shape == (2 * 3, 14 * 14 * 3)
    for row in range(2):
        for column in range(3):
            patch = patches[row * 3 + column].view(14, 14, 3)
            corner = image[:, row * 14 : row * 14 + 14, column * 14 : column * 14 + 14]
            assert torch.equal(patch.permute(2, 0, 1), corner)
    with pytest.raises(ValueError, match="42 x 30 pixels, but both sides must be multiples of 14"):
        small.patchify_vit(torch.zeros(3, 30, 42))


def test_patches_of_a_view_on_memory(small):
    image = torch.rand(28, 42, 3).permute(2, 0, 1)
    assert torch.equal(small.patchify_vit(image), small.patchify_vit(image.contiguous()))


def test_back_to_pictures():
    levels = torch.arange(256, dtype=torch.float32)
    grey = (levels / 255 - 0.5) / 0.5
    picture = BagelImageProcessor.to_pil(grey.expand(3, 1, 256))
    assert picture.mode == "RGB"
    assert np.array_equal(np.asarray(picture)[0, :, 0], levels.numpy())
    halves = torch.tensor([-2.0, -1, 126.5 / 127.5 - 1, 0, 1, 3, float("inf")])
    values = np.asarray(BagelImageProcessor.to_pil(halves.expand(3, 1, 7)))[0, :, 0]
    assert np.array_equal(values, [0, 0, 127, 128, 255, 255, 255])
    assert BagelImageProcessor.to_pil(torch.zeros(3, 4, 5, dtype=torch.bfloat16, requires_grad=True)).size == (5, 4)
    several = BagelImageProcessor.to_pil([torch.zeros(3, 4, 5), torch.zeros(3, 2, 2)])
    assert [each.size for each in several] == [(5, 4), (2, 2)]
    assert len(BagelImageProcessor.to_pil(torch.zeros(2, 3, 4, 5))) == 2
    with pytest.raises(ValueError, match="not numbers"):
        BagelImageProcessor.to_pil(torch.full((3, 1, 1), float("nan")))


# --- the transformers way -----------------------------------------------------------------------------------------


def test_a_batch_of_different_sizes(small):
    images = [noise(50, 37), np.zeros((64, 23, 3), np.uint8)]
    features = small(images, return_tensors="pt")
    assert [tuple(each.shape) for each in features["pixel_values"]] == [(3, 42, 56), (3, 70, 28)]
    assert torch.equal(features["pixel_values"][0], small.prepare(images[0], "vit"))
    assert small(images[0], view="vae").pixel_values[0].shape == (3, 32, 48)
    assert features.to(torch.bfloat16)["pixel_values"][0].dtype == torch.bfloat16
    with pytest.raises(ValueError, match="'np'"):
        small(images, return_tensors="np")
    with pytest.raises(ImageError, match="image 1 begins with b'no picture'"):
        small([images[0], b"no picture"])


def test_saved_and_loaded_by_the_auto_class(tmp_path, small, pixels):
    small.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved == {
        "image_processor_type": "BagelImageProcessor",
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "latent_channels": 16,
        "vae_size": {"longest_edge": 64, "shortest_edge": 32},
        "vae_stride": 16,
        "vit_size": {"longest_edge": 70, "shortest_edge": 28},
        "vit_stride": 14,
    }
    for loaded in (AutoImageProcessor.from_pretrained(tmp_path), BagelImageProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is BagelImageProcessor
        assert loaded.to_dict() == small.to_dict()
        assert torch.equal(loaded.prepare(pixels["1.rgb"].numpy(), "vae"), pixels["1.small"])


def test_settings_are_overridden_while_loading(tmp_path):
    BagelImageProcessor().save_pretrained(tmp_path)
    tuned = {"longest_edge": 518, "shortest_edge": 224}
    loaded, unused = AutoImageProcessor.from_pretrained(tmp_path, vit_size=tuned, colour=1, return_unused_kwargs=True)
    assert loaded.vit_size == tuned
    assert "colour" in unused
    assert loaded.resized_size(2000, 2000, "vit") == (518, 518)
    with pytest.raises(ValueError, match="vit_stride is 0"):  # checked like any setting
        AutoImageProcessor.from_pretrained(tmp_path, vit_stride=0)


def test_two_processors_share_no_settings():
    edges = {"longest_edge": 64, "shortest_edge": 64}
    for options in ({}, {"vae_size": edges}):
        first, second = BagelImageProcessor(**options), BagelImageProcessor(**options)
        first.vae_size["longest_edge"] = 1
        assert second.vae_size["longest_edge"] > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vit_stride": 0}, "vit_stride is 0"),
        ({"vae_size": {"longest_edge": 64}}, r"vae_size\['shortest_edge'\] is None"),
        ({"vae_size": {"longest_edge": 64, "shortest_edge": 128}}, "at least its shortest_edge"),
        ({"vit_size": {"longest_edge": 1000, "shortest_edge": 224}}, "for instance 994"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(ValueError, match=message):
        BagelImageProcessor(**options)


def test_wrong_arguments(small):
    with pytest.raises(ValueError, match="The view is 'siglip'"):
        small.prepare(noise(4, 4), "siglip")
    with pytest.raises(ValueError, match="0 x 4 pixels"):
        small.tokens(0, 4, "vit")
    with pytest.raises(ImageError, match="source of row 2"):
        buffer = BytesIO()
        noise(40, 40).save(buffer, "PNG")
        small.prepare(buffer.getvalue()[:300], "vit", name="source of row 2")


@pytest.mark.parametrize("floating", [False, True])
def test_a_read_only_array_brings_no_warning(floating, recwarn):
    levels = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    array = levels.astype(np.float32) if floating else levels
    array.setflags(write=False)
    ours = BagelImageProcessor().prepare(array, "vae")
    assert torch.equal(ours, BagelImageProcessor().prepare(torch.from_numpy(array.copy()), "vae"))
    assert not [str(each.message) for each in recwarn if "not writable" in str(each.message)]
