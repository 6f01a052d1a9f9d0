"""Which tokens of a sequence of text and images attend to which, and the masks for it.

A sample is a sequence of splits: text ("causal"), an image that is read ("full"), a noised image that is drawn
("noise"). A token attends to the earlier tokens of its own sample and to all tokens of its own image. No other split
attends to an image that is being drawn.

Shapes: B rows, L tokens per row, S keys (cached and new).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch


CAUSAL, FULL, NOISE = 0, 1, 2
NO_SAMPLE = -1


class Splits(NamedTuple):
    """The sample, the split and the kind of split of every token: three int tensors (B, L).

    Padding has sample -1. The tokens of a split are consecutive, and so are the splits of a sample.
    """

    sample: torch.Tensor
    split: torch.Tensor
    kind: torch.Tensor


def _allowed(query_sample, query_split, query_index, key_sample, key_split, key_kind, key_index):
    same_split = query_split == key_split
    sees = (key_index <= query_index) | (same_split & (key_kind != CAUSAL))
    hidden = (key_kind == NOISE) & ~same_split
    return (query_sample == key_sample) & (key_sample != NO_SAMPLE) & sees & ~hidden


def dense_mask(splits: Splits) -> torch.Tensor:
    """The keys that every query attends to, as booleans (B, L, L). Padding attends only to itself, so that no row is
    empty.
    """
    sample, split, kind = splits
    index = torch.arange(sample.shape[-1], device=sample.device)
    mask = _allowed(
        sample[:, :, None], split[:, :, None], index[:, None], sample[:, None], split[:, None], kind[:, None], index
    )
    return mask | torch.eye(len(index), dtype=torch.bool, device=sample.device)


def block_mask(splits: Splits, order: torch.Tensor):
    """The same for FlexAttention, with the tokens of a single row (1, L) laid out in `order` (N,)."""
    from torch.nn.attention.flex_attention import create_block_mask

    sample, split, kind = (each.flatten()[order].contiguous() for each in splits)

    def sees(batch, head, query, key):
        return _allowed(sample[query], split[query], order[query], sample[key], split[key], kind[key], order[key])

    return create_block_mask(sees, B=None, H=None, Q_LEN=len(order), KV_LEN=len(order), device=order.device)


@dataclass
class Grid:
    """Attention over rows of padded tokens: where each routed token sits in the grid, and the mask over it.

    Args:
        place: (N,) the flat place (row * columns + column) of each routed token.
        rows: Number of rows.
        columns: Tokens in a row.
        mask: (rows, 1, columns, S) booleans.
        attentions: If given, a list to which each layer appends its weights (rows, heads, columns, S).
    """

    place: torch.Tensor
    rows: int
    columns: int
    mask: torch.Tensor
    gen_asks_alone = False
    attentions: list[torch.Tensor] | None = None

    def spread(self, states: torch.Tensor) -> torch.Tensor:
        """Routed states (N, heads, size) to the grid: (rows, heads, columns, size), zero at padding."""
        grid = states.new_zeros(self.rows * self.columns, *states.shape[1:])
        return grid.index_copy(0, self.place, states).unflatten(0, (self.rows, self.columns)).transpose(1, 2)

    def gather(self, output: torch.Tensor) -> torch.Tensor:
        """Attention output (rows, columns, heads, size) back to the routed order: (N, heads * size)."""
        return output.flatten(2).flatten(0, 1)[self.place]


@dataclass
class Packed:
    """Attention over one packed sequence in the routed order.

    Args:
        mask: A block mask of FlexAttention or a `uniedit_hf.split_attention.SplitPlan`.
        gen_asks_alone: Whether only the generation tokens are queries.
    """

    mask: object
    gen_asks_alone: bool = False
    attentions = None  # attention weights of a pack are never requested

    def spread(self, states: torch.Tensor) -> torch.Tensor:
        """Routed states (N, heads, size) as the one row that FlexAttention takes: (1, heads, N, size)."""
        return states.transpose(0, 1)[None]

    def gather(self, output: torch.Tensor) -> torch.Tensor:
        """Attention output (1, N, heads, size) to (N, heads * size)."""
        return output[0].flatten(1)


def sample_grid(splits: Splits, order: torch.Tensor) -> Grid:
    """One row for each sample of a packed sequence (1, L), so that attention costs the sum of the squared lengths and
    not the square of the sum. `order` (N,) is the routed order of the tokens.
    """
    sample = splits.sample[0]
    _, row, lengths = torch.unique_consecutive(sample, return_inverse=True, return_counts=True)
    starts = lengths.cumsum(0) - lengths
    rows, columns = len(lengths), int(lengths.max())
    place = row * columns + torch.arange(len(sample), device=sample.device) - starts[row]
    padded = [torch.full((rows * columns,), NO_SAMPLE, device=sample.device) for _ in splits]
    by_row = Splits(*(empty.index_copy(0, place, each[0]).view(rows, columns) for empty, each in zip(padded, splits)))
    return Grid(place[order], rows, columns, dense_mask(by_row)[:, None])


def context_mask(attention_mask: torch.Tensor, own: torch.Tensor, num_keys: int) -> torch.Tensor:
    """The mask of new tokens behind a cached context.

    Args:
        attention_mask: (B, P + L) 1 at real tokens, 0 at padding, of the context and the new tokens.
        own: (B, L, L) which new token attends to which.
        num_keys: Number of keys that the cache returns, at least P + L.

    Returns:
        (B, 1, L, num_keys) booleans.
    """
    length = own.shape[-1]
    past = attention_mask[:, None, :-length].bool().expand(-1, length, -1)
    mask = torch.cat([past, own], dim=-1)
    return torch.nn.functional.pad(mask, (0, num_keys - mask.shape[-1]), value=False)[:, None]
