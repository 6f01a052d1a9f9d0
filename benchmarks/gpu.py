"""What a GPU does with a BAGEL: `python -m benchmarks.gpu [--layers 28] [--tokens 11520]`.

Prints one JSON line each for
1. attention: FlexAttention against the dense mask on drawn splits, forward and backward (largest relative errors);
2. training: seconds of a step, tokens a second and peak memory, forward and backward with checkpointing, at the
   released width and the given number of layers;
3. drawing: seconds of a 1024 x 1024 image with two guidance branches.

Without a GPU the same code runs with a tiny shape, which only shows that the script works.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

from uniedit_hf.attention import CAUSAL, FULL, NOISE, Packed, Splits, block_mask, sample_grid
from uniedit_hf.models.bagel.configuration_bagel import LATENT, TEXT, VIT, BagelConfig
from uniedit_hf.models.bagel.generation_bagel import ImageSettings
from uniedit_hf.models.bagel.modeling_bagel import BagelForConditionalGeneration


def splits_of(lengths: list[list[tuple[int, int]]], device) -> Splits:
    """One packed row from the (kind, length) of every split of every sample."""
    sample, split, kind = [], [], []
    for number, splits in enumerate(lengths):
        for of_kind, length in splits:
            sample += [number] * length
            split += [len(set(split))] * length
            kind += [of_kind] * length
    return Splits(*(torch.tensor(each, device=device)[None] for each in (sample, split, kind)))


def edit_splits(tokens: int, image: int) -> list[list[tuple[int, int]]]:
    """As many edits (ViT image, text, noised image) as fit: the splits of each."""
    one = [(FULL, image), (CAUSAL, 130), (NOISE, image)]
    return [one] * max(1, tokens // (2 * image + 130))


def attention_errors(device, tokens: int) -> dict[str, float]:
    """FlexAttention against SDPA with a dense mask, on the same queries, keys and values."""
    from transformers.integrations.flex_attention import flex_attention_forward
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    splits = splits_of(edit_splits(tokens, max(16, tokens // 6)), device)
    length = splits.sample.shape[1]
    order = torch.randperm(length, device=device)  # any routing must do
    generator = torch.Generator(device).manual_seed(0)
    shapes = ((length, 28, 128), (length, 4, 128), (length, 4, 128))
    drawn = [torch.randn(shape, generator=generator, device=device) for shape in shapes]
    results = []
    for attend, layout in (
        (sdpa_attention_forward, sample_grid(splits, order)),
        (flex_attention_forward, Packed(block_mask(splits, order))),
    ):
        query, key, value = (each.clone().requires_grad_(device.type == "cuda") for each in drawn)
        module = torch.nn.Module()
        module.num_key_value_groups, module.is_causal = 7, False
        output, _ = attend(
            module, layout.spread(query), layout.spread(key), layout.spread(value), layout.mask, scaling=128**-0.5
        )
        output = layout.gather(output)
        if output.requires_grad:  # there is no FlexAttention backward on a CPU
            output.square().sum().backward()
        results.append([output.detach(), *(x.grad for x in (query, key, value) if x.grad is not None)])
    names = ("forward", "query_gradient", "key_gradient", "value_gradient")
    return {
        name: ((ours - dense).abs().max() / dense.abs().max()).item() for name, dense, ours in zip(names, *results)
    }


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


def training(model, device, tokens: int, image: int, steps: int) -> dict[str, float]:
    """Steps over a pack of edits of hidden states alone: the decoder, which is where the time goes."""
    model.train()
    model.requires_grad_(False)
    model.model.language_model.requires_grad_(True)
    model.gradient_checkpointing_enable()
    lengths = edit_splits(tokens, image)
    splits = splits_of(lengths, device)
    types = torch.tensor(
        [{FULL: VIT, CAUSAL: TEXT, NOISE: LATENT}[kind] for each in lengths for kind, n in each for _ in range(n)],
        device=device,
    )[None]
    size = model.config.text_config.hidden_size
    embeds = torch.randn(1, types.shape[1], size, device=device, dtype=model.dtype)
    positions = torch.arange(types.shape[1], device=device)[None]
    seconds = []
    for _ in range(steps):
        _synchronize(device)
        start = time.perf_counter()
        hidden = model.model(embeds, types, positions, splits).last_hidden_state
        hidden.float().square().mean().backward()
        model.zero_grad()
        _synchronize(device)
        seconds.append(time.perf_counter() - start)
    best = min(seconds[1:] or seconds)
    parameters = sum(p.numel() for p in model.model.language_model.layers.parameters()) / 2  # one expert a token
    return {
        "tokens": types.shape[1],
        "seconds": best,
        "tokens_per_second": types.shape[1] / best,
        "teraflops_per_second_without_attention": 6 * parameters * types.shape[1] / best / 1e12,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0,
    }


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
    parser.add_argument("--tokens", type=int, default=11520)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    tokens, image, side, timesteps = (options.tokens, 2400, 1024, 50) if gpu else (400, 64, 64, 4)
    name = torch.cuda.get_device_name() if gpu else "CPU, tiny shape"
    print(json.dumps({"device": name, "torch": torch.__version__}))
    print(json.dumps({"attention": attention_errors(device, min(tokens, 4096))}))
    model = build(device, options.layers)
    print(json.dumps({"training": training(model, device, tokens, image, options.steps)}))
    print(json.dumps({"drawing": drawing(model, device, side, timesteps)}))


if __name__ == "__main__":
    main()
