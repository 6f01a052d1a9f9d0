"""The shape of the small model: a BAGEL of about 6 million parameters for images of 64 x 64 pixels.

The ViT's patches and the latent tokens are both squares of 16 pixels, so that both views of an image are 4 x 4 tokens
that start from the same table of positions, and positions in both views correspond.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from uniedit_hf.models.bagel import BagelConfig, BagelForConditionalGeneration, BagelImageProcessor, BagelProcessor
from uniedit_hf.small_world.scene import SIDE
from uniedit_hf.small_world.vocabulary import vocabulary


PATCH = 16
MARKERS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
UNKNOWN = "<unk>"
VAE_SETTINGS = (
    "base_channels", "channel_multipliers", "norm_num_groups", "num_res_blocks", "z_channels", "scaling_factor",
    "shift_factor",
)  # fmt: skip


def small_tokenizer() -> PreTrainedTokenizerFast:
    """One token for every word and punctuation mark of the small world."""
    ids = {token: index for index, token in enumerate([*MARKERS, UNKNOWN, *vocabulary()])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[a-z]+|[^\sa-z]"), behavior="removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        pad_token="<|endoftext|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        extra_special_tokens=["<|vision_start|>", "<|vision_end|>"],
        clean_up_tokenization_spaces=False,
    )


def small_config(tokenizer: PreTrainedTokenizerFast, vae: dict) -> BagelConfig:
    """Five layers of 192 channels, a ViT of three layers of 128, and the given autoencoder."""
    pad, bos, eos, start, end = tokenizer.convert_tokens_to_ids(list(MARKERS))
    marker_ids = {"pad_token_id": pad, "bos_token_id": bos, "eos_token_id": eos}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 192,
        "intermediate_size": 416,
        "num_hidden_layers": 5,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "max_position_embeddings": 1024,
        "rope_theta": 10000.0,
        "initializer_range": 0.06,
        **marker_ids,
    }
    vision = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": PATCH,
        "initializer_range": 0.06,
    }
    return BagelConfig(
        text_config=text,
        vision_config=vision,
        vae_config=vae,
        max_latent_size=SIDE // PATCH,
        timestep_shift=3.0,
        vision_start_token_id=start,
        vision_end_token_id=end,
        **marker_ids,
    )


def small_processor(tokenizer: PreTrainedTokenizerFast, config: BagelConfig) -> BagelProcessor:
    """Every image becomes 64 x 64 in both views."""
    size = {"longest_edge": SIDE, "shortest_edge": SIDE}
    images = BagelImageProcessor(
        vae_size=size,
        vit_size=size,
        vae_stride=PATCH,
        vit_stride=PATCH,
        latent_channels=config.vae_config.z_channels,
    )
    return BagelProcessor(images, tokenizer)


def new_model(vae_folder: Path, seed: int) -> tuple[BagelForConditionalGeneration, BagelProcessor]:
    """The model with the trained autoencoder of `vae.py` and random weights elsewhere, and its processor."""
    facts = json.loads((vae_folder / "vae.json").read_text())
    tokenizer = small_tokenizer()
    config = small_config(tokenizer, {name: facts[name] for name in VAE_SETTINGS})
    torch.manual_seed(seed)
    model = BagelForConditionalGeneration(config)
    model.vae.load_state_dict(load_file(vae_folder / "vae.safetensors"))
    return model, small_processor(tokenizer, config)


def save(model: BagelForConditionalGeneration, processor: BagelProcessor, folder: Path, state: dict | None = None):
    """Writes a checkpoint in 16 bit, which takes half the space and loads as 32 bit.

    Args:
        model: The model.
        processor: Its processor.
        folder: The folder to write.
        state: Other weights for its parameters, an average for instance.
    """
    weights = {name: (state or {}).get(name, weight).half() for name, weight in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=weights)
    processor.save_pretrained(folder)
