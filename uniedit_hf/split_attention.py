"""Attention over a pack split by split: `attn_implementation="split_sdpa"`.

All tokens of a long image attend to the same keys, so it is one `scaled_dot_product_attention` without a mask over
these keys: its own and those before it in its sample, except for images that are being drawn. Everything short (texts,
image markers, small images, whole small samples) goes through padded rows with a small mask, one row per sample. The
plan is made once per pack, on the CPU, from plain numbers; the layers only execute it.

Shapes: N routed tokens, K keys of a call, S short tokens, T keys of all calls, H query heads, G key and value heads,
E head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from uniedit_hf.attention import CAUSAL, NO_SAMPLE, NOISE


NAME = "split_sdpa"
LONG = 256  # images with at least this many tokens are a call of their own
ROW_COST = 4096  # overhead of a call of padded rows, in units of scores
# Attention kernels of a GPU, by preference. Without a mask cuDNN took half the time of FlashAttention 2 on an H200;
# with a mask, few kernels support any length.
KERNELS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
MASKED_KERNELS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass
class SplitPlan:
    """Which rows of a routed pack attend to which, call by call.

    Args:
        runs: (tokens, call) of consecutive routed rows; a call of -1 marks short rows.
        keys: Number of keys of each call: first the long ones, then the padded ones as (rows, keys per row).
        key_rows: (T,) the routed rows that these keys are, call after call.
        key_uses: (N, uses) positions of each routed row in `key_rows`; T where it is used less often.
        queries: For each call of padded rows, (rows, queries per row): the short row of each query.
        query_place: (S,) position of each short row in these calls, laid end to end.
        masks: For each call of padded rows, (rows, 1, queries, keys) booleans.
    """

    runs: tuple[tuple[int, int], ...]
    keys: tuple[tuple[int, int], ...]
    key_rows: torch.Tensor
    key_uses: torch.Tensor
    queries: list[torch.Tensor]
    query_place: torch.Tensor
    masks: list[torch.Tensor]

    def to(self, device, non_blocking: bool = False) -> SplitPlan:
        """The plan with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> SplitPlan:
        """The plan in page-locked memory, so that copying it to a GPU is asynchronous."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, move) -> SplitPlan:
        changes = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                changes[field.name] = move(value)
            elif isinstance(value, list):
                changes[field.name] = [move(each) for each in value]
        return replace(self, **changes)


# --- the plan -------------------------------------------------------------------------------------------------------


@dataclass
class _Row:
    """The short queries of a sample with the keys that they see."""

    queries: np.ndarray  # routed rows
    keys: np.ndarray  # routed rows
    mask: np.ndarray  # (queries, keys)


def plan_splits(sample, split, kind, order, long: int = LONG, first_query: int = 0) -> SplitPlan:
    """Plans the calls of a pack.

    Args:
        sample, split, kind: (L,) of every token of the sequence, see `uniedit_hf.attention.Splits`.
        order: (N,) the tokens in their routed order; padding is left out.
        long: Images with at least this many tokens are a call of their own.
        first_query: The first routed row that is a query; rows before it are only keys.
    """
    sample, split, kind, order = (np.asarray(each, dtype=np.int64) for each in (sample, split, kind, order))
    routed = np.full(len(sample), -1)
    routed[order] = np.arange(len(order))
    call_of = np.full(len(order), -1)
    long_keys: list[np.ndarray] = []
    rows: list[_Row] = []
    for start, stop in _stretches(sample):
        if sample[start] == NO_SAMPLE:
            continue
        for first, last in _stretches(split[start:stop], start):
            if kind[first] == CAUSAL or last - first < long:
                continue
            run = _longest_run(routed[first:last])
            if len(run) >= long and run[0] >= first_query:
                seen = (split[start:last] == split[first]) | (kind[start:last] != NOISE)
                call_of[run] = len(long_keys)
                long_keys.append(np.sort(routed[start:last][seen]))
        rows_of_sample = routed[start:stop]
        short = np.flatnonzero((call_of[rows_of_sample] < 0) & (rows_of_sample >= first_query)) + start
        if len(short):
            rows.append(_short_row(short, np.arange(start, stop), split, kind, routed))
    return _assemble(call_of, first_query, long_keys, _grouped(rows))


def _stretches(values: np.ndarray, offset: int = 0) -> list[tuple[int, int]]:
    """Begin and end of the stretches of equal neighbors."""
    if not len(values):
        return []
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return [(start + offset, stop + offset) for start, stop in zip(edges, edges[1:])]


def _longest_run(rows: np.ndarray) -> np.ndarray:
    """The longest stretch of consecutive numbers, sorted."""
    rows = np.sort(rows)
    start, stop = max(_stretches(rows - np.arange(len(rows))), key=lambda each: each[1] - each[0])
    return rows[start:stop]


def _short_row(queries, tokens, split, kind, routed) -> _Row:
    """The rule of `uniedit_hf.attention` for some tokens of a sample (given by their positions in the sequence)."""
    same_split = split[queries][:, None] == split[tokens]
    sees = (tokens <= queries[:, None]) | (same_split & (kind[tokens] != CAUSAL))
    mask = sees & ~((kind[tokens] == NOISE) & ~same_split)
    used = mask.any(0)
    by_query, by_key = np.argsort(routed[queries]), np.argsort(routed[tokens[used]])
    return _Row(routed[queries][by_query], routed[tokens[used]][by_key], mask[:, used][np.ix_(by_query, by_key)])


def _grouped(rows: Sequence[_Row]) -> list[list[_Row]]:
    """Groups rows into calls, padded to the longest: a greedy search for few scores and few calls."""
    groups: list[list[_Row]] = []
    queries = keys = 0
    for row in sorted(rows, key=lambda each: each.mask.shape[::-1]):
        wider, higher = max(queries, row.mask.shape[0]), max(keys, row.mask.shape[1])
        count = len(groups[-1]) if groups else 0
        apart = 2 * ROW_COST + count * queries * keys + row.mask.size
        if groups and ROW_COST + (count + 1) * wider * higher <= apart:
            groups[-1].append(row)
            queries, keys = wider, higher
        else:
            groups.append([row])
            queries, keys = row.mask.shape
    return groups


def _shape(rows: Sequence[_Row]) -> tuple[int, int]:
    return max(len(row.queries) for row in rows), max(len(row.keys) for row in rows)


def _assemble(call_of: np.ndarray, first_query: int, long_keys, groups: list[list[_Row]]) -> SplitPlan:
    count, call_of = len(call_of), call_of[first_query:]
    runs = tuple((stop - start, int(call_of[start])) for start, stop in _stretches(call_of))
    place_in_short = np.cumsum(call_of < 0) - 1
    keys = [(1, len(each)) for each in long_keys]
    key_rows, used, queries, masks = [*long_keys], [np.ones(len(each), bool) for each in long_keys], [], []
    query_place = np.empty(int((call_of < 0).sum()), dtype=np.int64)
    offset = 0
    for rows in groups:
        width, height = _shape(rows)
        index, seen = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), height), np.int64)
        mask, real = np.zeros((len(rows), 1, width, height), bool), np.zeros((len(rows), height), bool)
        for number, row in enumerate(rows):
            num_queries, num_keys = row.mask.shape
            places = place_in_short[row.queries - first_query]
            index[number, :num_queries] = places
            query_place[places] = offset + number * width + np.arange(num_queries)
            seen[number, :num_keys], real[number, :num_keys] = row.keys, True
            mask[number, 0, :num_queries, :num_keys] = row.mask
        mask[..., 0] |= ~mask.any(-1)  # padding attends to something, or its softmax would be NaN
        offset += index.size
        keys.append(seen.shape)
        key_rows.append(seen.flatten())
        used.append(real.flatten())
        queries.append(torch.from_numpy(index))
        masks.append(torch.from_numpy(mask))
    all_rows = np.concatenate([np.empty(0, np.int64), *key_rows])
    uses = _uses(all_rows, np.concatenate([np.empty(0, bool), *used]), count)
    return SplitPlan(
        runs, tuple(keys), torch.from_numpy(all_rows), torch.from_numpy(uses), queries,
        torch.from_numpy(query_place), masks,
    )  # fmt: skip


def _uses(rows: np.ndarray, real: np.ndarray, count: int) -> np.ndarray:
    """For each of `count` rows its positions in `rows` where these are `real`: (count, most uses of a row)."""
    places = np.flatnonzero(real)
    places = places[np.argsort(rows[places], kind="stable")]
    often = np.bincount(rows[places], minlength=count)
    column = np.arange(len(places)) - np.repeat(np.cumsum(often) - often, often)
    uses = np.full((count, int(often.max(initial=1))), len(rows))
    uses[rows[places], column] = places
    return uses


# --- the attention --------------------------------------------------------------------------------------------------


class _TakeRows(torch.autograd.Function):
    """`states[rows]`, whose gradient is gathered by the known uses of each row instead of scattered, so that it is
    deterministic.
    """

    @staticmethod
    def forward(ctx, states, rows, uses):
        ctx.save_for_backward(uses)
        return states.index_select(0, rows.flatten())

    @staticmethod
    def backward(ctx, gradient):
        (uses,) = ctx.saved_tensors
        if uses.dim() == 1:
            return gradient.index_select(0, uses), None, None
        padded = torch.cat([gradient, gradient.new_zeros(1, *gradient.shape[1:])])
        taken = padded.index_select(0, uses.flatten()).unflatten(0, uses.shape)
        return taken.sum(1) if uses.shape[1] > 1 else taken[:, 0], None, None


class PickRows(torch.autograd.Function):
    """`states[rows]` where no row is taken twice: its gradient is written, not added."""

    @staticmethod
    def forward(ctx, states, rows):
        ctx.save_for_backward(rows)
        ctx.size = len(states)
        return states.index_select(0, rows)

    @staticmethod
    def backward(ctx, gradient):
        (rows,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.size, *gradient.shape[1:]).index_copy_(0, rows, gradient), None


def split_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: SplitPlan | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Attention of a routed pack, in the signature of transformers' attention interface.

    Args:
        module: Not used.
        query: (1, H, N, E).
        key, value: (1, G, N, E).
        attention_mask: The plan of the pack; `None` for plain attention of rows (B, heads, N, E) without a mask.
        scaling: Factor of the scores; E ** -0.5 by default.
        dropout: Dropout of the attention weights.

    Returns:
        (1, N, H, E), and no weights.
    """
    if attention_mask is None:
        rows = (states.transpose(1, 2) for states in (query, key, value))
        return _attend(*rows, None, scaling, dropout), None
    plan = attention_mask
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    with torch.autocast(query.device.type, enabled=False):
        return _by_plan(query, key, value, plan, scaling, dropout)[None], None


def _by_plan(query, key, value, plan: SplitPlan, scaling, dropout) -> torch.Tensor:
    """Routed queries (N, H, E), keys and values (N, G, E) to (N, H, E)."""
    if not plan.runs:  # a pack without tokens keeps its projections in the graph
        return query + 0 * (key.sum() + value.sum())
    key, value = (_TakeRows.apply(states, plan.key_rows, plan.key_uses) for states in (key, value))
    sizes = [rows * keys for rows, keys in plan.keys]
    keys, values = key.split(sizes), value.split(sizes)
    parts = query.split([tokens for tokens, _ in plan.runs])
    short = [part for part, (_, call) in zip(parts, plan.runs) if call < 0]
    outputs: list[torch.Tensor] = []
    if short:
        rows = _short_attention(_cat(short), keys, values, plan, scaling, dropout)
        outputs = list(rows.split([len(part) for part in short]))
    done = iter(outputs)
    result = [
        next(done) if call < 0 else _one_call(part, keys[call], values[call], scaling, dropout)
        for part, (_, call) in zip(parts, plan.runs)
    ]
    return _cat(result)


def _short_attention(query, keys, values, plan: SplitPlan, scaling, dropout) -> torch.Tensor:
    """Short rows (S, H, E) through the padded calls, to (S, H, E)."""
    first = len(plan.keys) - len(plan.masks)
    sizes = [index.numel() for index in plan.queries]
    index = _cat([index.flatten() for index in plan.queries])
    grids = _TakeRows.apply(query, index, plan.query_place).split(sizes)
    outputs = []
    for number, (grid, mask) in enumerate(zip(grids, plan.masks), start=first):
        shape = plan.keys[number]
        output = _attend(
            grid.unflatten(0, plan.queries[number - first].shape), keys[number].unflatten(0, shape),
            values[number].unflatten(0, shape), mask, scaling, dropout,
        )  # fmt: skip
        outputs.append(output.flatten(0, 1))
    return PickRows.apply(_cat(outputs), plan.query_place)


def _one_call(query, key, value, scaling, dropout) -> torch.Tensor:
    """A long split (Q, H, E) over all of its keys (K, G, E)."""
    return _attend(query[None], key[None], value[None], None, scaling, dropout)[0]


def _attend(query, key, value, mask, scaling, dropout) -> torch.Tensor:
    """(rows, queries, H, E) over (rows, keys, G, E) to (rows, queries, H, E)."""
    query, key, value = (states.transpose(1, 2) for states in (query, key, value))
    groups = query.shape[1] // key.shape[1]
    if mask is not None and query.device.type == "cpu":
        return _plain_attention(query, key, value, mask, scaling, dropout).transpose(1, 2)
    if mask is not None and groups > 1:
        return _folded_attention(query, key, value, mask, scaling, dropout, groups).transpose(1, 2)
    if groups > 1 and not _shares_keys(query, key, value):
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    gqa = query.shape[1] > key.shape[1]
    with _kernels(query, mask):
        output = scaled_dot_product_attention(query, key, value, mask, dropout, scale=scaling, enable_gqa=gqa)
    return output.transpose(1, 2)


def _kernels(query: torch.Tensor, mask: torch.Tensor | None):
    if query.device.type != "cuda":
        return nullcontext()
    return sdpa_kernel(KERNELS if mask is None else MASKED_KERNELS, set_priority=True)


def _shares_keys(query, key, value) -> bool:
    """Whether the first kernel supports several query heads per key head; otherwise the keys are repeated."""
    if query.device.type != "cuda":
        return True
    asked = torch.backends.cuda.SDPAParams(query, key, value, None, 0.0, False, True)
    repeated = torch.backends.cuda.SDPAParams(query, query, query, None, 0.0, False, False)
    can = torch.backends.cuda.can_use_cudnn_attention
    return can(asked) or not can(repeated)


def _folded_attention(query, key, value, mask, scaling, dropout, groups: int) -> torch.Tensor:
    """Masked attention in which heads that share keys become more queries of one head, so that no key is repeated."""
    rows, heads, queries, size = query.shape
    query = query.reshape(rows, heads // groups, groups * queries, size)
    mask = mask.repeat(1, 1, groups, 1)
    with _kernels(query, mask):
        output = scaled_dot_product_attention(query, key, value, mask, dropout, scale=scaling)
    return output.reshape(rows, heads, queries, size)


def _plain_attention(query, key, value, mask, scaling, dropout) -> torch.Tensor:
    """Attention as two products around a softmax, all (rows, heads, tokens, E). On short rows it is faster than the
    CPU's kernel, whose backward takes three times as long. Heads that share keys become more queries of one head.
    """
    rows, heads, queries, size = query.shape
    shared, groups = key.shape[1], heads // key.shape[1]
    bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, float("-inf"))
    bias = bias.repeat(1, 1, groups, 1).expand(-1, shared, -1, -1).flatten(0, 1)
    query = query.reshape(rows * shared, groups * queries, size)
    key, value = key.flatten(0, 1), value.flatten(0, 1)
    scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=size**-0.5 if scaling is None else scaling)
    weights = torch.softmax(scores, dim=-1)
    weights = torch.dropout(weights, dropout, train=True) if dropout else weights
    return torch.bmm(weights, value).view(rows, heads, queries, size)


def _cat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


AttentionInterface.register(NAME, split_attention_forward)
