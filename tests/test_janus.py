"""Janus-Pro on transformers' classes: image tokens of the reference, the layout, and every trap that lay there."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_models import picture, tiny_janus, tiny_janus_processor
from torch.nn import functional
from transformers import AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor, JanusImageProcessor
from transformers.models.janus import (
    JanusForConditionalGeneration as StockJanus,
    JanusProcessor as StockProcessor,
)

from uniedit_hf.images import ImageError
from uniedit_hf.models.janus import JanusForConditionalGeneration, JanusProcessor
from uniedit_hf.models.janus.image_tokens import nearest_codes
from uniedit_hf.segments import ImageSegment, ImageTokens, Sample, TextSegment


FIXTURE = "tests/fixtures/janus/janus_quantizer.safetensors"


@pytest.fixture(scope="module")
def model():
    return tiny_janus()


@pytest.fixture(scope="module")
def processor():
    return tiny_janus_processor()


@pytest.fixture(scope="module")
def saved(tmp_path_factory, model, processor):
    folder = tmp_path_factory.mktemp("janus")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def edit(**changes) -> Sample:
    source, target = picture(48, 32, 1), picture(48, 32, 2)
    return Sample(
        [
            ImageSegment(source, "siglip"),
            ImageSegment(source, "vq"),
            TextSegment("paint the circle red"),
            ImageSegment(target, "vq", loss=True, **changes),
        ],
        "edit",
    )


ANSWER = Sample(
    [ImageSegment(picture(32, 32, 3), "siglip"), TextSegment("what is this"), TextSegment("a circle", loss=True)], "a"
)


def losses(model, processor, *samples):
    features = processor.pack(samples)
    return model(**{name: value for name, value in features.items() if not name.startswith("num_")})


# ---- image tokens


def test_tokens_of_the_reference(request):
    tensors = load_file(request.config.rootpath / FIXTURE)
    tokens = nearest_codes(tensors["features"], tensors["codebook"])
    assert torch.equal(tokens, tensors["token_ids"])
    norms = tensors["codebook"].norm(dim=-1)
    assert norms.max() > 2 * norms.min(), "the codes differ in length, or the test would prove nothing"
    codes = functional.normalize(tensors["codebook"], dim=-1)[tokens]
    assert torch.equal(codes.transpose(1, 2).reshape(4, 8, 6, 6), tensors["decoder_input"])


def test_the_decoder_sees_the_input_of_the_reference(request):
    """Through a model with the reference's codebook, whose own quantizer would take other codes."""
    tensors = load_file(request.config.rootpath / FIXTURE)
    config = tiny_janus().config
    config.vq_config.num_embeddings, config.vq_config.num_patches = 256, 6
    model = JanusForConditionalGeneration(config).eval()
    vqmodel = model.model.vqmodel
    vqmodel.quantize.embedding.weight.data = tensors["codebook"]
    given = []
    vqmodel.post_quant_conv.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
    model.decode_tokens(tensors["token_ids"])
    assert torch.equal(given[0], tensors["decoder_input"])
    stock = vqmodel.quantize(tensors["features"])[2].view(4, -1)
    assert (stock == tensors["token_ids"]).float().mean() < 0.9


def test_the_model_takes_the_code_of_greatest_cosine(model, processor):
    pixels = processor.prepare(picture(32, 32, 7))[None]
    vqmodel = model.model.vqmodel
    with torch.no_grad():
        features = vqmodel.quant_conv(vqmodel.encoder(pixels))[0].flatten(1).T
    cosines = functional.cosine_similarity(features[:, None], vqmodel.quantize.embedding.weight[None], dim=-1)
    assert torch.equal(model.encode_images(pixels)[0], cosines.argmax(-1))
    stock = vqmodel.encode(pixels).image_tokens
    assert not torch.equal(model.encode_images(pixels)[0], stock), "codes differ in length here"


def test_round_trip(model, processor):
    pixels = torch.stack([processor.prepare(picture(32, 32, seed)) for seed in range(3)])
    tokens = model.encode_images(pixels)
    assert tokens.shape == (3, 16) and tokens.dtype == torch.int64 and len(tokens.unique()) > 3
    again = model.decode_tokens(tokens)
    assert again.shape == pixels.shape and again.dtype == torch.float32
    assert torch.equal(torch.stack(model.round_trip(pixels)), again)
    assert processor.to_pil(again[0]).size == (32, 32)


def test_tokens_do_not_depend_on_the_precision_of_the_rest(saved, model, processor):
    pixels = processor.prepare(picture(32, 32, 4))[None]
    half = JanusForConditionalGeneration.from_pretrained(saved, dtype=torch.bfloat16)
    assert half.model.language_model.embed_tokens.weight.dtype == torch.bfloat16
    assert torch.equal(half.encode_images(pixels), model.encode_images(pixels))
    assert half.image_tokenizer == model.image_tokenizer != tiny_janus(seed=1).image_tokenizer
    assert losses(half, processor, edit(), ANSWER).image.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.encode_images(pixels), half.encode_images(pixels))


def test_stored_tokens_train_the_same(model, processor):
    tokens = model.encode_images([processor.prepare(picture(48, 32, 2))])[0].tolist()
    stored = edit(tokens=ImageTokens(tokens, model.image_tokenizer))
    assert torch.equal(losses(model, processor, stored).image_sum, losses(model, processor, edit()).image_sum)
    mixed = losses(model, processor, stored, edit())
    assert mixed.image_sum.item() == pytest.approx(2 * losses(model, processor, edit()).image_sum.item(), rel=1e-5)


def test_stored_tokens_of_another_model_are_refused(model, processor):
    foreign = edit(tokens=ImageTokens([0] * 16, "0123456789abcdef"))
    with pytest.raises(ValueError, match="made by 0123456789abcdef, but this model's image tokenizer is"):
        losses(model, processor, foreign)
    with pytest.raises(ImageError, match="has 9 stored tokens, but this model's images have 16"):
        losses(model, processor, edit(tokens=ImageTokens([0] * 9, model.image_tokenizer)))


# ---- what is learned


def test_every_image_token_is_supervised_the_first_too(model, processor):
    """Published code shifts the labels once more and so never learns the first token."""
    features = processor.pack([edit()])
    assert features["num_image_targets"] == 16
    images = {name: features[name] for name in ("siglip_images", "vq_tokens", "vq_images")}
    target = model.encode_images(features["vq_images"])[-1]
    with torch.no_grad():
        found = losses(model, processor, edit())
        tokens = model._tokens_of_views(images["vq_images"], images["vq_tokens"], None)
        embeds = model.embed(features["input_ids"], features["token_type_ids"], images["siglip_images"], tokens)
        hidden = model.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state[0]
        last = int((features["token_type_ids"][0] == 3).nonzero()[-1])
        begin = last - 16
        assert features["input_ids"][0, begin] == processor.markers.begin
        logits = model.model.generation_head(hidden[begin:last])
    expected = functional.cross_entropy(logits, target, reduction="sum")
    assert found.image_sum.item() == pytest.approx(expected.item(), rel=1e-5) and found.image_count == 16
    changed = copy.deepcopy(features)
    changed["vq_tokens"][-1] = target
    changed["vq_images"] = changed["vq_images"][:1]
    changed["vq_tokens"][-1, 0] = (target[0] + 1) % 48
    changed = {name: value for name, value in changed.items() if not name.startswith("num_")}
    assert model(**changed).image_sum.item() != pytest.approx(found.image_sum.item(), rel=1e-3)


def test_heads_see_supervised_rows_only(model, processor):
    rows = {}
    hooks = [
        head.register_forward_pre_hook(lambda _, x, name=name: rows.__setitem__(name, len(x[0])))
        for name, head in (("text", model.lm_head), ("image", model.model.generation_head))
    ]
    losses(model, processor, edit(), ANSWER)
    for hook in hooks:
        hook.remove()
    assert rows == {"text": 3, "image": 16}


@pytest.mark.parametrize("kinds", [["edit"], ["answer"], ["text"], ["drawing"], ["edit", "answer"]])
@pytest.mark.parametrize("encoder", [True, False])
def test_every_trained_parameter_gets_a_gradient(processor, kinds, encoder):
    model = tiny_janus().train()
    model.model.vision_model.requires_grad_(encoder)
    samples = {
        "edit": edit(),
        "answer": ANSWER,
        "text": Sample([TextSegment("yes", loss=True)]),
        "drawing": Sample(edit().segments[2:]),
    }
    found = losses(model, processor, *(samples[kind] for kind in kinds))
    (found.text + found.image).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert (
        not any("vqmodel" in name for name in trained) and any("vision_model" in name for name in trained) == encoder
    )
    assert [name for name, p in model.named_parameters() if name in trained and p.grad is None] == []
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert ("lm_head.weight" in moved) == bool({"answer", "text"} & set(kinds))
    assert ("model.generation_head.vision_head.weight" in moved) == bool({"edit", "drawing"} & set(kinds))
    assert ("model.aligner.fc1.weight" in moved) == bool({"edit", "answer"} & set(kinds))


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flex_attention"])
def test_samples_of_a_pack_are_apart(processor, implementation):
    """In rows of their own, or by positions that begin anew, which transformers overlooks when there is a cache."""
    model = tiny_janus()
    with torch.no_grad():
        alone = [losses(model, processor, sample) for sample in (edit(), ANSWER)]
        model.set_attn_implementation({"text_config": implementation})
        assert model.model.language_model.config._attn_implementation == implementation
        with torch.compiler.set_stance("force_eager"):  # compiling FlexAttention takes half a minute
            packed = losses(model, processor, edit(), ANSWER, edit())
    assert packed.image_sum.item() == pytest.approx(2 * alone[0].image_sum.item(), rel=1e-5)
    assert packed.text_sum.item() == pytest.approx(alone[1].text_sum.item(), rel=1e-5)


def test_a_dropped_segment_becomes_padding(model, processor):
    marks = processor.markers
    whole = processor.pack([edit()])["input_ids"][0]
    segments = edit().segments
    dropped = [ImageSegment(x.image, x.view, dropped=True) for x in segments[:2]]
    dropped.append(TextSegment("paint the circle red", dropped=True))
    ids = processor.pack([Sample([*dropped, segments[3]])])["input_ids"][0]
    assert len(ids) == len(whole)
    begin = len(ids) - 18
    assert ids[0] == marks.bos and (ids[1:begin] == marks.pad).all() and ids[begin] == marks.begin
    text_only = processor.pack([Sample([*segments[:2], dropped[2], segments[3]])])["input_ids"][0]
    assert (text_only != marks.pad)[: 1 + 4 + 18 + 18].all() and (text_only[41:begin] == marks.pad).all()


# ---- the words around it, as transformers lays them out


@pytest.mark.parametrize("system_prompt", [False, True])
def test_questions_are_laid_out_as_in_transformers(model, system_prompt):
    processor = tiny_janus_processor(use_default_system_prompt=system_prompt)
    ours = processor([Sample(ANSWER.segments[:2])])
    stock = StockProcessor(processor.image_processor, processor.tokenizer, num_image_tokens=16)
    stock.use_default_system_prompt = system_prompt
    theirs = stock(
        text=["<|User|>: <image_placeholder>\nwhat is this\n\n<|Assistant|>:"],
        images=[ANSWER.segments[0].image],
        return_tensors="pt",
    )
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    assert torch.equal(ours["siglip_images"], theirs["pixel_values"].reshape(1, 3, 32, 32))
    options = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(**ours, **options), StockJanus.generate(model, **theirs, **options))


def test_the_processor_of_transformers_is_still_there(processor):
    stock = StockProcessor(processor.image_processor, processor.tokenizer, num_image_tokens=16)
    question = {"text": ["<|User|>: <image_placeholder>\nwhat\n\n<|Assistant|>:"], "images": [picture(32, 32)]}
    for name, value in stock(**question, return_tensors="pt").items():
        assert torch.equal(processor(**question, return_tensors="pt")[name], value)
    assert torch.equal(
        processor(["a red circle"], generation_mode="image", return_tensors="pt")["input_ids"],
        stock(["a red circle"], generation_mode="image", return_tensors="pt")["input_ids"],
    )


def test_counts_are_those_of_packs(processor):
    many = Sample(
        [
            TextSegment("what is this"),
            TextSegment("a circle", loss=True),
            ImageSegment(picture(32, 32), "siglip"),
            ImageSegment(picture(32, 32), "siglip", dropped=True),
            TextSegment([12, 13]),
            TextSegment("and then", dropped=True),
            ImageSegment(picture(32, 32), "vq", loss=True),
            TextSegment("yes"),
            ImageSegment(picture(32, 32), "siglip"),
        ]
    )
    for system_prompt in (False, True):
        processor.use_default_system_prompt = system_prompt
        for sample in (edit(), ANSWER, many, Sample([TextSegment([])])):
            assert processor.num_tokens(sample) == processor.pack([sample])["input_ids"].shape[1]
    processor.use_default_system_prompt = False


# ---- transformers' classes and folders


def test_auto_classes_give_ours_and_folders_stay_theirs(saved, model):
    ours = AutoModelForMultimodalLM.from_pretrained(saved)
    assert type(ours) is type(AutoModelForImageTextToText.from_pretrained(saved)) is JanusForConditionalGeneration
    assert type(AutoProcessor.from_pretrained(saved)) is JanusProcessor
    stock = StockJanus.from_pretrained(saved)
    assert type(stock) is StockJanus is transformers.JanusForConditionalGeneration
    assert all(torch.equal(*pair) for pair in zip(stock.state_dict().values(), model.state_dict().values()))
    assert type(StockProcessor.from_pretrained(saved)) is StockProcessor
    config = json.loads((saved / "config.json").read_text())
    assert config["model_type"] == "janus" and config["architectures"] == ["JanusForConditionalGeneration"]


def test_flex_attention_is_the_decoder_s(saved):
    """As the trainer asks for it where there is a GPU; the encoder does not have it."""
    loaded = AutoModelForMultimodalLM.from_pretrained(saved, attn_implementation="flex_attention")
    assert loaded.model.language_model.config._attn_implementation == "flex_attention"
    assert loaded.model.vision_model.config._attn_implementation == "sdpa"


def test_the_forward_of_transformers_is_still_there(model, processor):
    inputs = processor(text=["<|User|>: <image_placeholder>\nwhat"], images=[picture(32, 32)], return_tensors="pt")
    stock = StockJanus(model.config).eval()
    stock.load_state_dict(model.state_dict())
    labels = inputs["input_ids"]
    assert torch.equal(model(**inputs, labels=labels).loss, stock(**inputs, labels=labels).loss)
    assert torch.equal(model(**inputs).logits, stock(**inputs).logits)


def test_what_is_not_tied_stays_so(saved, tmp_path, model):
    """Released configurations do not say that embeddings and head differ; transformers would call them tied."""
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    del config["tie_word_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert StockJanus.from_pretrained(tmp_path).config.tie_word_embeddings, "the trap is still there"
    loaded = JanusForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.tie_word_embeddings is False
    loaded.tie_weights()
    loaded.resize_token_embeddings(70)
    loaded.save_pretrained(tmp_path / "again")
    again = JanusForConditionalGeneration.from_pretrained(tmp_path / "again")
    assert torch.equal(again.lm_head.weight[:64], model.lm_head.weight)
    assert not torch.equal(again.lm_head.weight, again.get_input_embeddings().weight)


def test_pictures_that_drawing_would_ignore_are_refused(model, processor):
    inputs = processor(text=["<image_placeholder>make it red"], images=[picture(32, 32)], generation_mode="image")
    inputs = inputs.convert_to_tensors("pt")
    with pytest.raises(ValueError, match="does not see pixel_values: use generate_images"):
        model.generate(**inputs, generation_mode="image")


def test_guidance_of_1_is_refused_where_transformers_breaks(model, processor):
    inputs = processor(text=["a red circle"], generation_mode="image", return_tensors="pt")
    with pytest.raises(RuntimeError):
        StockJanus.generate(model, **inputs, generation_mode="image", guidance_scale=1)
    with pytest.raises(ValueError, match="guidance_scale is 1, .* needs more than 1: use generate_images"):
        model.generate(**inputs, generation_mode="image", guidance_scale=1)


def test_the_marker_of_images_is_found_or_asked_for(processor):
    model = tiny_janus()
    inputs = processor(text=["a red circle"], generation_mode="image", return_tensors="pt")
    expected = model.generate(**inputs, generation_mode="image", do_sample=False)
    del model.generation_config.generation_kwargs
    with pytest.raises(ValueError, match="does not say which token begins an image: set generation_kwargs"):
        model.generate(**inputs, generation_mode="image", do_sample=False)
    model.generation_config.boi_token_id = processor.markers.begin  # as old conversions wrote it
    assert torch.equal(model.generate(**inputs, generation_mode="image", do_sample=False), expected)


def test_an_image_processor_with_another_mean_is_refused():
    processor = tiny_janus_processor()
    processor.image_processor = JanusImageProcessor(size={"height": 32, "width": 32}, min_size=4)
    with pytest.raises(ValueError, match="Janus-Pro sees pixels in \\[-1, 1\\]: set both to \\[0.5, 0.5, 0.5\\]"):
        processor.pack([edit()])
    processor(text=["<image_placeholder>"], images=[picture(32, 32)])  # as transformers does


# ---- one geometry, nothing squeezed


@pytest.mark.parametrize(("size", "kept"), [((64, 64), (32, 32)), ((64, 32), (32, 16)), ((20, 60), (11, 32))])
def test_pictures_are_fitted_and_padded(processor, size, kept):
    white = processor.prepare(picture(*size).point(lambda value: 255))
    width, height = kept
    inside = torch.zeros(32, 32, dtype=torch.bool)
    top, left = (32 - height) // 2, (32 - width) // 2
    inside[top : top + height, left : left + width] = True
    assert (white[:, inside] == 1).all() and ((white[:, ~inside] + 1 / 255).abs() < 1e-6).all()
    assert processor.output_size(picture(*size)) == kept


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda p, m: p.open_source(picture(100, 4)), "is 100 x 4 pixels, which Janus-Pro would scale to 32 x 1"),
        (lambda p, m: p.num_tokens(Sample([ImageSegment(None, "vq", size=(100, 4))])), "it needs 4 per side: crop it"),
        (lambda p, m: p.pack([Sample([ImageSegment(torch.zeros(3, 32, 16), "vq")])]), "the shape (3, 32, 16), but"),
        (lambda p, m: m.encode_images(torch.zeros(1, 3, 32, 16)), "the model takes (3, 32, 32): prepare them"),
        (lambda p, m: p.pack([Sample([ImageSegment(picture(8, 8), "vq", size=(9, 8))])]), "but its row gives 9 x 8"),
        (
            lambda p, m: p.pack([Sample([ImageSegment(picture(8, 8), "vit")])]),
            "view 'vit', but JanusProcessor has the views",
        ),
        (
            lambda p, m: p.num_tokens(Sample([ImageSegment(picture(8, 8), "vae")])),
            "view 'vae', but",
        ),
        (lambda p, m: p.pack([]), "A pack needs at least one sample"),
        (lambda p, m: p([]), "There is nothing to do"),
    ],
)
def test_bad_input(model, processor, act, sentence):
    with pytest.raises(ValueError) as refused:
        act(processor, model)
    assert sentence in str(refused.value) and "\n" not in str(refused.value)


def test_a_tokenizer_without_markers_is_refused():
    processor = tiny_janus_processor()
    processor.tokenizer.pad_token = None
    with pytest.raises(ValueError, match="does not have all tokens for beginning, end, padding and images"):
        processor.pack([ANSWER])
