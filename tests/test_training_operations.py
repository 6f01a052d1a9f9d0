"""Floating-point operations that are counted from packs, against those that torch counts while a step runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings as given_settings, strategies
from peft import LoraConfig, get_peft_model
from tiny_models import FAMILIES, picture
from torch.utils.flop_counter import FlopCounterMode
from training_data import settings

from uniedit_hf.attention import CAUSAL, FULL, NOISE, Splits, dense_mask
from uniedit_hf.models.loading import inner_model
from uniedit_hf.models.workload import Workload, _pairs, typical_workload, workload
from uniedit_hf.segments import ImageSegment, Sample, TextSegment
from uniedit_hf.training.flops import OperationCounter
from uniedit_hf.training.freezing import adapted_layers, freeze


VIEWS = {"bagel": ("vit", "vae"), "janus": ("siglip", "vq")}
CASES = {
    "full": {},
    "both losses": {"text_loss_weight": 0.5},
    "generation expert": {"freeze_und": True},
    "understanding expert": {"freeze_gen": True},
    "encoder too": {"freeze_vit": False},
}


def pack(family: str, text_loss: bool):
    """One sample, so that a dense mask over it is no larger than it is."""
    read, drawn = VIEWS[family]
    segments = [
        ImageSegment(picture(84, 84), read),
        TextSegment("paint the red circle", loss=text_loss),
        ImageSegment(picture(96, 64, seed=1), drawn, loss=True),
    ]
    return FAMILIES[family].processor().pack([Sample(segments, "one")], posterior="sample")


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_exact(tmp_path, family, case, adapters, recompute):
    """Of every product that runs, forward and backward; attention by the pairs that its kernel computes."""
    if adapters and case == "encoder too":
        pytest.skip("adapters leave the encoder as it is")
    args = settings(tmp_path, family, **CASES[case])
    model = FAMILIES[family].model().train()
    model.set_attn_implementation("eager")
    if adapters:
        model = get_peft_model(model, LoraConfig(r=4, target_modules=adapted_layers(model, args, True)))
    else:
        freeze(model, args, True)
    inner = inner_model(model)
    if recompute:
        inner.activation_checkpointing_enable()
    features = pack(family, bool(args.text_loss_weight))
    work = workload(features)
    counter = OperationCounter(inner, recompute, args.text_loss_weight > 0)
    found = counter.count(replace(work, pairs=work.tokens**2))
    inputs = {name: value for name, value in features.items() if not name.startswith("num_")}
    with FlopCounterMode(display=False) as encoding:
        inner.encode_images([torch.zeros(3, *size) for size in work.images])
    with FlopCounterMode(display=False) as step:
        losses = model(**inputs)
        forward = step.get_total_flops() - encoding.get_total_flops()
        loss = losses.image_sum + (args.text_loss_weight * losses.text_sum if args.text_loss_weight else 0)
        loss.backward()
    assert found.forward == forward
    assert found.total - found.encoding == step.get_total_flops() - encoding.get_total_flops()


@given(
    strategies.lists(
        strategies.lists(
            strategies.tuples(strategies.sampled_from([CAUSAL, FULL, NOISE]), strategies.integers(1, 9)),
            min_size=1,
            max_size=4,
        ),
        min_size=1,
        max_size=4,
    )
)
@given_settings(max_examples=50, deadline=None)
def test_pairs_are_those_of_the_mask(samples):
    columns = [
        (number, split, kind)
        for number, splits in enumerate(samples)
        for split, (kind, length) in enumerate(splits)
        for _ in range(length)
    ]
    splits = Splits(*(torch.tensor(each)[None] for each in zip(*columns)))
    features = dict(zip(("sample_ids", "split_ids", "split_kinds"), splits))
    assert _pairs(features) == int(dense_mask(splits).sum())


def test_a_pack_is_the_sum_of_its_samples():
    one = workload(pack("bagel", True))
    assert (one + one).pairs == 2 * one.pairs and (one + one).images == one.images * 2
    assert one.understood + one.drawn == one.tokens and one.image_targets == one.drawn


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tokens", [10, 100, 1000, 11520])
def test_typical_packs_fit(family, tokens):
    work = typical_workload(FAMILIES[family].model().config, tokens)
    assert isinstance(work, Workload) and 0 < work.drawn + work.read <= 2 * tokens and work.tokens == tokens
