"""What is added to or leads into the decoder: places, time, and the connector from the understanding encoder."""

from __future__ import annotations

import torch
from torch import nn
from transformers.activations import ACT2FN

from .latents import time_features


class SinCosPositions(nn.Module):
    """A frozen table of two-dimensional positions, stored with the weights: (side * side, D)."""

    def __init__(self, side: int, size: int):
        super().__init__()
        self.side = side
        self.pos_embed = nn.Parameter(torch.zeros(side * side, size), requires_grad=False)

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        """Rows of the table by row * side + column."""
        return self.pos_embed[index]


class BagelConnector(nn.Module):
    """Leads from the understanding encoder to the language model: (..., vision size) to (..., D)."""

    def __init__(self, vision_size: int, size: int, activation: str):
        super().__init__()
        self.fc1 = nn.Linear(vision_size, size)
        self.activation = ACT2FN[activation]
        self.fc2 = nn.Linear(size, size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(features)))


class TimeEmbedder(nn.Module):
    """Flow time (P,) in [0, 1] to (P, D), computed in `dtype`."""

    def __init__(self, size: int, num_features: int = 256):
        super().__init__()
        self.num_features = num_features
        self.mlp = nn.Sequential(nn.Linear(num_features, size), nn.SiLU(), nn.Linear(size, size))

    def forward(self, time: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return self.mlp(time_features(time, self.num_features).to(dtype))


def grid_index(rows: int, columns: int, side: int, device=None) -> torch.Tensor:
    """Where the cells of a rows x columns grid stand in a square table of `side`: row * side + column.

    Raises:
        ValueError: If the grid is larger than the table.
    """
    if rows > side or columns > side:
        raise ValueError(
            f"An image of {rows} x {columns} tokens is larger than the model's table of {side} x {side} positions: "
            "resize the image, or raise the table's size in the configuration."
        )
    return (torch.arange(rows, device=device)[:, None] * side + torch.arange(columns, device=device)).flatten()
