"""Attention split by split: forward and gradients are those of the dense mask, whatever a pack holds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from test_attention import as_splits, rows, slow_mask
from torch.nn.functional import scaled_dot_product_attention

from uniedit_hf.attention import CAUSAL, FULL, NOISE
from uniedit_hf.split_attention import NAME, plan_splits, split_attention_forward


drawn_packs = settings(max_examples=60, deadline=None)
# The tokens from which an image is a call of its own: all images, longer ones, none.
long_from = st.sampled_from([1, 4, 100])


def states(count: int, heads: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, heads, 16, generator=generator, requires_grad=True)


def as_interface(states: torch.Tensor) -> torch.Tensor:
    return states.transpose(0, 1)[None]


def dense(query, key, value, mask) -> torch.Tensor:
    """(queries, heads, size) over all keys through one mask."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return scaled_dot_product_attention(*map(as_interface, (query, key, value)), attn_mask=mask)[0].transpose(0, 1)


@drawn_packs
@given(row=rows, seed=st.integers(0, 99), long=long_from, shared=st.sampled_from([1, 2, 4]), asking=st.floats(0, 1))
def test_forward_and_gradients_are_those_of_the_dense_mask(row, seed, long, shared, asking):
    """In any routed order, with heads that share keys, and where only the rows behind some ask."""
    each = as_splits(row)
    count = each.sample.shape[1]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    first = min(int(asking * count), count - 1)
    plan = plan_splits(*(column[0] for column in each), order, long=long, first_query=first)
    query = states(count - first, 4, seed)
    key, value = (states(count, 4 // shared, seed + number) for number in (1, 2))
    found, weights = split_attention_forward(None, *map(as_interface, (query, key, value)), plan)
    expected = dense(query, key, value, slow_mask(each)[order][:, order][first:])
    assert weights is None
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-5)
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(seed + 3))
    ours = torch.autograd.grad(found[0], (query, key, value), gradient)
    theirs = torch.autograd.grad(expected, (query, key, value), gradient)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_calls_of_two_edits():
    """A source that is read, an instruction, and an image that is drawn, whose markers are routed elsewhere."""
    edit = [(FULL, 6), (CAUSAL, 3), (NOISE, 6)]
    each = as_splits([edit, edit])
    und = [place + start for start in (0, 15) for place in (*range(10), 14)]
    gen = [place + start for start in (0, 15) for place in range(10, 14)]
    columns = [column[0] for column in each]
    plan = plan_splits(*columns, und + gen, long=4)
    assert plan.runs == ((6, 0), (5, -1), (6, 2), (5, -1), (4, 1), (4, 3))
    assert plan.keys == ((1, 6), (1, 15), (1, 6), (1, 15), (2, 15))
    assert [tuple(mask.shape) for mask in plan.masks] == [(2, 1, 5, 15)]
    assert plan.key_uses.shape == (30, 3)
    alone = plan_splits(*columns, und + gen, long=4, first_query=len(und))
    assert alone.runs == ((4, 0), (4, 1)) and not alone.masks


def test_short_samples_share_calls():
    """Samples of like lengths are rows of one call; a long one does not pad the others."""
    each = as_splits([[(CAUSAL, 5)], [(CAUSAL, 6)], [(FULL, 7)], [(CAUSAL, 400)]])
    plan = plan_splits(*(column[0] for column in each), range(418))
    assert [tuple(mask.shape) for mask in plan.masks] == [(3, 1, 7, 7), (1, 1, 400, 400)]


def test_without_a_plan_it_is_plain_attention():
    query, key, value = (torch.randn(2, heads, 5, 8) for heads in (4, 2, 2))
    found, _ = split_attention_forward(None, query, key, value, None)
    expected = scaled_dot_product_attention(query, key, value, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(found, expected)


def test_a_plan_moves_and_keeps_its_numbers():
    plan = plan_splits([0] * 4, [0] * 4, [CAUSAL] * 4, range(4))
    moved = plan.to("meta")
    assert moved.runs == plan.runs and moved.masks[0].is_meta and moved.key_rows.is_meta


def test_the_name_is_known_to_transformers():
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    assert ALL_ATTENTION_FUNCTIONS[NAME] is split_attention_forward


@pytest.mark.parametrize("dropout", [0.5])
def test_dropout_acts_on_the_weights(dropout):
    plan = plan_splits([0] * 64, [0] * 64, [FULL] * 64, range(64))
    query, key, value = (torch.ones(1, 1, 64, 8) for _ in range(3))
    found, _ = split_attention_forward(None, query, key, value, plan, dropout=dropout)
    assert found.std() > 0 and found.mean() == pytest.approx(1, abs=0.1)
