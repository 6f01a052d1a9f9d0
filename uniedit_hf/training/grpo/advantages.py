"""Rewards to advantages: how much better a completion is than the others of its prompt."""

from __future__ import annotations

from typing import Literal

import torch


ScaleRewards = Literal["group", "batch", "none"]
EPSILON = 1e-4  # as in TRL


def advantages_of(rewards: torch.Tensor, num_generations: int, scale: ScaleRewards) -> torch.Tensor:
    """The reward minus the mean of its group, divided by the standard deviation of the group, of the batch, or by
    nothing.

    Args:
        rewards: (completions,) by prompt, NaN where no reward applies.
        num_generations: Completions of a prompt.
        scale: The divisor: the standard deviation of the group or of the batch, or none.

    Returns:
        (completions,), 0 where the rewards of the group are all alike and where no reward applies. Both teach nothing.
    """
    groups = rewards.view(-1, num_generations)
    apart = groups - groups.nanmean(1, keepdim=True)
    if scale == "group":
        apart = apart / (_deviation(groups)[:, None] + EPSILON)
    elif scale == "batch":
        apart = apart / (_deviation(rewards[None]) + EPSILON)
    known = apart.nan_to_num(0.0)
    return torch.where(alike(groups)[:, None], 0.0, known).flatten()


def alike(groups: torch.Tensor) -> torch.Tensor:
    """Whether the rewards (groups, completions) of each group are all the same, or too few: (groups,)."""
    spread = groups.nan_to_num(-torch.inf).amax(1) - groups.nan_to_num(torch.inf).amin(1)
    return ~(spread > 1e-8)


def _deviation(groups: torch.Tensor) -> torch.Tensor:
    """The standard deviation of each row, over what is known; 0 for fewer than two values."""
    count = (~groups.isnan()).sum(1)
    squares = (groups - groups.nanmean(1, keepdim=True)).square().nansum(1)
    return torch.where(count > 1, (squares / (count - 1).clamp(min=1)).sqrt(), 0.0)
