"""The average of the weights: what it holds, and how it takes their place."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st

from uniedit_hf.training.ema import WeightAverage


@given(decay=st.floats(0.0, 1.0), values=st.lists(st.floats(-10, 10), min_size=1, max_size=8))
def test_it_is_the_exponential_average(decay, values):
    model = torch.nn.Linear(2, 2)
    frozen = model.bias.requires_grad_(False).clone()
    average = WeightAverage(model, decay)
    expected = model.weight.detach().clone()
    for value in values:
        torch.nn.init.constant_(model.weight, value)
        average.update(model)
        expected = decay * expected + (1 - decay) * value
    average.copy_to(model)
    assert model.weight.detach().numpy() == pytest.approx(expected.numpy(), abs=1e-4)
    assert torch.equal(model.bias, frozen)
