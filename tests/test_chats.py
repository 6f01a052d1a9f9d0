"""Chats: templates, batches, transformers' pipeline, and the arguments with which its users call a processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_models import FAMILIES, draw_weights, picture, tiny_bagel_processor
from torch.nn.functional import cross_entropy
from transformers import AutoProcessor, pipeline
from trl import SFTConfig, SFTTrainer

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


def test_a_pipeline_answers_chats_in_batches_as_alone(pair):
    pipe = pipeline("image-text-to-text", model=pair[0], processor=pair[1])
    chats = [chat(0, 1), chat(2), chat(3, 4, text="paint the circle red and then make it bigger")]

    def answers(chats, **options):
        options |= {"max_new_tokens": 4, "generate_kwargs": {"do_sample": False}, "return_full_text": False}
        return [each[0]["generated_text"] for each in pipe(text=chats, **options)]

    assert answers(chats, batch_size=3) == answers(chats)


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


LONG = [
    *chat(0),
    {"role": "assistant", "content": "red"},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "and"},
            *chat(1, 2, text="this")[0]["content"],
            {"type": "text", "text": "then"},
        ],
    },
    {"role": "assistant", "content": [{"type": "text", "text": "two blue"}]},
]
TENSORS = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
OF_TRL = {"padding": True, "truncation": True, "max_length": 1024, "add_special_tokens": False}


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_a_janus_template_makes_the_tokens_of_its_chats(cut):
    processor, prompt = FAMILIES["janus"].processor(), {"add_generation_prompt": cut % 2 == 1}
    images = [picture(64, 48, seed) for seed in range(1 if cut < 3 else 3)]
    text = processor.apply_chat_template(LONG[:cut], **prompt)
    features = processor(text=text, images=images)
    chats = processor.apply_chat_template(LONG[:cut], **TENSORS, **prompt)
    assert features.keys() == chats.keys()
    for name, value in features.items():
        torch.testing.assert_close(chats[name], value)


def test_chats_to_learn_from_are_padded_on_the_right(pair):
    model, processor = pair
    chats = [LONG, LONG[:2]]
    right = processor.apply_chat_template(
        chats, **TENSORS, processor_kwargs={**OF_TRL, "padding_side": "right", "pad_to_multiple_of": 8}
    )
    left = processor.apply_chat_template(chats, **TENSORS, padding=True)
    assert right["input_ids"].shape[1] % 8 == 0
    with torch.no_grad():
        logits = [model(**features).logits[features["attention_mask"].bool()] for features in (right, left)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)


def test_the_assistants_tokens_are_marked(pair):
    processor = pair[1]
    features = processor.apply_chat_template([LONG, LONG[:2]], **TENSORS, return_assistant_tokens_mask=True)
    end = processor.tokenizer.eos_token
    said = [
        processor.tokenizer.convert_ids_to_tokens(ids[mask.bool()])
        for ids, mask in zip(features["input_ids"], features["assistant_masks"])
    ]
    assert [[word.strip() for word in words] for words in said] == [["red", end, "two", "blue", end], ["red", end]]
    assert "{%- generation -%}" in processor.chat_template
    with pytest.raises(ValueError, match="return_dict=True"):
        processor.apply_chat_template(LONG, tokenize=True, return_assistant_tokens_mask=True)


def test_the_last_message_is_continued_on_request(pair):
    processor = pair[1]
    whole = processor.apply_chat_template(LONG, tokenize=True)
    assert processor.apply_chat_template(LONG, tokenize=True, continue_final_message=True) == whole[:-1]
    with pytest.raises(ValueError, match="end the chat with its message"):
        processor.apply_chat_template(LONG[:3], tokenize=True, continue_final_message=True)
    with pytest.raises(ValueError, match="exclude each other"):
        processor.apply_chat_template(LONG, tokenize=True, continue_final_message=True, add_generation_prompt=True)


def test_control_tokens_in_a_chat_are_text_unless_asked_for_otherwise(pair):
    processor = pair[1]
    end = processor.tokenizer.eos_token
    words, options = [{"role": "user", "content": f"paint {end} the"}], {"tokenize": True}
    literal = processor.apply_chat_template(words, **options)
    count = processor.apply_chat_template([{"role": "user", "content": "paint the"}], **options).count(
        processor.tokenizer.eos_token_id
    )
    assert literal.count(processor.tokenizer.eos_token_id) == count
    assert processor.apply_chat_template(words, **options, sanitize_control_tokens=True) == literal
    parsed = processor.apply_chat_template(words, **options, sanitize_control_tokens=False)
    assert parsed.count(processor.tokenizer.eos_token_id) == count + 1


def test_trl_tunes_on_chats_with_images_as_a_plain_loop(pair, tmp_path):
    """Chats with images through TRL's own collator: the loss is that of the model over the same chats."""
    model, processor = pair
    arguments = SFTConfig(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, learning_rate=0.01, logging_steps=1,
        report_to=[], use_cpu=True, lr_scheduler_type="constant", optim="sgd", save_strategy="no", max_grad_norm=1e9,
        gradient_checkpointing=False, bf16=False, train_sampling_strategy="sequential", weight_decay=0.0,
        assistant_only_loss=True, dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False,
    )  # fmt: skip
    answers = ["red", "two blue", "yes", "no"]
    rows = [
        {
            "images": [picture(64, 48, seed)] * (1 + seed % 2),
            "messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": answer}],
        }
        for seed, answer in enumerate(answers)
    ]
    trainer = SFTTrainer(model, arguments, train_dataset=Dataset.from_list(rows), processing_class=processor)
    trainer.train()
    found = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    model, expected = type(model)(model.config).train(), []
    draw_weights(model, 0)
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.01)
    for start in (0, 2):
        chats = [
            [*chat(*[seed] * (1 + seed % 2)), {"role": "assistant", "content": answers[seed]}]
            for seed in (start, start + 1)
        ]
        features = processor.apply_chat_template(chats, **TENSORS, return_assistant_tokens_mask=True)
        said = features.pop("assistant_masks")[:, 1:].bool()
        logits, ids = model(**features).logits[:, :-1], features["input_ids"][:, 1:]
        loss = cross_entropy(logits[said], ids[said])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert found == pytest.approx(expected, rel=1e-4)


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
        ({"padding_side": "right", "add_generation_prompt": True}, "use 'left'"),
        ({"padding_side": "top"}, "use 'left'"),
        ({"return_attention_mask": False}, "leave it on"),
        ({"padding": True, "common_kwargs": {"padding": "max_length"}}, "give it once"),
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
