"""Who sees whom: the masks say what the rule says, and every attention implementation computes the same from them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from tiny_models import picture, tiny_bagel, tiny_bagel_processor
from torch.nn.attention.flex_attention import create_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from uniedit_hf.attention import (
    CAUSAL,
    FULL,
    NO_SAMPLE,
    NOISE,
    Packed,
    Splits,
    block_mask,
    context_mask,
    dense_mask,
    sample_grid,
)
from uniedit_hf.segments import ImageSegment, Sample, TextSegment


# A sample is a list of splits (kind, tokens), a row a list of samples.
splits = st.tuples(st.sampled_from([CAUSAL, FULL, NOISE]), st.integers(1, 6))
samples = st.lists(splits, min_size=1, max_size=4)
rows = st.lists(samples, min_size=1, max_size=4)
quick = settings(max_examples=30, deadline=None)
quicker = settings(max_examples=15, deadline=None)  # every block mask is traced anew


def as_splits(row: list, padding: int = 0) -> Splits:
    """One row (1, L), with padding on the left."""
    columns: list[list[int]] = [[NO_SAMPLE] * padding, [NO_SAMPLE] * padding, [CAUSAL] * padding]
    split = 0
    for number, sample in enumerate(row):
        for kind, length in sample:
            for column, value in zip(columns, (number, split, kind)):
                column += [value] * length
            split += 1
    return Splits(*(torch.tensor([column]) for column in columns))


def slow_mask(each: Splits) -> torch.Tensor:
    """The rule, token by token: (L, L)."""
    sample, split, kind = (column[0].tolist() for column in each)
    length = len(sample)
    mask = torch.zeros(length, length, dtype=torch.bool)
    for query in range(length):
        for key in range(length):
            if NO_SAMPLE in (sample[query], sample[key]):
                mask[query, key] = query == key
                continue
            same_split = split[query] == split[key]
            sees = key <= query or (same_split and kind[key] in (FULL, NOISE))
            hidden = kind[key] == NOISE and not same_split
            mask[query, key] = sample[query] == sample[key] and sees and not hidden
    return mask


def stacked(some: list[Splits]) -> Splits:
    return Splits(*(torch.cat(columns) for columns in zip(*some)))


def routed_order(each: Splits, seed: int) -> torch.Tensor:
    """Any order of the real tokens, as routing makes one."""
    real = (each.sample.flatten() != NO_SAMPLE).nonzero()[:, 0]
    return real[torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))]


@quick
@given(batch=st.lists(rows, min_size=1, max_size=3))
def test_dense_mask_is_the_rule(batch):
    lengths = [sum(length for sample in row for _, length in sample) for row in batch]
    each = [as_splits(row, padding=max(lengths) - length) for row, length in zip(batch, lengths)]
    assert torch.equal(dense_mask(stacked(each)), torch.stack([slow_mask(one) for one in each]))


def test_a_hand_written_mask():
    """Two words, an image of two tokens, a noised image of two tokens; then another sample of one word."""
    each = as_splits([[(CAUSAL, 2), (FULL, 2), (NOISE, 2)], [(CAUSAL, 1)]])
    expected = [
        "x......",
        "xx.....",
        "xxxx...",
        "xxxx...",
        "xxxxxx.",
        "xxxxxx.",
        "......x",
    ]
    assert ["".join("x" if sees else "." for sees in row) for row in dense_mask(each)[0]] == expected


def test_a_clean_copy_does_not_see_the_noised_image_before_it():
    mask = dense_mask(as_splits([[(NOISE, 2), (FULL, 2), (CAUSAL, 1)]]))[0]
    assert mask[:2, :2].all() and not mask[2:, :2].any()
    assert mask[4, 2:].all()


@quicker
@given(row=rows, seed=st.integers(0, 99))
def test_no_token_sees_another_sample(row, seed):
    each = as_splits(row)
    assert not dense_mask(each)[0][each.sample[0][:, None] != each.sample[0]].any()
    order = routed_order(each, seed)
    sample = each.sample[0][order]
    routed = create_mask(block_mask(each, order).mask_mod, 1, 1, len(order), len(order), device="cpu")[0, 0]
    assert not routed[sample[:, None] != sample].any()
    assert torch.equal(routed, slow_mask(each)[order][:, order])


@quicker
@given(row=rows, seed=st.integers(0, 99))
def test_flex_attention_and_rows_of_samples_agree_with_the_dense_mask(row, seed):
    """Eager FlexAttention over the routed order, SDPA over one row for every sample, SDPA over the whole pack."""
    each = as_splits(row)
    order = routed_order(each, seed)
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(len(order), 2, 16, generator=generator) for _ in range(3))

    grid = sample_grid(each, order)
    spread = [grid.spread(states) for states in (query, key, value)]
    by_rows = grid.gather(scaled_dot_product_attention(*spread, attn_mask=grid.mask).transpose(1, 2))

    packed = Packed(block_mask(each, order))
    spread = [packed.spread(states) for states in (query, key, value)]
    by_flex = packed.gather(flex_attention(*spread, block_mask=packed.mask).transpose(1, 2))

    in_sequence = [packed.spread(states[order.argsort()]) for states in (query, key, value)]
    whole = scaled_dot_product_attention(*in_sequence, attn_mask=slow_mask(each))
    whole = whole.transpose(1, 2)[0].flatten(1)[order]
    torch.testing.assert_close(by_rows, whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(by_flex, whole, atol=1e-5, rtol=1e-5)


@quick
@given(row=rows, seed=st.integers(0, 99))
def test_a_grid_keeps_every_token(row, seed):
    each = as_splits(row)
    order = routed_order(each, seed)
    grid = sample_grid(each, order)
    states = torch.randn(len(order), 2, 3)
    assert grid.rows == len(row)
    assert torch.equal(grid.gather(grid.spread(states).transpose(1, 2)), states.flatten(1))


@quick
@given(
    past=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=2, max_size=2),
    length=st.integers(1, 4),
    room=st.integers(0, 3),
)
def test_context_mask(past, length, room):
    """New tokens see the real tokens of the context, each other as told, and nothing of an unfilled cache."""
    own = torch.ones(2, length, length, dtype=torch.bool).tril()
    attention_mask = torch.cat([torch.tensor(past), torch.ones(2, length, dtype=torch.bool)], dim=1).long()
    mask = context_mask(attention_mask, own, 3 + length + room)
    assert mask.shape == (2, 1, length, 3 + length + room)
    for row in range(2):
        for query in range(length):
            expected = [*past[row], *(key <= query for key in range(length)), *[False] * room]
            assert mask[row, 0, query].tolist() == expected


# ---- the model


@pytest.fixture(scope="module")
def model():
    return tiny_bagel()


@pytest.fixture(scope="module")
def pack():
    edit = [ImageSegment(picture(64, 48, 1), "vae"), ImageSegment(picture(64, 48, 1), "vit")]
    edit += [TextSegment("paint the circle red"), ImageSegment(picture(64, 48, 2), "vae", loss=True)]
    turns = [ImageSegment(picture(32, 64, 3), "vae", loss=True), ImageSegment(picture(32, 64, 3), "vae")]
    turns += [TextSegment("what is this", loss=True), ImageSegment(picture(64, 32, 4), "vae", loss=True)]
    answer = [ImageSegment(picture(56, 56, 5), "vit"), TextSegment("what colour"), TextSegment("red", loss=True)]
    return tiny_bagel_processor().pack([Sample(edit, "a"), Sample(turns, "b"), Sample(answer, "c")], seed=1)


def hidden_states(model, pack, implementation: str) -> torch.Tensor:
    model.set_attn_implementation(implementation)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        hidden = model.pack_hidden_states(**pack)
    model.set_attn_implementation("sdpa")
    return hidden


@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
def test_every_implementation_gives_the_same_hidden_states(model, pack, implementation):
    expected = hidden_states(model, pack, "sdpa")
    found = hidden_states(model, pack, implementation)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_no_sample_of_a_pack_depends_on_another(model, pack):
    """Other words and other noise in the last sample leave the hidden states of the others as they were."""
    before = hidden_states(model, pack, "sdpa")
    ids = torch.where(
        (pack["sample_ids"] == 2) & (pack["token_type_ids"] == 1), pack["input_ids"] - 1, pack["input_ids"]
    )
    changed = pack | {"input_ids": ids, "vit_patches": pack["vit_patches"].clone()}
    changed["vit_patches"][-16:] += 1
    after = hidden_states(model, changed, "sdpa")
    others = pack["sample_ids"] != 2
    assert torch.equal(before[others], after[others])
    assert not torch.allclose(before[~others], after[~others])
