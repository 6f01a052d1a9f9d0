"""Chats: templates, batches, transformers' pipeline, and the arguments with which its users call a processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, picture, tiny_bagel_processor
from transformers import AutoProcessor, pipeline

from uniedit_hf.models.bagel import BagelImageProcessor
from uniedit_hf.pipeline import UniEditPipeline


QUESTION = "what colour is this"


def chat(*seeds: int, text: str = QUESTION) -> list[dict]:
    images = [{"type": "image", "image": picture(64, 48, seed)} for seed in seeds]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


@pytest.fixture(params=FAMILIES)
def pair(request):
    return FAMILIES[request.param].model(), FAMILIES[request.param].processor()


def test_a_chat_is_answered_as_the_pipeline_of_this_package_does(pair):
    model, processor = pair
    expected = UniEditPipeline(model, processor).answer(picture(64, 48, 0), QUESTION, max_new_tokens=6)
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    options = {"max_new_tokens": 6, "generate_kwargs": {"do_sample": False}, "return_full_text": False}
    (answer,) = pipe(text=chat(0), **options)
    assert answer["generated_text"].strip() == expected.strip()


def test_a_pipeline_answers_chats_with_two_images(pair):
    model, processor = pair
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    inputs = processor.apply_chat_template(
        chat(0, 1), tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    written = model.generate(**inputs, max_new_tokens=6, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    options = {"max_new_tokens": 6, "generate_kwargs": {"do_sample": False}, "return_full_text": False}
    chats = [chat(0, 1), chat(2)]
    both = pipe(text=chats, **options)
    assert len(both) == 2
    (first,) = both[0] if isinstance(both[0], list) else [both[0]]
    expected = processor.batch_decode(written, skip_special_tokens=True)[0]
    assert first["generated_text"].strip() == expected.strip()


def test_batches_of_chats_equal_singles(pair):
    model, processor = pair
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    chats = [chat(0, 1), chat(2, text="paint the circle red and then make it bigger")]
    both = processor.apply_chat_template(chats, padding=True, **options)
    written = model.generate(**both, max_new_tokens=5, do_sample=False)[:, both["input_ids"].shape[1] :]
    for row, single in zip(written, chats):
        alone = processor.apply_chat_template(single, **options)
        expected = model.generate(**alone, max_new_tokens=5, do_sample=False)[0, alone["input_ids"].shape[1] :]
        count = min(len(expected), len(row))
        torch.testing.assert_close(row[:count], expected[:count])


def test_a_bagel_chat_is_text_too():
    processor = tiny_bagel_processor()
    text = processor.apply_chat_template(chat(0), add_generation_prompt=True)
    assert text == f"<|vision_start|><|vision_end|><|im_start|>{QUESTION}<|im_end|><|im_start|>"
    words = [{"role": "user", "content": QUESTION}]
    ids = processor.apply_chat_template(words, tokenize=True, add_generation_prompt=True)
    assert ids == processor.tokenizer(processor.apply_chat_template(words, add_generation_prompt=True))["input_ids"]


def test_the_template_is_saved_with_the_processor(tmp_path):
    tiny_bagel_processor().save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.apply_chat_template(chat(0)) == tiny_bagel_processor().apply_chat_template(chat(0))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "critic", "content": "no"}], "role 'critic'"),
        ([{"role": "user", "content": [{"type": "video", "video": "film.mp4"}]}], "type 'video'"),
        ([{"role": "user", "content": [{"type": "image"}]}], "without one"),
    ],
)
def test_what_a_chat_cannot_hold_is_refused(pair, messages, message):
    with pytest.raises(ValueError, match=message):
        pair[1].apply_chat_template(messages, tokenize=True)


def test_a_bagel_pipeline_answers_images_and_texts_in_batches():
    model, processor = FAMILIES["bagel"].model(), tiny_bagel_processor()
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    texts = [QUESTION, "paint the circle red"]
    images = [picture(64, 48, seed) for seed in range(2)]
    options = {"max_new_tokens": 5, "generate_kwargs": {"do_sample": False}, "return_full_text": False}
    answers = pipe(images=images, text=texts, **options)
    for image, text, answer in zip(images, texts, answers):
        inputs = processor(images=image, text=text)
        written = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert answer["generated_text"].strip() == processor.decode(written, skip_special_tokens=True).strip()


# --- arguments of the processor --------------------------------------------------------------------------------------


def test_nested_images_belong_to_their_texts():
    processor, images = tiny_bagel_processor(), [picture(64, 48, seed) for seed in range(3)]
    both = processor(images=[images[:2], images[2:]], text=[QUESTION, QUESTION])
    assert len(both["vit_grids"]) == 3
    for key, nested in ((0, images[:2]), (1, images[2:])):
        alone = processor(images=[nested], text=[QUESTION])
        length = alone["input_ids"].shape[1]
        torch.testing.assert_close(both["token_type_ids"][key, -length:], alone["token_type_ids"][0])


def test_contexts_are_padded_to_a_length_on_request():
    features = tiny_bagel_processor()(text=QUESTION, padding="max_length", max_length=40)
    assert features["input_ids"].shape == (1, 40) and features["attention_mask"].sum() == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncation": True, "max_length": 3}, "max_length is 3"),
        ({"return_tensors": "np"}, "use 'pt'"),
        ({"padding_side": "right"}, "use 'left'"),
        ({"videos": [1]}, "no videos"),
        ({"padding": True, "text_kwargs": {"padding": "max_length"}}, "give it once"),
    ],
)
def test_arguments_that_cannot_be_heeded_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_bagel_processor()(text=QUESTION, **options)


def test_unknown_arguments_are_refused(pair):
    with pytest.raises(TypeError, match="paddding"):
        pair[1].apply_chat_template(chat(0), tokenize=True, paddding=True)


# --- the image processor ---------------------------------------------------------------------------------------------


SIZES = {"vit_size": {"longest_edge": 84, "shortest_edge": 28}, "vae_size": {"longest_edge": 96, "shortest_edge": 32}}


@pytest.mark.parametrize("size", [(64, 48), (84, 56)])
@pytest.mark.parametrize("view", ["vit", "vae"])
def test_arrays_and_tensors_give_the_pixels_of_the_image(size, view):
    processor, image = BagelImageProcessor(**SIZES), picture(*size)
    (expected,) = processor(image, view=view)["pixel_values"]
    array = np.array(image)
    for same in (array, torch.from_numpy(array), torch.from_numpy(array).permute(2, 0, 1), array.transpose(2, 0, 1)):
        torch.testing.assert_close(processor(same, view=view)["pixel_values"][0], expected)
    floats = torch.from_numpy(array).permute(2, 0, 1) / 255
    near = processor(floats, view=view, do_rescale=False)["pixel_values"][0]
    assert (near - expected).abs().mean() < 0.002  # values between integers, which Pillow rounds
    batch = processor(torch.stack([floats, floats]), view=view, do_rescale=False)["pixel_values"]
    assert len(batch) == 2


def test_switches_do_what_they_say():
    processor, image = BagelImageProcessor(**SIZES), picture(56, 28)
    array = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
    raw = processor(image, do_resize=False, do_rescale=False, do_normalize=False)["pixel_values"][0]
    torch.testing.assert_close(raw, array)
    scaled = processor(image, do_resize=False, do_normalize=False)["pixel_values"][0]
    torch.testing.assert_close(scaled, array / 255)
    other = processor(image, do_resize=False, do_normalize=False, rescale_factor=0.5)["pixel_values"][0]
    torch.testing.assert_close(other, array * 0.5)
    kept = BagelImageProcessor(**SIZES, do_normalize=False, do_resize=False)
    torch.testing.assert_close(kept(image)["pixel_values"][0], array / 255)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (picture(57, 28), {"do_resize": False}, "multiples of 14"),
        (torch.rand(3, 28, 28), {}, "do_rescale=False"),
        (torch.rand(4, 28, 28), {}, "three channels"),
        (picture(28, 28), {"do_convert_rgb": False}, "do_convert_rgb"),
    ],
)
def test_images_that_cannot_be_used_are_refused(image, options, message):
    with pytest.raises(ValueError, match=message):
        BagelImageProcessor(**SIZES)(image, **options)
