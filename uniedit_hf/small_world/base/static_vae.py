"""The small BAGEL's autoencoder as a function of its weights under the checkpoint's names; needs only PyTorch."""

from __future__ import annotations

import torch
from torch.nn import functional


Weights = dict[str, torch.Tensor]
GROUPS, EPS, LEVELS, PATCH = 4, 1e-6, 4, 2


def encode(weights: Weights, pixels: torch.Tensor) -> torch.Tensor:
    """Pixels (n, 3, 64, 64) in [-1, 1] to the posterior's mean (n, 8, 8, 8), neither scaled nor shifted."""
    states = _conv(pixels, weights, "encoder.conv_in")
    for level in range(LEVELS):
        states = _residual(states, weights, f"encoder.down.{level}.block.0")
        if level < LEVELS - 1:
            padded = functional.pad(states, (0, 1, 0, 1))
            states = _conv(padded, weights, f"encoder.down.{level}.downsample.conv", stride=2, padding=0)
    states = _middle(states, weights, "encoder.mid")
    states = _conv(functional.silu(_norm(states, weights, "encoder.norm_out")), weights, "encoder.conv_out")
    return states.chunk(2, dim=1)[0]


def decode(weights: Weights, latents: torch.Tensor) -> torch.Tensor:
    """Latents (n, 8, 8, 8), neither scaled nor shifted, to pixels (n, 3, 64, 64)."""
    states = _middle(_conv(latents, weights, "decoder.conv_in"), weights, "decoder.mid")
    for level in reversed(range(LEVELS)):
        for block in range(2):
            states = _residual(states, weights, f"decoder.up.{level}.block.{block}")
        if level:
            states = functional.interpolate(states, scale_factor=2.0, mode="nearest")
            states = _conv(states, weights, f"decoder.up.{level}.upsample.conv")
    return _conv(functional.silu(_norm(states, weights, "decoder.norm_out")), weights, "decoder.conv_out")


def to_tokens(latents: torch.Tensor) -> torch.Tensor:
    """(n, 8, 8, 8) to (n, 16, 32), as `flow.patchify` does for one image."""
    count, channels, height, width = latents.shape
    grid = latents.view(count, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(count, -1, PATCH * PATCH * channels)


def from_tokens(tokens: torch.Tensor) -> torch.Tensor:
    """(n, 16, 32) back to (n, 8, 8, 8)."""
    count, places, size = tokens.shape
    side = round(places**0.5)
    grid = tokens.view(count, side, side, PATCH, PATCH, size // PATCH**2)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(count, size // PATCH**2, side * PATCH, side * PATCH)


def _conv(states, weights: Weights, name: str, stride: int = 1, padding: int = 1) -> torch.Tensor:
    return functional.conv2d(states, weights[f"{name}.weight"], weights[f"{name}.bias"], stride, padding)


def _norm(states: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    return functional.group_norm(states, GROUPS, weights[f"{name}.weight"], weights[f"{name}.bias"], EPS)


def _residual(states: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    inner = _conv(functional.silu(_norm(states, weights, f"{name}.norm1")), weights, f"{name}.conv1")
    inner = _conv(functional.silu(_norm(inner, weights, f"{name}.norm2")), weights, f"{name}.conv2")
    if f"{name}.nin_shortcut.weight" in weights:
        states = _conv(states, weights, f"{name}.nin_shortcut", padding=0)
    return states + inner


def _middle(states: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    states = _residual(states, weights, f"{name}.block_1")
    normed = _norm(states, weights, f"{name}.attn_1.norm")
    query, key, value = (
        _conv(normed, weights, f"{name}.attn_1.{each}", padding=0).flatten(2).transpose(1, 2)[:, None]
        for each in "qkv"
    )
    mixed = functional.scaled_dot_product_attention(query, key, value)[:, 0].transpose(1, 2).reshape(states.shape)
    states = states + _conv(mixed.contiguous(), weights, f"{name}.attn_1.proj_out", padding=0)
    return _residual(states, weights, f"{name}.block_2")
