"""The modules around the decoder: both image encoders, position tables, the time embedding, and the connector."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer

from uniedit_hf.models.precision import Fp32Weights, fix_linears
from uniedit_hf.split_attention import NAME as SPLITS, SplitPlan

from .configuration_bagel import BagelVaeConfig, BagelVisionConfig


CACHED_PIXELS = 2**16  # pixels that a CPU encodes at once


class Fp32Autoencoder(Fp32Weights, AutoencoderKL):
    """Stays in fp32 when the model is cast: bf16 would leave visible errors in images."""

    _no_split_modules = None  # it is sharded as a whole, and FSDP would look for every class that diffusers names


def build_vae(config: BagelVaeConfig) -> Fp32Autoencoder:
    """The autoencoder of this shape, with random weights."""
    vae = Fp32Autoencoder(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(config.channel_multipliers),
        up_block_types=("UpDecoderBlock2D",) * len(config.channel_multipliers),
        block_out_channels=tuple(config.base_channels * each for each in config.channel_multipliers),
        layers_per_block=config.num_res_blocks,
        latent_channels=config.z_channels,
        norm_num_groups=config.norm_num_groups,
        scaling_factor=config.scaling_factor,
        shift_factor=config.shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    for parameter in vae.parameters():
        parameter.data = parameter.data.float()  # transformers builds whole models in the requested dtype
    fix_linears(vae)
    return vae


def as_encoded(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Images (n, 3, h, w) in chunks for the autoencoder. On a CPU chunks are small, so that they stay in the CPU's
    caches, and channels last, which is three times as fast.
    """
    if images.device.type != "cpu":
        return (images,)
    return images.contiguous(memory_format=torch.channels_last).chunk(-(-images[:, 0].numel() // CACHED_PIXELS))


class LayerConfig:
    """The encoder's configuration for its layers: SDPA means attention over images laid end to end."""

    def __init__(self, config: BagelVisionConfig):
        self.config = config

    def __getattr__(self, name: str):
        if name == "config" or name.startswith("__"):  # does not exist yet while it is copied
            raise AttributeError(name)
        return getattr(self.config, name)

    @property
    def _attn_implementation(self) -> str:
        chosen = self.config._attn_implementation
        return SPLITS if chosen == "sdpa" else chosen


class BagelVisionTransformer(nn.Module):
    """The layers of the understanding encoder under their official names."""

    def __init__(self, config: BagelVisionConfig):
        super().__init__()
        self.config = LayerConfig(config)
        self.embeddings = BagelVisionEmbeddings(config)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList([SiglipEncoderLayer(self.config) for _ in range(config.num_hidden_layers)])
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        patches: torch.Tensor,
        grids: Sequence[Sequence[int]],
        index: torch.Tensor,
        splits: SplitPlan | None = None,
    ) -> torch.Tensor:
        if len(grids) == 0:  # one blank patch is processed, so that every parameter stays in the graph
            blank = self._encode(self.embeddings(patches.new_zeros(1, patches.shape[1]), index.new_zeros(1))[None])
            return blank[0, :0]
        hidden, sizes = self.embeddings(patches, index), [rows * columns for rows, columns in grids]
        if len(set(sizes)) == 1:
            return self._encode(hidden.unflatten(0, (len(sizes), -1))).flatten(0, 1)
        if splits is not None and self.config._attn_implementation == SPLITS:
            return self._encode(hidden[None], splits)[0]
        images, features = hidden.split(sizes), [None] * len(sizes)
        # Images of one size share a batch: no padding, no mask, and no image depends on the others.
        for size in set(sizes):
            same = [i for i, each in enumerate(sizes) if each == size]
            for i, feature in zip(same, self._encode(torch.stack([images[i] for i in same]))):
                features[i] = feature
        return torch.cat(features)

    def _encode(self, hidden: torch.Tensor, splits: SplitPlan | None = None) -> torch.Tensor:
        """Embedded patches (rows, tokens, vision size) to the same; a row is one image, or with `splits` all."""
        for layer in self.encoder.layers:
            hidden = layer(hidden, splits)
        return self.post_layernorm(hidden)


class BagelVisionEmbeddings(nn.Module):
    """Embeds patches, given as vectors (row, column, channel), with a linear layer and learned positions of a square
    table.
    """

    def __init__(self, config: BagelVisionConfig):
        super().__init__()
        self.side = config.patches_per_side
        self.patch_embedding = nn.Linear(config.num_channels * config.patch_size**2, config.hidden_size)
        self.position_embedding = nn.Embedding(self.side**2, config.hidden_size)

    def forward(self, patches: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Patches (V, patch vector) at positions `index` (V,) of the table to (V, vision size)."""
        positions = self.position_embedding(index)
        return self.patch_embedding(patches.to(positions.dtype)) + positions


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
    """The connector from the understanding encoder to the language model: (..., vision size) to (..., D)."""

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


def cell_index(cells: torch.Tensor, grids: Sequence[Sequence[int]], side: int) -> torch.Tensor:
    """Positions of cells (tokens, 2) of images with `grids` rows and columns in a square table of `side`.

    Raises:
        ValueError: If an image is larger than the table.
    """
    for rows, columns in grids:
        _check_grid(rows, columns, side)
    return cells[:, 0] * side + cells[:, 1]


def grid_index(rows: int, columns: int, side: int, device=None) -> torch.Tensor:
    """Positions of the cells of a rows x columns grid in a square table of `side`: row * side + column.

    Raises:
        ValueError: If the grid is larger than the table.
    """
    _check_grid(rows, columns, side)
    return (torch.arange(rows, device=device)[:, None] * side + torch.arange(columns, device=device)).flatten()


def _check_grid(rows: int, columns: int, side: int) -> None:
    if rows > side or columns > side:
        raise ValueError(
            f"An image of {rows} x {columns} tokens is larger than the model's table of {side} x {side} positions: "
            "resize the image, or raise the table's size in the configuration."
        )


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
