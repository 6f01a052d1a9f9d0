"""Latents as tokens, and the tables that tell a token its place and its time.

Shapes: (Z, h, w) latents, p the side of a latent token's square, P = (h / p) (w / p) tokens of C = p * p * Z channels.
"""

from __future__ import annotations

import math

import torch


def patchify(latents: torch.Tensor, patch: int) -> torch.Tensor:
    """(Z, h, w) to tokens (P, p * p * Z), row by row; within a token (row, column, channel), channel fastest."""
    channels, height, width = latents.shape
    grid = latents.view(channels, height // patch, patch, width // patch, patch)
    return grid.permute(1, 3, 2, 4, 0).reshape(-1, patch * patch * channels)


def unpatchify(tokens: torch.Tensor, patch: int, rows: int, columns: int) -> torch.Tensor:
    """Tokens (rows * columns, p * p * Z) back to latents (Z, rows * p, columns * p)."""
    grid = tokens.view(rows, columns, patch, patch, -1)
    return grid.permute(4, 0, 2, 1, 3).reshape(-1, rows * patch, columns * patch)


def sincos_table(side: int, size: int) -> torch.Tensor:
    """Two-dimensional sinusoids (side * side, size), row by row: the column's in the first half of the channels, the
    row's in the second, each half as [sin | cos] with frequencies 10000^(-i / (size / 4))."""
    frequencies = 10000.0 ** -(torch.arange(size // 4, dtype=torch.float64) / (size / 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1)
    columns, rows = waves[None].expand(side, -1, -1), waves[:, None].expand(-1, side, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1).float()


def time_features(time: torch.Tensor, size: int) -> torch.Tensor:
    """Flow time (P,) in [0, 1] as [cos | sin] of `size` / 2 frequencies from 1 to 1/10000: (P, size) in fp32."""
    half = size // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=time.device) / half)
    angles = time.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
