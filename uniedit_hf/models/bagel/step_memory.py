"""Keys and values for steps of one token per row on plain weights on a CPU, and such a step's layers.

The keys and values of a layer are one piece of memory with room for more tokens, into which a step writes both at
once; attention is two products.

Shapes: B rows, s keys so far, S keys that a memory has room for, D hidden size, H query heads, K key and value heads,
G = H / K, E head size.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad
from transformers import Cache
from transformers.cache_utils import DynamicLayer, StaticLayer

from .step_weights import Weights, absorb, heads_of, joint


class Memory:
    """Keys and values of one layer of a cache in one piece of memory, of which the layer's tensors become views.

    Args:
        layer: A layer of a cache that contains a context.
        size: S; at least the number of its keys.
    """

    def __init__(self, layer: DynamicLayer | StaticLayer, size: int):
        rows, self.heads, past, width = layer.keys.shape
        self.layer, self.size = layer, size
        self.both = layer.keys.new_zeros(2, rows, self.heads, size, width)
        self.both[0, :, :, :past], self.both[1, :, :, :past] = layer.keys, layer.values
        self.layer.keys, self.layer.values = self.both[:, :, :, :past].unbind()
        keys, values = self.both.flatten(1, 2)
        self.seen = keys.transpose(1, 2), values  # (B K, E, S) and (B K, S, E)
        self.slots = self.both.transpose(0, 1)  # (B, 2, K, S, E)

    def moved(self) -> bool:
        """Whether the layer's tensors are no longer those of this memory."""
        return self.layer.keys.data_ptr() != self.both.data_ptr()

    def new_of(self, rows: torch.Tensor) -> torch.Tensor:
        """The keys and values (B, 2, K, 1, E) at the end of rows (B, (H + 2 K) E)."""
        count, _, heads, _, width = self.slots.shape
        strides = (rows.shape[1], heads * width, width, width, 1)
        return rows.as_strided((count, 2, heads, 1, width), strides, rows.shape[1] - 2 * heads * width)


class StaticMemory(Memory):
    """The memory of a static layer: its length is a tensor, and its keys and values always have the same size."""

    def __init__(self, layer: StaticLayer):
        super().__init__(layer, layer.keys.shape[2])
        self.place = layer.cumulative_length.view(1)
        self.index = torch.arange(self.size)

    def later(self) -> torch.Tensor:
        """Whether each of S keys is behind the next token."""
        return self.index > self.place

    def add(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes the keys and values of one token per row; returns those to attend to, (B K, E, S) and (B K, S, E)."""
        self.slots.index_copy_(3, self.place, self.new_of(rows))
        return self.seen


class GrowingMemory(Memory):
    """The memory of a dynamic layer, whose keys and values become the filled part."""

    def __init__(self, layer: DynamicLayer):
        self.length = layer.keys.shape[2]
        super().__init__(layer, (self.length + self.length // 2) // 64 * 64 + 64)

    def moved(self) -> bool:
        """As `Memory.moved`; also whether the layer was cut, or there is no more room."""
        return super().moved() or self.layer.keys.shape[2] != self.length or self.length == self.size

    def add(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `StaticMemory.add`: (B K, E, s) and (B K, s, E)."""
        _, count, heads, size, width = self.both.shape
        whole, each = count * heads * size * width, size * width
        shape, strides = (count, 2, heads, 1, width), (heads * each, whole, each, width, 1)
        self.both.as_strided(shape, strides, self.length * width).copy_(self.new_of(rows))
        self.length += 1
        shape, strides = (count, heads, self.length, width), (heads * each, each, width, 1)
        self.layer.keys = self.both.as_strided(shape, strides)
        self.layer.values = self.both.as_strided(shape, strides, whole)
        keys = self.both.as_strided((count * heads, width, self.length), (each, 1, width))
        return keys, self.both.as_strided((count * heads, self.length, width), (each, width, 1), whole)


class CacheMemory:
    """The memories of all layers of a cache.

    Args:
        cache: A cache that `is_known` and contains a context.
        attention_mask: (B, s or S), 1 at real tokens, `None` if all are; later tokens of a static cache are real.
        num_queries: H.
    """

    def __init__(self, cache: Cache, attention_mask: torch.Tensor | None, num_queries: int):
        self.cache, self.num_queries = cache, num_queries
        self.choices = torch.tensor(torch.finfo(torch.float32).min), torch.tensor(0.0)
        self.layers: list[StaticMemory | GrowingMemory]
        self.lengths: torch.Tensor | None = None  # of the layers of a static cache
        if type(cache.layers[0]) is StaticLayer:
            self.lengths = torch.stack([layer.cumulative_length for layer in cache.layers])
            for layer, length in zip(cache.layers, self.lengths):
                layer.cumulative_length = length
            self.layers = [StaticMemory(layer) for layer in cache.layers]
        else:
            self.layers = [GrowingMemory(layer) for layer in cache.layers]
        rows, _, heads, self.size, width = self.layers[0].slots.shape
        self.query = cache.layers[0].keys.new_empty(rows * heads, num_queries // heads, width)
        self.scale = torch.tensor(width**-0.5)
        self.padding = self.choices[1]
        if self.lengths is not None and attention_mask is not None:
            self.padding = self._bias_of(attention_mask, self.size)

    def moved(self) -> bool:
        """Whether the cache was changed by others, or has no more room."""
        return any(layer.moved() for layer in self.layers)

    def bias(self, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        """The bias on the scores of the next token, (S,) or (B K, G, s or S): 0 at keys that it attends to, otherwise
        the lowest number; `None` if it attends to all."""
        if self.lengths is not None:
            return torch.where(self.layers[0].later(), self.choices[0], self.padding)
        return None if attention_mask is None else self._bias_of(attention_mask, attention_mask.shape[1])

    def _bias_of(self, attention_mask: torch.Tensor, size: int) -> torch.Tensor:
        bias = torch.where(pad(attention_mask == 0, (0, size - attention_mask.shape[1])), *self.choices)
        return bias.repeat_interleave(self.num_queries, 0).view(*self.query.shape[:2], size)

    def run_layers(self, experts: list[Weights], hidden, cos, sin, bias: torch.Tensor | None) -> torch.Tensor:
        """All layers over one token per row, which is added to the cache: hidden states (B, D) to (B, D).

        Args:
            experts: One of every layer.
            hidden: (B, D).
            cos, sin: (B, 1, E) tables of rotary positions.
            bias: See `bias`.
        """
        shape = (len(hidden), self.num_queries, self.query.shape[2])
        query, room = self.query, self.query.view(shape)
        for weights, memory in zip(experts, self.layers):
            rows = joint(weights, hidden, cos, sin)
            keys, values = memory.add(rows)
            torch.mul(heads_of(rows, 0, *shape[1:]), self.scale, out=room)
            scores = torch.bmm(query, keys) if bias is None else torch.baddbmm(bias, query, keys)
            attended = torch.bmm(scores.softmax(-1), values)
            hidden = absorb(weights, hidden, attended.view(len(hidden), -1))
        if self.lengths is not None:
            self.lengths.add_(1)
        return hidden


def is_known(cache: Cache | None) -> bool:
    """Whether a cache has layers of one known kind, all with keys and values in fp32."""
    if cache is None or cache.offloading or not cache.layers:
        return False
    kinds = {type(layer) for layer in cache.layers}
    if kinds not in ({DynamicLayer}, {StaticLayer}) or not all(layer.is_initialized for layer in cache.layers):
        return False
    return all(layer.keys.ndim == 4 and layer.keys.dtype == torch.float32 for layer in cache.layers)
