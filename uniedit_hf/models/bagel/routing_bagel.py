"""The route of every token of a pack, computed once from plain numbers by a data worker, so that the model does not
have to.

The decoder processes two tensors: the understanding tokens (texts, markers and ViT tokens, in the order of the
sequence)
and the generation tokens (latents, likewise). A forward with a routing neither searches nor counts on the device.

Shapes: L tokens of a pack, U understanding and G generation tokens, N = U + G, V ViT tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from uniedit_hf.attention import FULL
from uniedit_hf.split_attention import SplitPlan, plan_splits

from .configuration_bagel import LATENT, TEXT, VIT


Grids = Sequence[Sequence[int]]  # rows and columns of tokens of each image


@dataclass
class PackRouting:
    """The routing of one pack.

    Args:
        order: (N,) the positions of the tokens in the sequence, understanding tokens first.
        num_und: U.
        positions: (N,) rotary positions in that order.
        text_ids: (texts and markers,) ids to look up in the embedding table.
        und_sources: (U,) index of each understanding token in these, followed by the ViT tokens; `None` without ViT
            tokens.
        text_rows: (text targets,) the understanding tokens with a text loss.
        text_labels: (text targets,) the tokens that they predict.
        image_rows: (image targets,) the generation tokens with an image loss; `None` if all have one.
        num_image_targets: Their number.
        vit_grids: Rows and columns of the ViT views.
        vit_cells: (V, 2) row and column of each ViT token in its image.
        vit_splits: Attention of the ViT views, each within itself; `None` if all have the same size.
        latent_grids: Rows and columns of the VAE views.
        latent_cells: (G, 2) row and column of each latent token in its image.
        latent_views: (G,) the VAE view of each latent token.
        latent_sources: (G,) index of each latent token when views are grouped by size, in the order of the first of
            each size; `None` if the order is the same.
        splits: Attention of the decoder.
        gen_splits: The same with only the generation tokens as queries; `None` if a text has a loss.
    """

    order: torch.Tensor
    num_und: int
    positions: torch.Tensor
    text_ids: torch.Tensor
    und_sources: torch.Tensor | None
    text_rows: torch.Tensor
    text_labels: torch.Tensor
    image_rows: torch.Tensor | None
    num_image_targets: int
    vit_grids: tuple[tuple[int, int], ...]
    vit_cells: torch.Tensor
    vit_splits: SplitPlan | None
    latent_grids: tuple[tuple[int, int], ...]
    latent_cells: torch.Tensor
    latent_views: torch.Tensor
    latent_sources: torch.Tensor | None
    splits: SplitPlan
    gen_splits: SplitPlan | None

    @property
    def num_gen(self) -> int:
        """G."""
        return len(self.order) - self.num_und

    def to(self, device, non_blocking: bool = False) -> PackRouting:
        """The routing with its tensors on `device`."""
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PackRouting:
        """The routing in page-locked memory, so that copying it to a GPU is asynchronous."""
        return self._map(lambda value: value.pin_memory())

    def _map(self, move) -> PackRouting:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: move(value) for name, value in values.items() if hasattr(value, "pin_memory")})


def route_pack(
    input_ids: torch.Tensor,
    token_type_ids: torch.Tensor,
    position_ids: torch.Tensor,
    sample_ids: torch.Tensor,
    split_ids: torch.Tensor,
    split_kinds: torch.Tensor,
    labels: torch.Tensor,
    vit_grids: Grids = (),
    latent_grids: Grids = (),
    drawn: Sequence[bool] = (),
) -> PackRouting:
    """The routing of a pack.

    Args:
        input_ids, token_type_ids, position_ids, sample_ids, split_ids, split_kinds, labels: (1, L) inputs of the
            training forward.
        vit_grids: Rows and columns of tokens of each ViT view, in order.
        latent_grids: Rows and columns of tokens of each VAE view, in order.
        drawn: For each VAE view whether it has an image loss.
    """
    row = [each.cpu().numpy()[0] for each in (input_ids, token_type_ids, position_ids, labels)]
    ids, types, positions, labels = row
    splits = [each.cpu().numpy()[0] for each in (sample_ids, split_ids, split_kinds)]
    und, gen = np.flatnonzero((types == TEXT) | (types == VIT)), np.flatnonzero(types == LATENT)
    order = np.concatenate([und, gen])
    is_text = types[und] == TEXT
    supervised = labels[und] != -100
    cells, views = _cells(latent_grids)
    carries_loss = np.asarray(drawn, dtype=bool)[views] if len(views) else np.zeros(0, dtype=bool)
    return PackRouting(
        order=_tensor(order),
        num_und=len(und),
        positions=_tensor(positions[order]),
        text_ids=_tensor(ids[und][is_text]),
        und_sources=None if is_text.all() else _tensor(_sources(is_text)),
        text_rows=_tensor(np.flatnonzero(supervised)),
        text_labels=_tensor(labels[und][supervised]),
        image_rows=None if carries_loss.all() else _tensor(np.flatnonzero(carries_loss)),
        num_image_targets=int(carries_loss.sum()),
        vit_grids=_plain(vit_grids),
        vit_cells=_tensor(_cells(vit_grids)[0]),
        vit_splits=image_splits(vit_grids),
        latent_grids=_plain(latent_grids),
        latent_cells=_tensor(cells),
        latent_views=_tensor(views),
        latent_sources=_latent_sources(latent_grids),
        splits=plan_splits(*splits, order),
        gen_splits=None if supervised.any() else plan_splits(*splits, order, first_query=len(und)),
    )


def latent_grids(images: Sequence[torch.Tensor], stride: int) -> list[tuple[int, int]]:
    """Rows and columns of tokens of VAE views: pixels (3, h, w), or stored moments (2 Z, h/8, w/8).

    Args:
        images: The views in order.
        stride: Pixels per side of a token.
    """
    scales = [1 if len(image) == 3 else 8 for image in images]
    return [(x.shape[1] * k // stride, x.shape[2] * k // stride) for x, k in zip(images, scales)]


def same_size(sizes: Sequence) -> dict:
    """The indices of the images of each size, in the order of the first of each."""
    groups: dict = {}
    for number, size in enumerate(sizes):
        groups.setdefault(tuple(size), []).append(number)
    return groups


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))


def _plain(grids: Grids) -> tuple[tuple[int, int], ...]:
    return tuple((int(rows), int(columns)) for rows, columns in grids)


def _sources(is_text: np.ndarray) -> np.ndarray:
    """Index of each token after texts are moved first."""
    return np.where(is_text, np.cumsum(is_text) - 1, is_text.sum() + np.cumsum(~is_text) - 1)


def _cells(grids: Grids) -> tuple[np.ndarray, np.ndarray]:
    """Row and column (tokens, 2) of the tokens of all images, and the image (tokens,) of each."""
    cells = [np.indices((rows, columns)).reshape(2, -1).T for rows, columns in _plain(grids)]
    sizes = [len(each) for each in cells]
    return np.concatenate([np.zeros((0, 2), np.int64), *cells]), np.repeat(np.arange(len(sizes)), sizes)


def image_splits(grids: Grids) -> SplitPlan | None:
    """Attention over the tokens of several images, each within itself."""
    if len(same_size(_plain(grids))) < 2:
        return None
    _, image = _cells(grids)
    return plan_splits(image, image, np.full(len(image), FULL), np.arange(len(image)))


def _latent_sources(grids: Grids) -> torch.Tensor | None:
    grids = _plain(grids)
    grouped = [number for numbers in same_size(grids).values() for number in numbers]
    if grouped == sorted(grouped):
        return None
    sizes = [rows * columns for rows, columns in grids]
    starts = dict(zip(grouped, np.cumsum([0, *(sizes[number] for number in grouped)])))
    return _tensor(np.concatenate([starts[number] + np.arange(size) for number, size in enumerate(sizes)]))
