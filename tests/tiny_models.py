"""Tiny models with random weights, and pictures for them, for tests of everything that runs on a model.

They are the real classes at a size where a forward takes milliseconds; nothing is a stand-in.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from uniedit_hf.models.bagel import (
    BagelConfig,
    BagelForConditionalGeneration,
    BagelImageProcessor,
    BagelProcessor,
)


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
    """A model whose every weight is drawn, the zero-initialised ones too. Those of the model itself are twice the
    usual size and words are far apart, or it would repeat itself whatever it is asked."""
    model = BagelForConditionalGeneration(tiny_bagel_config(**options)).eval()
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
    return model


def tiny_bagel_processor() -> BagelProcessor:
    """Sizes that give a view 4 to 36 tokens."""
    return BagelProcessor(
        BagelImageProcessor(
            vae_size={"longest_edge": 96, "shortest_edge": 32},
            vit_size={"longest_edge": 84, "shortest_edge": 28},
        ),
        tiny_tokenizer(),
    )


def picture(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    """Random blocks of colour, 8 pixels wide."""
    blocks = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)
