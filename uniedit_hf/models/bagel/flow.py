"""Latents as tokens, rectified flow between images and noise, and classifier-free guidance along it. Pure functions of
tensors.

Shapes: (Z, h, w) latents, p the side of a latent token's square, P = (h / p) (w / p) tokens of C = p * p * Z channels.

Time t runs from 0 (clean) to 1 (noise): x_t = (1 - t) x_0 + t eps, and the model predicts the velocity eps - x_0.
"""

from __future__ import annotations

from typing import Literal

import torch


Renorm = Literal["global", "channel", "text_channel"]


def patchify(latents: torch.Tensor, patch: int) -> torch.Tensor:
    """(..., Z, h, w) to tokens (..., P, p * p * Z), row by row; within a token (row, column, channel), channel
    fastest."""
    channels, height, width = latents.shape[-3:]
    grid = latents.view(-1, channels, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(*latents.shape[:-3], -1, patch * patch * channels)


def unpatchify(tokens: torch.Tensor, patch: int, rows: int, columns: int) -> torch.Tensor:
    """Tokens (rows * columns, p * p * Z) back to latents (Z, rows * p, columns * p)."""
    grid = tokens.view(rows, columns, patch, patch, -1)
    return grid.permute(4, 0, 2, 1, 3).reshape(-1, rows * patch, columns * patch)


def shift_time(time: torch.Tensor, shift: float) -> torch.Tensor:
    """Moves flow time towards noise: t becomes s t / (1 + (s - 1) t); 0 and 1 stay."""
    return shift * time / (1 + (shift - 1) * time)


def add_noise(clean: torch.Tensor, noise: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """x_t = (1 - t) x_0 + t eps, with `time` broadcast against the tokens; clean tokens (t = 0) are unchanged."""
    return (1 - time) * clean + time * noise


def velocity_target(clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The velocity that the model predicts: eps - x_0."""
    return noise - clean


def schedule(num_timesteps: int, shift: float) -> torch.Tensor:
    """`num_timesteps` shifted times from 1 to 0, so there is one Euler step fewer. fp32 on the CPU."""
    return shift_time(torch.linspace(1, 0, num_timesteps), shift)


def guide(
    full: torch.Tensor,
    text_free: torch.Tensor | None,
    image_free: torch.Tensor | None,
    text_scale: float,
    image_scale: float,
    renorm: Renorm = "global",
    renorm_min: float = 0.0,
) -> torch.Tensor:
    """The guided velocity of one request, all (P, C).

    v_t = u + s_t (c - u), then v = m + s_i (v_t - m), with c the full context, u the one without its text and m the
    one without its images. A branch that is `None` does not guide. Renormalization shrinks the result to its norm
    before guidance: over all tokens ("global"), per token ("channel"), or per token and before the image
    guidance ("text_channel"); by a factor between `renorm_min` and 1.
    """
    if text_free is None and image_free is None:
        return full
    guided = full if text_free is None else text_free + text_scale * (full - text_free)
    if renorm == "text_channel":
        guided = _shrink(guided, full, renorm_min, dim=-1)
    if image_free is not None:
        guided = image_free + image_scale * (guided - image_free)
    if renorm == "text_channel":
        return guided
    return _shrink(guided, full, renorm_min, dim=None if renorm == "global" else -1)


def _shrink(guided: torch.Tensor, full: torch.Tensor, least: float, dim: int | None) -> torch.Tensor:
    length = torch.linalg.vector_norm(full, dim=dim, keepdim=True)
    factor = length / (torch.linalg.vector_norm(guided, dim=dim, keepdim=True) + 1e-8)
    return guided * factor.clamp(min=least, max=1.0)
