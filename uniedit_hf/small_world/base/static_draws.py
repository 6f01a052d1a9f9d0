"""Draws batches on the device: samples, views and noise. Every draw is an operation, so that a captured step draws new
values each time it is replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .static_model import Rows, Weights
from .static_world import Table, World


@dataclass(frozen=True)
class Views:
    """Shares of the views of a source, and dropout probabilities.

    Args:
        vit: Share of sources with only the ViT view.
        vae: Share with only the VAE view; the rest have both.
        none: Share of edits without their source.
        text: Share without their text.
    """

    vit: float = 0.6
    vae: float = 0.1
    none: float = 0.05
    text: float = 0.1


@dataclass
class Batch:
    """Rows with their targets.

    Args:
        rows: The model's inputs; the caller adds `vit`.
        source: (M, B) image numbers of the sources.
        velocity: (M, B, K, 16, 32).
        counts: (M, B) 1 where an image has a loss.
    """

    rows: Rows
    source: torch.Tensor
    velocity: torch.Tensor
    counts: torch.Tensor


def draw_rows(table: Table, models: int, count: int, pool: torch.Tensor | None = None) -> Table:
    """`count` random rows of a table for each of M models: (M, count, ...).

    Args:
        table: `source`, `target`, `length`, `text`, `labels`.
        models: M.
        count: Rows for each.
        pool: (M, n) row numbers to choose from; the whole table by default.
    """
    device = table["source"].device
    if pool is None:
        chosen = torch.randint(len(table["source"]), (models, count), device=device)
    else:
        chosen = pool.gather(1, torch.randint(pool.shape[1], (models, count), device=device))
    return {name: value[chosen] for name, value in table.items()}


def joined(parts: Sequence[Table]) -> Table:
    """Concatenates parts of a batch."""
    return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}


def make_batch(
    world: World, rows: Table, answer: torch.Tensor, edit: torch.Tensor, views: Views, copies: int, shift: float,
    latents: torch.Tensor | None = None,
) -> Batch:  # fmt: skip
    """Random views, dropouts, times and noise for rows.

    Args:
        world: The tables with the latents.
        rows: (M, B, ...) rows of `draw_rows`.
        answer: (M, B) or (B,) which rows are questions with answers.
        edit: Likewise which have a source; the rest are drawings.
        views: Shares of views.
        copies: Noised copies of a target.
        shift: Shift of the flow time.
        latents: Latents by image number; those of the world by default.
    """
    shape, device = rows["source"].shape, rows["source"].device
    latents = world.latents if latents is None else latents
    view, left_out, silent = torch.rand(3, *shape, device=device)
    with_source = edit & (left_out >= views.none)
    has_vit = with_source & ((view < views.vit) | (view >= views.vit + views.vae)) | answer
    has_vae = with_source & (view >= views.vit)
    length = torch.where((silent < views.text) & ~answer, 0, rows["length"])
    clean = latents[rows["target"]][:, :, None].expand(-1, -1, copies, -1, -1)
    noise = torch.randn(clean.shape, device=device)
    time = torch.randn(*shape, copies, device=device).sigmoid()
    time = shift * time / (1 + (shift - 1) * time)
    at = time[..., None, None]
    read = Rows(
        text=rows["text"],
        text_length=length,
        labels=rows["labels"],
        has_vit=has_vit,
        has_vae=has_vae,
        vae=latents[rows["source"]],
        noised=(1 - at) * clean + at * noise,
        time=time,
    )
    return Batch(read, rows["source"], noise - clean, (~answer).float().expand(shape))


def reading_loss(weights: Weights, tokens: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The loss of a linear layer, discarded afterwards, that predicts the latents of each position from the ViT's
    token there:
    tokens (M, B, 16, D), latents (M, B, 16, 32), to (M,)."""
    read = torch.baddbmm(
        weights["reading.bias"][:, None], tokens.flatten(1, 2), weights["reading.weight"].transpose(1, 2)
    )
    return (read.float().view(wanted.shape) - wanted).square().mean(dim=(1, 2, 3))
