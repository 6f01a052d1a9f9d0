"""Frozen modules that keep their precision and get no adapters."""

from __future__ import annotations

import torch
from torch import nn


class Fp32Weights:
    """Moves with the model but is not cast with it; must come before `nn.Module` among the bases."""

    def _apply(self, fn, recurse=True):
        def without_cast(tensor):
            applied = fn(tensor)
            return applied if applied.dtype == tensor.dtype else tensor.to(applied.device)

        return super()._apply(without_cast, recurse)


class FixedLinear(nn.Module):
    """A linear layer that is never trained. Adapters for "all-linear" and quantizers look for `nn.Linear` and skip it.

    Args:
        linear: The layer whose weights to use.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        return nn.functional.linear(states, self.weight, self.bias)


def fix_linears(module: nn.Module) -> None:
    """Replaces every linear layer in a module by a fixed one with the same weights."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, FixedLinear(child))
