"""The understanding encoder: SigLIP's layers over the patches of images of any size, each image for itself."""

from __future__ import annotations

import torch
from torch import nn
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer

from .configuration_bagel import BagelVisionConfig
from .embeddings import grid_index


class BagelVisionTransformer(nn.Module):
    """The layers of the understanding encoder under their official names."""

    def __init__(self, config: BagelVisionConfig):
        super().__init__()
        self.embeddings = BagelVisionEmbeddings(config)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList([SiglipEncoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, patches: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        if len(grids) == 0:  # one blank patch goes through, so that every parameter stays in the graph
            return self._encode(patches.new_zeros(1, 1, patches.shape[1]), 1, 1)[0, :0]
        sizes = grids.prod(-1).tolist()
        images = patches.split(sizes)
        features: list[torch.Tensor | None] = [None] * len(images)
        # Images of one size share a batch: no padding, no mask, and no image depends on its neighbours.
        for rows, columns in {tuple(grid) for grid in grids.tolist()}:
            same = [i for i, grid in enumerate(grids.tolist()) if tuple(grid) == (rows, columns)]
            for i, feature in zip(same, self._encode(torch.stack([images[i] for i in same]), rows, columns)):
                features[i] = feature
        return torch.cat(features)

    def _encode(self, patches: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Images of one size, (images, rows * columns, patch vector) to (images, rows * columns, vision size)."""
        hidden = self.embeddings(patches, rows, columns)
        for layer in self.encoder.layers:
            hidden = layer(hidden, None)
        return self.post_layernorm(hidden)


class BagelVisionEmbeddings(nn.Module):
    """Patches as vectors (row, column, channel) through a linear layer, plus learned positions of a square table."""

    def __init__(self, config: BagelVisionConfig):
        super().__init__()
        self.side = config.patches_per_side
        self.patch_embedding = nn.Linear(config.num_channels * config.patch_size**2, config.hidden_size)
        self.position_embedding = nn.Embedding(self.side**2, config.hidden_size)

    def forward(self, patches: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """(images, rows * columns, patch vector) to (images, rows * columns, vision size)."""
        positions = self.position_embedding(grid_index(rows, columns, self.side, patches.device))
        return self.patch_embedding(patches.to(positions.dtype)) + positions
