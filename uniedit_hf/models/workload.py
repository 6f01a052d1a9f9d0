"""The work of a pack, in counts that need no forward pass: the rows that pass each kind of layer, and the attention
pairs.

Both families have the same four kinds of rows: all tokens of the decoder, those of its understanding and generation
experts (Janus-Pro has one expert for all), patches that an understanding encoder reads, and rows that reach a head.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn


TEXT, READ, DRAWN = 1, 2, 3  # token types, the same in both families
CAUSAL, NOISE = 0, 2  # kinds of splits, see `uniedit_hf.attention`

# Pattern of module names (the first match decides) -> the field of `Workload` that counts the rows of these layers.
ROWS = {
    "bagel": (
        (r"(^|\.)vae\.", None),
        (r"\.vit_model\.", "read"),
        (r"\.connector\.", "seen"),
        (r"\.(vae2llm|time_embedder)(\.|$)", "drawn"),
        (r"\.llm2vae(\.|$)", "image_targets"),
        (r"\.layers\..*_moe_gen", "drawn"),
        (r"\.language_model\.layers\.", "understood"),
        (r"(^|\.)lm_head(\.|$)", "text_targets"),
    ),
    "janus": (
        (r"\.vqmodel\.", None),
        (r"\.vision_model\.", "read"),
        (r"\.aligner\.", "seen"),
        (r"\.generation_aligner\.", "drawn"),
        (r"\.generation_head\.", "image_targets"),
        (r"\.language_model\.layers\.", "tokens"),
        (r"(^|\.)lm_head(\.|$)", "text_targets"),
    ),
}


@dataclass(frozen=True)
class Workload:
    """Counts of one pack or of several.

    Args:
        tokens: Tokens of the decoder.
        drawn: Tokens in the drawing view: BAGEL's latents, Janus-Pro's VQ tokens.
        read: Patches that the understanding encoder reads.
        seen: Patches and stored features: the tokens that go from the encoder to the decoder.
        text_targets: Tokens with a text loss.
        image_targets: Tokens with an image loss.
        pairs: Pairs of a query and a key that it attends to, over all samples.
        read_pairs: The same in the understanding encoder, where a patch attends to its whole image.
        images: Height and width in pixels of every image that the autoencoder encodes.
    """

    tokens: int = 0
    drawn: int = 0
    read: int = 0
    seen: int = 0
    text_targets: int = 0
    image_targets: int = 0
    pairs: int = 0
    read_pairs: int = 0
    images: tuple[tuple[int, int], ...] = ()

    @property
    def understood(self) -> int:
        """Tokens of the understanding expert."""
        return self.tokens - self.drawn

    def __add__(self, other: Workload) -> Workload:
        return Workload(**{each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)})


def workload(features: Mapping[str, Any]) -> Workload:
    """Counts the work of a pack. For a family that is not in `ROWS` only tokens and targets are right.

    Args:
        features: The outputs of `pack`: (1, L) tensors of tokens, and the images.
    """
    types = features["token_type_ids"]
    if "vit_grids" in features:
        patches = features["vit_grids"].prod(-1)
    else:
        images = len(features.get("siglip_images", ()))
        patches = torch.full((images,), int((types == READ).sum()) // max(1, images))
    seen = int(patches.sum())
    if "vit_is_stored" in features:
        patches = patches[~torch.tensor(features["vit_is_stored"])]
    encoded = [each for each in features.get("vae_images", features.get("vq_images", ())) if each.shape[-3] == 3]
    return Workload(
        tokens=types.numel(),
        drawn=int((types == DRAWN).sum()),
        read=int(patches.sum()),
        seen=seen,
        text_targets=int(features["num_text_targets"]),
        image_targets=int(features["num_image_targets"]),
        pairs=_pairs(features),
        read_pairs=int(patches.square().sum()),
        images=tuple((image.shape[-2], image.shape[-1]) for image in encoded),
    )


def _pairs(features: Mapping[str, Any]) -> int:
    """Pairs of a query and a key that it attends to: causal within a sample, and for BAGEL whole images, where noised
    images are hidden from later tokens.
    """
    if "split_ids" not in features and "position_ids" not in features:
        return 0  # for families whose operations are not counted
    if "split_ids" not in features:
        starts = (features["position_ids"][0] == 0).nonzero()[:, 0].tolist()
        lengths = [end - start for start, end in zip(starts, [*starts[1:], features["position_ids"].shape[1]])]
        return sum(length * (length + 1) // 2 for length in lengths)
    splits = torch.stack([features[name][0] for name in ("sample_ids", "split_ids", "split_kinds")])
    found, lengths = torch.unique_consecutive(splits, dim=1, return_counts=True)
    pairs = before = 0
    sample = None
    for number, kind, length in zip(found[0].tolist(), found[2].tolist(), lengths.tolist()):
        before = before if number == sample else 0
        pairs += length * before + (length * (length + 1) // 2 if kind == CAUSAL else length * length)
        before, sample = before + (0 if kind == NOISE else length), number
    return pairs


def typical_workload(config, tokens: int) -> Workload:
    """A pack of `tokens` tokens of edits: each has a source image, an instruction of 130 tokens and a target image, as
    large as the model or the pack allows.
    """
    words = 130
    if hasattr(config, "max_latent_size"):
        largest_read, largest_drawn = config.vision_config.patches_per_side**2, config.max_latent_size**2
        stride = 8 * config.latent_patch_size
    else:
        largest_read = largest_drawn = config.vision_config.num_image_tokens
        stride = config.vision_config.image_size / largest_drawn**0.5
    words = min(words, max(1, tokens // 4))
    # at least two edits share a pack: BAGEL's packs of 11,520 tokens fit two of 5,530
    room = max(2, (max(tokens // 2, min(tokens, 5760)) - words) // 2)
    read, drawn = min(largest_read, room), min(largest_drawn, room)
    count = max(1, tokens // (read + words + drawn))
    side = round(drawn**0.5 * stride)
    return Workload(
        tokens=tokens,
        drawn=count * drawn,
        read=count * read,
        seen=count * read,
        image_targets=count * drawn,
        pairs=count * (read**2 + words * read + words**2 // 2 + drawn * (read + words + drawn)),
        read_pairs=count * read**2,
        images=((side, side),) * count,
    )


def rows_of(family: str, name: str) -> str | None:
    """The field of `Workload` that counts the rows a layer of this name runs on; `None` for the autoencoder, which is
    counted by pixels, and for layers without a matrix product.

    Raises:
        ValueError: If the family is unknown.
    """
    if family not in ROWS:
        raise ValueError(f"Operations are counted for the model types {', '.join(ROWS)}, not for {family!r}.")
    return next((kind for pattern, kind in ROWS[family] if re.search(pattern, name)), None)


@functools.lru_cache(maxsize=256)
def _encoder_operations(family: str, settings: str, height: int, width: int) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    settings = json.loads(settings)
    with torch.device("meta"):
        encode = _encoder(family, settings)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            features = encode(torch.empty(1, 3, height, width))
    # Janus-Pro compares every feature with every code
    codes = features.numel() * settings["num_embeddings"] if family == "janus" else 0
    return counter.get_total_flops() + 2 * codes


def _encoder(family: str, settings: dict) -> nn.Module:
    """The encoder of the autoencoder, without weights."""
    if family == "bagel":
        from .bagel.configuration_bagel import BagelVaeConfig
        from .bagel.encoders_bagel import build_vae

        return build_vae(BagelVaeConfig(**settings)).encoder
    from transformers.models.janus.modeling_janus import JanusVQVAE, JanusVQVAEConfig

    vq = JanusVQVAE(JanusVQVAEConfig(**settings))
    return nn.Sequential(vq.encoder, vq.quant_conv)


def encoder_operations(config, height: int, width: int) -> int:
    """Floating-point operations of encoding one image of this size with the autoencoder."""
    part = config.vae_config if config.model_type == "bagel" else config.vq_config
    return _encoder_operations(config.model_type, part.to_json_string(use_diff=False), height, width)
