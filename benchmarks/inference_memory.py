"""Memory of BAGEL while drawing, counted: `python -m benchmarks.inference_memory`.

Prints a Markdown table in GiB for a 1024 px edit with both views of its source and three branches: weights by how they
are stored, the keys and values of the contexts with the room for the image, and what a step keeps at its widest (the
MLP). Counted from the released configuration without allocating anything; memory of kernels and of the allocator is
not included.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

from uniedit_hf.models.bagel.configuration_bagel import BagelConfig
from uniedit_hf.models.bagel.modeling_bagel import BagelForConditionalGeneration


GIB = 2**30
# bytes of a weight of the decoder's layers; nf4 has a scale of 4 bytes for 64 weights, the others one for a row
WEIGHTS = {"bf16": 2.0, "fp8 or int8": 1.0, "nf4": 0.5 + 4 / 64}


def count(model: BagelForConditionalGeneration) -> tuple[int, int, int]:
    """Weights of the decoder's linear layers, of the autoencoder, and all others."""
    layers = model.model.language_model.layers
    linear = sum(module.weight.numel() for module in layers.modules() if isinstance(module, nn.Linear))
    vae = sum(parameter.numel() for parameter in model.vae.parameters())
    return linear, vae, sum(parameter.numel() for parameter in model.parameters()) - linear - vae


def contexts(config: BagelConfig, image: int, source: int, text: int, branches: int) -> int:
    """Bytes of the keys and values of an edit's contexts: full, without the text, the text alone."""
    decoder = config.text_config
    size = decoder.hidden_size // decoder.num_attention_heads
    token = 2 * 2 * decoder.num_key_value_heads * size * decoder.num_hidden_layers
    lengths = (source + text, source, text)[:branches]
    return token * sum(length + image + 2 for length in lengths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1024, help="of the image and its source, in pixels")
    parser.add_argument("--text", type=int, default=100, help="tokens of the instruction")
    options = parser.parse_args()
    config = BagelConfig()
    with torch.device("meta"):
        model = BagelForConditionalGeneration(config)
    linear, vae, others = count(model)
    image = (options.side // (8 * config.latent_patch_size)) ** 2
    patches = min(options.side, config.vision_config.image_size) // config.vision_config.patch_size
    cached = contexts(config, image, image + 2 + patches**2 + 2, options.text, 3)
    step = 3 * (image + 2) * (3 * config.text_config.intermediate_size + 4 * config.text_config.hidden_size) * 2
    print("| weights of the decoder's layers | weights | autoencoder fp32 | contexts | a step | sum |")
    print("|---|---|---|---|---|---|")
    for name, size in WEIGHTS.items():
        parts = [linear * size + 2 * others, 4 * vae, cached, step]
        print(f"| {name} | {' | '.join(f'{part / GIB:.1f}' for part in (*parts, sum(parts)))} |")


if __name__ == "__main__":
    main()
