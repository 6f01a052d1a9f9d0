"""How fast a GPU draws with a BAGEL: `python -m benchmarks.gpu [--layers 28]`.

Prints a JSON line for drawing: seconds of a 1024 x 1024 image with two guidance branches, at the released width and
the given number of layers. Training is measured by `benchmarks.gpu_training`.

Without a GPU the same code runs with a tiny shape, which only shows that the script works.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

from uniedit_hf.attention import CAUSAL
from uniedit_hf.models.bagel.configuration_bagel import TEXT, BagelConfig
from uniedit_hf.models.bagel.generation_bagel import ImageSettings
from uniedit_hf.models.bagel.modeling_bagel import BagelForConditionalGeneration


def build(device, layers: int) -> BagelForConditionalGeneration:
    """The released width with fewer layers in bf16, or a tiny model in fp32 on a CPU."""
    if device.type == "cuda":
        config = BagelConfig(text_config={"num_hidden_layers": layers})
        config._attn_implementation = "flex_attention"
        with torch.device(device):
            model = BagelForConditionalGeneration(config).to(torch.bfloat16)
        model.vae.float()
        return model
    text = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 1,
    }
    return BagelForConditionalGeneration(
        BagelConfig(
            text_config=text | heads,
            vision_config={
                "hidden_size": 64,
                "intermediate_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 4,
            },
            vae_config={"base_channels": 32, "channel_multipliers": [1, 1, 1, 1], "num_res_blocks": 1},
            vision_start_token_id=4,
            vision_end_token_id=5,
        )
    )


def drawing(model, device, side: int, timesteps: int) -> dict[str, float]:
    """One image from a prompt, in two branches."""
    model.eval()
    ids = torch.randint(6, 200, (2, 40), device=device)
    mask = torch.ones_like(ids)
    mask[1] = 0
    contexts = {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": torch.arange(40, device=device).expand(2, -1),
        "token_type_ids": mask * TEXT,
        "sample_ids": mask - 1,
        "split_ids": mask - 1,
        "split_kinds": torch.full_like(ids, CAUSAL),
    }
    settings = [ImageSettings(height=side, width=side, num_timesteps=timesteps)]
    _synchronize(device)
    start = time.perf_counter()
    model.generate_images(settings, torch.tensor([[0, 1, 0]]), **contexts)
    _synchronize(device)
    return {"side": side, "timesteps": timesteps, "seconds": time.perf_counter() - start}


def _synchronize(device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=28)
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    side, timesteps = (1024, 50) if gpu else (64, 4)
    name = torch.cuda.get_device_name() if gpu else "CPU, tiny shape"
    print(json.dumps({"device": name, "torch": torch.__version__}))
    model = build(device, options.layers)
    print(json.dumps({"drawing": drawing(model, device, side, timesteps)}))


if __name__ == "__main__":
    main()
