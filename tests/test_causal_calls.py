"""BAGEL called as any causal model of transformers: losses of plain text, all logits, hidden states, attentions,
assisted generation, second turns; and nothing ignored in silence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, init_empty_weights, load_checkpoint_and_dispatch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny_models import (
    FAMILIES,
    picture,
    tiny_bagel,
    tiny_bagel_config,
    tiny_bagel_processor,
    tiny_janus,
    tiny_tokenizer,
)
from torch.nn.functional import cross_entropy
from transformers import AutoModel, GenerationConfig
from trl import SFTConfig, SFTTrainer

from uniedit_hf.models.bagel import BagelForConditionalGeneration
from uniedit_hf.segments import ImageSegment, Sample, TextSegment


COLUMNS = ("input_ids", "token_type_ids")


@pytest.fixture(scope="module")
def model():
    return tiny_bagel()


@pytest.fixture(scope="module")
def texts() -> torch.Tensor:
    return torch.randint(1, 20, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def context():
    return contexts("bagel")


def contexts(family: str, number: int = 0, count: int = 1):
    views = ("understanding", "drawing")
    return FAMILIES[family].processor()(
        [
            Sample(
                [ImageSegment(picture(64, 48, number + i), view) for view in views]
                + [TextSegment("what colour is this")]
            )
            for i in range(count)
        ]
    )


def plain_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_plain_text_has_the_loss_of_a_causal_model(texts, attention):
    model = tiny_bagel()
    model.set_attn_implementation(attention)
    labels = texts.clone()
    labels[1, :3] = -100
    mask = torch.ones_like(texts)
    mask[1, :2] = 0
    output = model(texts, attention_mask=mask, labels=labels)
    assert output.logits.shape == (2, 7, model.config.text_config.vocab_size)
    torch.testing.assert_close(output.loss, plain_loss(output.logits, labels))
    alone = model(texts[1:, 2:]).logits
    torch.testing.assert_close(output.logits[1:, 2:], alone, rtol=1e-4, atol=1e-4)
    output.loss.backward()
    missing = [name for name, each in model.named_parameters() if each.requires_grad and each.grad is None]
    assert missing == []


def test_without_gradients_plain_text_has_the_same_loss(model, texts):
    with torch.no_grad():
        fast = model(texts, labels=texts)
    torch.testing.assert_close(fast.loss, model(texts, labels=texts).loss.detach(), rtol=1e-5, atol=1e-5)


def test_contexts_have_a_loss_too(model, context):
    labels = context["input_ids"].clone()
    output = model(**context, labels=labels)
    learned = labels.masked_fill(context["token_type_ids"] > 1, -100)  # ids at image tokens have no meaning
    assert (learned == -100).any()
    torch.testing.assert_close(output.loss, plain_loss(output.logits, learned))
    many = model(**context, labels=labels, num_items_in_batch=torch.tensor(10))
    torch.testing.assert_close(many.loss * 10, output.loss * (learned[:, 1:] != -100).sum())


def test_every_place_has_logits_unless_some_are_chosen(model, texts):
    with torch.no_grad():
        every = model(texts).logits
        torch.testing.assert_close(model(texts, logits_to_keep=2).logits, every[:, -2:])
        places = torch.tensor([1, 4])
        torch.testing.assert_close(model(texts, logits_to_keep=places).logits, every[:, places])


def test_hidden_states_and_attentions_are_returned(model, context):
    with torch.no_grad():
        output = model(**context, output_hidden_states=True, output_attentions=True)
        plain = model(**context)
    layers, heads, length = 3, 4, context["input_ids"].shape[1]
    assert len(output.hidden_states) == layers + 1 and len(output.attentions) == layers
    assert {each.shape for each in output.hidden_states} == {(1, length, 64)}
    assert {each.shape for each in output.attentions} == {(1, heads, length, length)}
    for each in output.attentions:
        torch.testing.assert_close(each.sum(-1), torch.ones(1, heads, length))
    torch.testing.assert_close(model.lm_head(output.hidden_states[-1]), output.logits)
    torch.testing.assert_close(output.logits, plain.logits, rtol=1e-4, atol=1e-4)
    assert plain.hidden_states is None and plain.attentions is None


def test_the_configuration_asks_for_hidden_states(texts):
    model = tiny_bagel(output_hidden_states=True)
    assert len(model(texts).hidden_states) == 4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
def test_attentions_are_returned_whatever_computes_them(family, attention):
    model, inputs = FAMILIES[family].model(), contexts(family)
    decoder = model if family == "bagel" else model.model.language_model
    decoder.set_attn_implementation(attention)
    with torch.no_grad():
        output = model(**inputs, output_attentions=True)
        plain = model(**inputs)
    length = inputs["input_ids"].shape[1]
    assert {each.shape for each in output.attentions} == {(1, 4, length, length)}
    assert len(output.attentions) == model.config.text_config.num_hidden_layers
    torch.testing.assert_close(output.logits, plain.logits, rtol=1e-4, atol=1e-4)
    assert decoder.config._attn_implementation == attention


FLEX_AND_SDPA = """
import torch
from tiny_models import tiny_janus

model, ids = tiny_janus(), torch.arange(20)[None]
with torch.no_grad():
    expected = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    model.model.language_model.set_attn_implementation("flex_attention")
    found = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
"""


@pytest.mark.slow
def test_compiled_kernels_of_another_cpu_are_not_used(tmp_path):
    """Two processes share a folder of kernels, the first with AVX2 alone."""
    folders = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
    common = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(folders)}
    for own in ({"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}, {}):
        run = subprocess.run(
            [sys.executable, "-c", FLEX_AND_SDPA], env=common | own, capture_output=True, text=True, timeout=600
        )
        assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_comes_first_in_a_tuple(family):
    model, inputs = FAMILIES[family].model(), contexts(family)
    expected = model(**inputs, labels=inputs["input_ids"])
    loss, logits, *_ = model(**inputs, labels=inputs["input_ids"], return_dict=False)
    torch.testing.assert_close(loss, expected.loss)
    torch.testing.assert_close(logits, expected.logits)


def test_the_configuration_asks_for_tuples(texts):
    model = tiny_bagel()
    model.config.return_dict = False
    first, *_ = model(texts, labels=texts)
    assert first.ndim == 0


def test_tuples_instead_of_dictionaries(model, texts):
    with torch.no_grad():
        first, *_ = model(texts, return_dict=False)
        assert isinstance(first, torch.Tensor)
        torch.testing.assert_close(first, model(texts).logits)


def test_auto_model_takes_what_the_processor_returns(model, texts, tmp_path):
    model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path).eval()
    seen = contexts("bagel")
    seen = {name: value for name, value in seen.items() if name != "vae_images"} | {
        "latents": model.encode_images(seen["vae_images"])
    }
    with torch.no_grad():
        hidden = base(**seen).last_hidden_state
        torch.testing.assert_close(model.lm_head(hidden), model(**seen).logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            model.lm_head(base(texts).last_hidden_state), model(texts).logits, rtol=1e-4, atol=1e-4
        )
    with pytest.raises(ValueError, match="no autoencoder"):
        base(**contexts("bagel"))


ASSISTANTS = {
    "lookup": lambda family: {"prompt_lookup_num_tokens": 2},
    "lookup, dynamic": lambda family: {"prompt_lookup_num_tokens": 2, "cache_implementation": "dynamic"},
    "same": lambda family: {"assistant_model": FAMILIES[family].model()},
    "another": lambda family: {"assistant_model": FAMILIES[family].model(1)},
    "configured": lambda family: {
        "generation_config": GenerationConfig(prompt_lookup_num_tokens=2, max_new_tokens=12, do_sample=False)
    },
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("assistant", ASSISTANTS)
def test_assisted_generation_writes_the_greedy_text(family, assistant):
    model, length = FAMILIES[family].model(), {"max_new_tokens": 12, "do_sample": False}
    for number in range(4):
        inputs = contexts(family, number)
        expected = model.generate(**inputs, **length)
        options = ASSISTANTS[assistant](family)
        found = model.generate(**inputs, **options, **({} if assistant == "configured" else length))
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_are_not_assisted(family):
    model, inputs = FAMILIES[family].model(), contexts(family)
    beams = {"num_beams": 2, "max_new_tokens": 8, "do_sample": False}
    found = model.generate(**inputs, **beams, prompt_lookup_num_tokens=2)
    torch.testing.assert_close(found, model.generate(**inputs, **beams))
    with pytest.raises(ValueError, match="cache_implementation is 'static'.*leave it out"):
        model.generate(**inputs, prompt_lookup_num_tokens=2, max_new_tokens=2, cache_implementation="static")
    with pytest.raises(ValueError, match="cannot leave its layers early"):
        model.generate(**inputs, max_new_tokens=2, assistant_early_exit=1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("option", [{"prefill_chunk_size": 4}, {"token_healing": True}])
def test_what_would_cut_or_rewrite_a_context_is_refused(family, option):
    model, inputs = FAMILIES[family].model(), contexts(family)
    for options in (option, {"generation_config": GenerationConfig(**option)}):
        with pytest.raises(ValueError, match=f"{next(iter(option))} is not possible.*leave it out"):
            model.generate(**inputs, max_new_tokens=2, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_guidance_of_a_text_is_that_of_the_call(family):
    model, inputs, length = FAMILIES[family].model(), contexts(family), {"max_new_tokens": 12, "do_sample": False}
    plain = model.generate(**inputs, **length)
    torch.testing.assert_close(model.generate(**inputs, **length, guidance_scale=1.0), plain)
    guided = [
        model.generate(**inputs, **length, guidance_scale=6.0, negative_prompt_ids=torch.tensor([[number]]))
        for number in (3, 4)
    ]
    assert any(not torch.equal(plain, each) for each in guided)


def test_images_beside_a_cache_that_holds_them_are_refused(model, context):
    first = model.generate(**context, max_new_tokens=2, return_dict_in_generate=True)
    inputs = context | {"input_ids": first.sequences, "past_key_values": first.past_key_values}
    with pytest.raises(ValueError, match="past_key_values alone"):
        model.generate(**inputs, max_new_tokens=2)


@pytest.mark.parametrize("family", FAMILIES)
def test_assisted_generation_behind_texts_alone(family):
    model, inputs = FAMILIES[family].model(), FAMILIES[family].processor()(Sample([TextSegment("paint the circle")]))
    length = {"max_new_tokens": 12, "do_sample": False}
    expected = model.generate(**inputs, **length)
    torch.testing.assert_close(model.generate(**inputs, prompt_lookup_num_tokens=2, **length), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_states_of_every_written_token_are_returned(family, cache):
    model, inputs = FAMILIES[family].model(), contexts(family)
    model.set_attn_implementation("eager")
    asked = {"output_hidden_states": True, "output_attentions": True, "return_dict_in_generate": True}
    length = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "cache_implementation": cache}
    found = model.generate(**inputs, **asked, **length)
    layers, ids = model.config.text_config.num_hidden_layers, found.sequences
    assert [len(each) for each in found.hidden_states] == [layers + 1] * 4
    assert [len(each) for each in found.attentions] == [layers] * 4
    for step, states in enumerate(found.hidden_states[1:], start=1):
        written = inputs["input_ids"].shape[1] + step
        torch.testing.assert_close(model.lm_head(states[-1])[:, -1].argmax(-1), ids[:, written])
    torch.testing.assert_close(model.generate(**inputs, **length), ids)


def test_embeddings_stand_in_for_ids_beside_images(model, context):
    length = {"max_new_tokens": 5, "do_sample": False}
    expected = model.generate(**context, **length)[:, context["input_ids"].shape[1] :]
    inputs = dict(context)
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
    torch.testing.assert_close(model.generate(**inputs, inputs_embeds=embeds, **length), expected)
    others = model.generate(**context, inputs_embeds=embeds.flip(1), **length)
    assert not torch.equal(others[:, -5:], expected)


@pytest.mark.parametrize("call", ["forward", "generate"])
def test_janus_embeddings_beside_the_images_of_samples_are_refused(call):
    model, inputs = tiny_janus(), contexts("janus")
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    with pytest.raises(ValueError, match="inputs_embeds alone"):
        getattr(model, call)(**inputs, inputs_embeds=embeds)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("extra", [{}, {"prompt_lookup_num_tokens": 2}])
def test_a_second_turn_goes_on_where_the_first_ended(family, extra):
    model, inputs = FAMILIES[family].model(), contexts(family)
    first = model.generate(**inputs, max_new_tokens=6, do_sample=False, return_dict_in_generate=True)
    whole = model.generate(**inputs, max_new_tokens=14, do_sample=False)
    cache = first.past_key_values
    again = model.generate(first.sequences, past_key_values=cache, max_new_tokens=8, do_sample=False, **extra)
    torch.testing.assert_close(again, whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop("token_type_ids"), "no token_type_ids"),
        (lambda x: x.pop("vit_grids"), "no vit_grids"),
        (lambda x: x.update({name: x[name].repeat(2, 1) for name in ("vit_patches", "vit_grids")}), "positions"),
        (lambda x: x.update(vae_images=[*x["vae_images"], x["vae_images"][0]]), "positions"),
        (lambda x: x.pop("vae_images"), "0 latent tokens"),
        (lambda x: x.update(pixel_values=torch.zeros(1, 3, 28, 28)), "takes no pixel_values"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("call", ["forward", "generate"])
def test_images_that_do_not_fit_are_refused(model, change, message, call):
    inputs = dict(contexts("bagel"))
    change(inputs)
    with pytest.raises((ValueError, TypeError), match=message if call == "forward" else None):
        model(**inputs) if call == "forward" else model.generate(**inputs, max_new_tokens=2)


def test_columns_of_another_length_are_refused(model):
    prompt = dict(contexts("bagel"))
    joined = prompt | {name: torch.cat([prompt[name]] * 2, 1) for name in ("input_ids", "attention_mask")}
    with pytest.raises(ValueError, match="token_type_ids describes"):
        model(**joined)
    joined["token_type_ids"] = torch.cat([prompt["token_type_ids"], torch.ones_like(prompt["token_type_ids"])], 1)
    with pytest.raises(ValueError, match="make one chat of them"):
        model(**joined)


@pytest.mark.parametrize("sizes", [((64, 48), (64, 48)), ((64, 48), (48, 84))])
def test_image_features_are_those_that_the_decoder_takes(model, sizes):
    images = [picture(*size, number) for number, size in enumerate(sizes)]
    processor = tiny_bagel_processor()
    inputs = processor(images=[images], text=["what colour is this"])
    features = model.get_image_features(
        inputs["vit_patches"], vit_grids=inputs["vit_grids"], output_hidden_states=True
    )
    places = inputs["token_type_ids"] == 2
    with torch.no_grad():
        embeds = model.embed_context(**{name: inputs[name] for name in (*COLUMNS, "vit_patches", "vit_grids")})
    torch.testing.assert_close(torch.cat(features.pooler_output), embeds[places], rtol=1e-4, atol=1e-4)
    assert [len(each) for each in features.pooler_output] == inputs["vit_grids"].prod(1).tolist()
    assert {each.shape for each in features.hidden_states} == {features.last_hidden_state.shape}
    last = model.model.vit_model.vision_model.post_layernorm(features.hidden_states[-1])
    torch.testing.assert_close(last, features.last_hidden_state)
    shape = features.last_hidden_state.shape
    attended = model.get_image_features(inputs["vit_patches"], vit_grids=inputs["vit_grids"], output_attentions=True)
    assert {each.shape for each in attended.attentions} == {(4, shape[0], shape[0])}
    first = inputs["vit_grids"][0].prod()
    for weights in attended.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(4, shape[0]))
        assert not weights[:, :first, first:].any()
    torch.testing.assert_close(attended.last_hidden_state, features.last_hidden_state, rtol=1e-4, atol=1e-4)
    assert features.attentions is None
    by_pixels = model.get_image_features(**processor.image_processor(images))
    torch.testing.assert_close(by_pixels.last_hidden_state, features.last_hidden_state)
    assert isinstance(model.get_image_features(**processor.image_processor(images), return_dict=False), tuple)
    with pytest.raises(ValueError, match="no images"):
        model.get_image_features()


@pytest.mark.parametrize("family", FAMILIES)
def test_accelerate_dispatches_empty_models(family, tmp_path):
    whole, inputs = FAMILIES[family].model(), contexts(family)
    whole.save_pretrained(tmp_path, save_original_format=False)
    with init_empty_weights():
        empty = type(whole)(whole.config)
    assert {each.device.type for each in empty.parameters()} == {"meta"}
    found = load_checkpoint_and_dispatch(empty, tmp_path, device_map={"": "cpu"}).eval()
    with torch.no_grad():
        torch.testing.assert_close(found(**inputs).logits, whole(**inputs).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_accelerate_keeps_weights_elsewhere_until_they_are_called(family):
    inputs, expected = contexts(family), FAMILIES[family].model()
    offloaded = cpu_offload(FAMILIES[family].model(), torch.device("cpu"))
    assert {each.device.type for each in offloaded.parameters()} == {"meta"}
    with torch.no_grad():
        torch.testing.assert_close(offloaded(**inputs).logits, expected(**inputs).logits)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("shape", [(1, 2), (1, 1, 3, 3)])
def test_a_mask_of_another_shape_is_refused(model, shape, gradients):
    with pytest.raises(ValueError, match="attention_mask has the shape"), torch.set_grad_enabled(gradients):
        model(torch.tensor([[3, 4, 5]]), attention_mask=torch.ones(shape))


def test_accelerate_is_told_why_official_names_stay_empty(model, tmp_path):
    model.save_pretrained(tmp_path)
    with init_empty_weights():
        empty = BagelForConditionalGeneration(model.config)
    with pytest.raises(ValueError, match="save_original_format=False"):
        load_checkpoint_and_dispatch(empty, tmp_path, device_map={"": "cpu"})


def test_more_janus_images_than_places_are_refused():
    model, inputs = tiny_janus(), dict(contexts("janus"))
    inputs["siglip_images"] = torch.cat([inputs["siglip_images"]] * 2)
    with pytest.raises(ValueError, match="positions"):
        model(**inputs)


def test_janus_contexts_have_logits_and_a_loss():
    model, inputs = tiny_janus(), contexts("janus")
    output = model(**inputs, labels=inputs["input_ids"])
    torch.testing.assert_close(output.loss, plain_loss(output.logits, inputs["input_ids"]))
    written = model.generate(**inputs, max_new_tokens=1, do_sample=False)[:, -1]
    torch.testing.assert_close(output.logits[:, -1].argmax(-1), written)


def test_janus_prefill_has_the_logits_of_the_last_place():
    model, inputs, shapes = tiny_janus(), contexts("janus"), []
    model.lm_head.register_forward_hook(lambda module, arguments, output: shapes.append(output.shape[1]))
    model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert shapes == [1, 1, 1]


def test_a_cast_janus_keeps_its_image_tokenizer(tmp_path):
    model, images = tiny_janus(), torch.stack([torch.rand(3, 32, 32) * 2 - 1 for _ in range(8)])
    expected, name = model.encode_images(images), model.image_tokenizer
    cast = tiny_janus().to(torch.bfloat16)
    assert cast.lm_head.weight.dtype == torch.bfloat16
    assert cast.model.vqmodel.dtype == torch.float32
    torch.testing.assert_close(cast.encode_images(images), expected)
    assert cast.image_tokenizer == name
    model.save_pretrained(tmp_path)
    for dtype in (torch.bfloat16, torch.float16):
        loaded = type(model).from_pretrained(tmp_path, dtype=dtype)
        assert {each.dtype for each in loaded.model.vqmodel.parameters()} == {torch.float32}
        assert loaded.lm_head.weight.dtype == dtype


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_adapters_leave_frozen_autoencoders_alone(family):
    adapted = get_peft_model(FAMILIES[family].model(), LoraConfig(target_modules="all-linear", r=2))
    names = [name for name, each in adapted.named_parameters() if each.requires_grad]
    assert names and not [name for name in names if ".vae." in name or ".vqmodel." in name]


def test_mismatched_sizes(tmp_path):
    tiny_bagel().save_pretrained(tmp_path)
    larger = tiny_bagel_config(max_latent_size=9)
    with pytest.raises(ValueError, match="latent_pos_embed"):
        BagelForConditionalGeneration.from_pretrained(tmp_path, config=larger, ignore_mismatched_sizes=False)
    loaded = BagelForConditionalGeneration.from_pretrained(tmp_path, config=larger, ignore_mismatched_sizes=True)
    assert loaded.model.latent_pos_embed.pos_embed.shape[0] == 81


def test_adapters_load_into_a_model(tmp_path):
    config = LoraConfig(target_modules=tiny_bagel().lora_target_modules(), r=2, init_lora_weights=False)
    adapted = get_peft_model(tiny_bagel(), config)
    adapted.save_pretrained(tmp_path)
    model = tiny_bagel()
    model.load_adapter(str(tmp_path))
    inputs = contexts("bagel")
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, adapted(**inputs).logits)


def test_pickled_weights_are_refused_with_a_remedy(tmp_path):
    tiny_bagel_config().save_pretrained(tmp_path)
    torch.save(tiny_bagel().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="convert"):
        BagelForConditionalGeneration.from_pretrained(tmp_path)


def test_trl_tunes_on_plain_text_with_the_loss_of_a_plain_loop(tmp_path):
    rows = ["paint the circle red", "what colour is the square", "make it bigger and then blue", "yes no two"]
    arguments = SFTConfig(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=1, learning_rate=0.01, logging_steps=1,
        report_to=[], use_cpu=True, lr_scheduler_type="constant", optim="sgd", save_strategy="no", max_grad_norm=1e9,
        gradient_checkpointing=False, bf16=False, train_sampling_strategy="sequential", weight_decay=0.0,
    )  # fmt: skip
    trainer = SFTTrainer(tiny_bagel(), arguments, train_dataset=Dataset.from_dict({"text": rows}),
                         processing_class=tiny_tokenizer())  # fmt: skip
    trainer.train()
    found = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    model, tokenizer, expected = tiny_bagel().train(), tiny_tokenizer(), []
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.01)
    for row in rows[:3]:
        ids = torch.tensor([[*tokenizer(row)["input_ids"], tokenizer.eos_token_id]])
        loss = plain_loss(model(ids).logits, ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert found == pytest.approx(expected, rel=1e-4)


def test_processors_make_the_same_contexts_of_texts_given_by_place_or_name():
    processor = tiny_bagel_processor()
    expected = processor(text="what colour is this")["input_ids"]
    for given in (processor("what colour is this"), processor(["what colour is this"], padding=True)):
        torch.testing.assert_close(given["input_ids"], expected)
