"""The model, the packs and the data that `benchmarks.gpu_training` measures with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from io import BytesIO
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as Picture
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from uniedit_hf.attention import CAUSAL, FULL, NOISE, Packed, Splits, block_mask
from uniedit_hf.models.bagel import BagelConfig, BagelForConditionalGeneration, BagelImageProcessor, BagelProcessor
from uniedit_hf.models.bagel.configuration_bagel import LATENT, TEXT, VIT
from uniedit_hf.models.bagel.routing_bagel import PackRouting, route_pack


WORDS = [f"word{number}" for number in range(64)]
MARKERS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
# dense bf16 by datasheet, FLOP/s
RATES = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12, "4090": 165e12}


def peak_rate() -> float:
    """The dense bf16 rate of this card, FLOP/s; 1 TFLOP/s where it is unknown."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((rate for card, rate in RATES.items() if card in name), 1e12)


@dataclass(frozen=True)
class Shape:
    """The shape of what is measured.

    Args:
        full: Whether it is the released width, on a GPU.
        layers: Layers of the decoder.
        vit: (rows, columns) of the ViT view of an edit of the decoder section.
        text: Tokens of its instruction, markers included.
        latent: (rows, columns) of its latents.
        edits: How many edits are in that pack.
        side: Pixels of the images of the trainer section.
        pack_tokens: Tokens of its packs at most.
        accumulation: Packs of its steps.
        workers: Workers of its loader.
        least_seconds: That a way of the decoder section may take.
        trainer_seconds: That a way of the trainer section may take.
    """

    full: bool
    layers: int
    vit: tuple[int, int]
    text: int
    latent: tuple[int, int]
    edits: int
    side: int
    pack_tokens: int
    accumulation: int
    workers: int
    least_seconds: float
    trainer_seconds: float

    @classmethod
    def released(cls, layers: int) -> Shape:
        """Two edits of 2,700 ViT, 130 text and 2,700 latent tokens."""
        return cls(True, layers, (38, 71), 132, (38, 71), 2, 832, 11520, 8, 12, 20, 60)

    @classmethod
    def tiny(cls) -> Shape:
        """For a CPU."""
        return cls(False, 2, (4, 6), 9, (4, 6), 2, 64, 240, 2, 0, 1, 1)

    def changed(self, number: int) -> Shape:
        """Other lengths, a few tokens more each time."""
        rows, columns = self.vit
        return replace(self, text=self.text + 3 + 7 * number, latent=(rows - 1, columns - number % 2))


class DrawnPack(NamedTuple):
    """A pack whose embedded tokens are drawn."""

    splits: Splits
    routing: PackRouting
    und: torch.Tensor  # (U, D)
    gen: torch.Tensor  # (G, D)


def build_model(shape: Shape, device: torch.device) -> BagelForConditionalGeneration:
    """The released width in bf16 with random weights made on the device, or a tiny model in fp32."""
    ids = {token: index for index, token in enumerate(["<unk>", *WORDS, *MARKERS])}
    marks = {
        "pad_token_id": ids["<|endoftext|>"],
        "bos_token_id": ids["<|im_start|>"],
        "eos_token_id": ids["<|im_end|>"],
    }
    vision = {"vision_start_token_id": ids["<|vision_start|>"], "vision_end_token_id": ids["<|vision_end|>"]}
    if shape.full:
        config = BagelConfig(text_config={"num_hidden_layers": shape.layers, **marks}, **marks, **vision)
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device(device):
                model = BagelForConditionalGeneration(config)
        finally:
            torch.set_default_dtype(default)
    else:
        text = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": shape.layers}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, **marks}
        seen = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
        drawn = {"base_channels": 32, "channel_multipliers": [1, 1, 1, 1], "num_res_blocks": 1}
        config = BagelConfig(text_config=text | heads, vision_config=seen, vae_config=drawn, **marks, **vision)
        model = BagelForConditionalGeneration(config)
    with torch.no_grad():  # a zero output would stop the gradients of the decoder
        model.model.llm2vae.weight.normal_(std=0.02)
    return model


def drawn_pack(model: BagelForConditionalGeneration, shape: Shape) -> DrawnPack:
    """Edits of a ViT view, an instruction and a drawn image, as the decoder meets them."""
    vit, latent = shape.vit[0] * shape.vit[1], shape.latent[0] * shape.latent[1]
    sample, split, kind, types = [], [], [], []
    for number in range(shape.edits):
        for of_kind, middle, length in ((FULL, VIT, vit), (CAUSAL, TEXT, shape.text - 2), (NOISE, LATENT, latent)):
            count = length + 2
            split += [max(split, default=-1) + 1] * count
            sample += [number] * count
            kind += [of_kind] * count
            types += [TEXT, *[middle] * length, TEXT]
    row = [torch.tensor([each]) for each in (sample, split, kind)]
    types = torch.tensor([types])
    positions = torch.arange(types.shape[1])[None]
    grids = {"vit_grids": [shape.vit] * shape.edits, "latent_grids": [shape.latent] * shape.edits}
    labels = torch.full_like(types, -100)
    routing = route_pack(types * 0, types, positions, *row, labels, **grids, drawn=[True] * shape.edits)
    device, size = model.device, model.config.text_config.hidden_size
    drawn = {"device": device, "dtype": model.dtype, "requires_grad": True}  # as behind trained embeddings
    und, gen = (torch.randn(count, size, **drawn) for count in (routing.num_und, routing.num_gen))
    return DrawnPack(Splits(*(each.to(device) for each in row)), routing.to(device), und, gen)


def layout_of(model, pack: DrawnPack, implementation: str | None = None) -> Packed:
    """The decoder's attention layout, made for every pack."""
    implementation = implementation or model.config.text_config._attn_implementation
    flex = implementation == "flex_attention"
    return Packed(block_mask(pack.splits, pack.routing.order) if flex else pack.routing.splits)


def tiny_processor(shape: Shape) -> BagelProcessor:
    """Images keep their size in the VAE's view; the ViT's has about as many tokens."""
    vocabulary = {token: index for index, token in enumerate(["<unk>", *WORDS, *MARKERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    vit = shape.side // 16 * 14
    return BagelProcessor(
        BagelImageProcessor(
            vae_size={"longest_edge": shape.side, "shortest_edge": 32},
            vit_size={"longest_edge": vit, "shortest_edge": 28},
        ),
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            unk_token="<unk>",
            pad_token="<|endoftext|>",
            eos_token="<|im_end|>",
            extra_special_tokens=["<|im_start|>", "<|vision_start|>", "<|vision_end|>"],
        ),
    )


def edit_data(shape: Shape, count: int) -> Dataset:
    """Edits of images of a few sizes with instructions of many lengths."""
    rows = []
    for number in range(count):
        width, height = shape.side, shape.side - 16 * (number % 3)
        rows.append(
            {
                "id": f"row-{number}",
                "source_image": _png(width, height, 2 * number),
                "instruction": " ".join(WORDS[(number + i) % len(WORDS)] for i in range(20 + 37 * number % 100)),
                "target_image": _png(width, height, 2 * number + 1),
            }
        )
    text, image = Value("string"), Image()
    features = Features({"id": text, "source_image": image, "instruction": text, "target_image": image})
    return Dataset.from_list(rows, features)


def _png(width: int, height: int, seed: int) -> dict:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    file = BytesIO()
    Picture.fromarray(coarse).resize((width, height), Picture.Resampling.BICUBIC).save(file, "PNG", compress_level=1)
    return {"bytes": file.getvalue(), "path": None}
