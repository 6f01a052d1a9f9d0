"""Tiny models with random weights, and images for them, for tests of everything that runs on a model.

They are the real classes at a size where a forward takes milliseconds; nothing is a stand-in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusImageProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from uniedit_hf.models.bagel import (
    BagelConfig,
    BagelForConditionalGeneration,
    BagelImageProcessor,
    BagelProcessor,
)
from uniedit_hf.models.janus import JanusForConditionalGeneration, JanusProcessor


MARKERS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
WORDS = "paint the a red blue green circle square what colour is this make it bigger and then yes no two".split()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, an unknown token, and BAGEL's markers behind them."""
    vocabulary = {token: index for index, token in enumerate(["<unk>", *WORDS, *MARKERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>", "<|vision_start|>", "<|vision_end|>"],
    )


def tiny_bagel_config(**options) -> BagelConfig:
    """Three layers of 64 channels; `options` are fields of `BagelConfig` or whole sub-configurations."""
    ids = {token: tiny_tokenizer().convert_tokens_to_ids(token) for token in MARKERS}
    marker_ids = {
        "pad_token_id": ids["<|endoftext|>"],
        "bos_token_id": ids["<|im_start|>"],
        "eos_token_id": ids["<|im_end|>"],
    }
    text = {
        "vocab_size": 32,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        **marker_ids,
    }
    vision = {
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 84,
        "patch_size": 14,
    }
    vae = {"base_channels": 32, "channel_multipliers": [1, 1, 1, 1], "num_res_blocks": 1}
    settings = {
        "text_config": text,
        "vision_config": vision,
        "vae_config": vae,
        "max_latent_size": 8,
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        **marker_ids,
    }
    return BagelConfig(**settings | options)


def tiny_bagel(seed: int = 0, **options) -> BagelForConditionalGeneration:
    """A model whose every weight is drawn, the zero-initialized ones too. Those of the model itself are twice the
    usual size and words are far apart, or it would repeat itself whatever it is asked."""
    model = BagelForConditionalGeneration(tiny_bagel_config(**options)).eval()
    draw_weights(model, seed)
    return model


def draw_weights(model, seed: int) -> None:
    """Draws all weights, from the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(0.1 * drawn)
            elif name.endswith("embed_tokens.weight"):
                parameter.copy_(drawn)
            elif not name.endswith("pos_embed"):
                parameter.copy_(drawn * (2 if name.startswith("model.") else 1) * parameter[0].numel() ** -0.5)


def tiny_bagel_processor() -> BagelProcessor:
    """Sizes that give a view 4 to 36 tokens."""
    return BagelProcessor(
        BagelImageProcessor(
            vae_size={"longest_edge": 96, "shortest_edge": 32},
            vit_size={"longest_edge": 84, "shortest_edge": 28},
        ),
        tiny_tokenizer(),
    )


JANUS_MARKERS = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}


def tiny_janus_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, signs and single spaces and line ends, with Janus-Pro's markers."""
    markers = ["<bos>", "<eos>", "<pad>", *JANUS_MARKERS.values()]
    words = ["<|", "|>:", "User", "Assistant", " ", "\n", *WORDS, *(f" {word}" for word in WORDS)]
    vocabulary = {token: index for index, token in enumerate([*markers, "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n| ?[a-zA-Z]+|[<|>:]+| "), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens=JANUS_MARKERS,
    )


def tiny_janus_config(**options) -> JanusConfig:
    """Two layers of 64 channels, 16 image tokens of 32 x 32 pixels; `options` are fields of `JanusConfig`."""
    text = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=1024, bos_token_id=0, eos_token_id=1,
        pad_token_id=2,
    )  # fmt: skip
    vision = JanusVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8, mlp_ratio=2.0,
        projection_dim=64, depth=2, num_image_tokens=16,
    )  # fmt: skip
    vq = JanusVQVAEConfig(
        embed_dim=8, num_embeddings=48, latent_channels=32, base_channels=32, channel_multiplier=(1, 1, 1, 1),
        num_res_blocks=1, projection_dim=64, num_hidden_layers=2, image_token_embed_dim=64, num_patches=4,
    )  # fmt: skip
    placeholder = tiny_janus_tokenizer().convert_tokens_to_ids("<image_placeholder>")
    parts = {"text_config": text, "vision_config": vision, "vq_config": vq, "image_token_id": placeholder}
    return JanusConfig(**parts | {"tie_word_embeddings": False} | options)


def tiny_janus(seed: int = 0, **options) -> JanusForConditionalGeneration:
    """A model whose every weight is drawn, as those of `tiny_bagel`; codes are of any length, unlike in a model that
    was just made."""
    model = JanusForConditionalGeneration(tiny_janus_config(**options)).eval()
    draw_weights(model, seed)
    model.generation_config = GenerationConfig(
        bos_token_id=0, eos_token_id=1, pad_token_id=2, do_sample=False, guidance_scale=5, max_length=128,
        generation_kwargs={"boi_token_id": tiny_janus_tokenizer().convert_tokens_to_ids("<begin_of_image>")},
    )  # fmt: skip
    return model


def tiny_janus_processor(**options) -> JanusProcessor:
    """32 x 32 pixels an image."""
    images = JanusImageProcessor(
        size={"height": 32, "width": 32}, min_size=4, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return JanusProcessor(images, tiny_janus_tokenizer(), num_image_tokens=16, **options)


@dataclass(frozen=True)
class Family:
    """What a test that runs over every model family needs of it.

    Args:
        model: Makes the tiny model.
        processor: Makes its processor.
        settings: Of training, where those of the tests do not fit.
    """

    model: Callable
    processor: Callable
    settings: dict[str, Any] = field(default_factory=dict)


FAMILIES = {
    "bagel": Family(tiny_bagel, tiny_bagel_processor),
    # every image has 16 tokens in every view
    "janus": Family(tiny_janus, tiny_janus_processor, {"max_tokens_per_pack": 200}),
}


def picture(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    """Random blocks of color, 8 pixels wide."""
    blocks = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)
