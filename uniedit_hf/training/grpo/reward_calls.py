"""Calls of reward functions: side by side, each within a time limit, and everything they return looked at."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch

from uniedit_hf.rewards import reward_named


RewardFunc = Callable[..., Sequence[float | None]]


class RewardError(ValueError):
    """A reward function failed; the message names it, the row and the remedy."""


class RewardCalls:
    """The reward functions of a run.

    Args:
        funcs: Functions, coroutine functions, or names of `uniedit_hf.rewards`; one or several.
        weights: The weight of each; all 1 if not given.
        timeout: Seconds that one call may take.

    Raises:
        ValueError: If there is none, one is not known, or weights and functions differ in number.
    """

    def __init__(self, funcs, weights: Sequence[float] | None, timeout: float):
        funcs = [funcs] if callable(funcs) or isinstance(funcs, str) else list(funcs or [])
        if not funcs:
            raise ValueError("reward_funcs is empty, so nothing could be learned: name at least one reward.")
        self.funcs = [reward_named(each) if isinstance(each, str) else each for each in funcs]
        for func in self.funcs:
            if not callable(func):
                raise ValueError(f"reward_funcs has a {type(func).__name__}: give functions or names of rewards.")
        if weights is not None and len(weights) != len(self.funcs):
            raise ValueError(
                f"reward_weights has {len(weights)} values for {len(self.funcs)} reward_funcs: give one for each."
            )
        self.weights = [1.0] * len(self.funcs) if weights is None else [float(each) for each in weights]
        self.timeout = timeout

    @property
    def names(self) -> list[str]:
        """The names of the rewards in logs; functions with the same name are numbered."""
        names = [getattr(func, "__name__", type(func).__name__) for func in self.funcs]
        return [
            name if names.count(name) == 1 else f"{name}_{names[:number].count(name)}"
            for number, name in enumerate(names)
        ]

    def __call__(self, ids: Sequence[str], columns: Mapping[str, Any]) -> torch.Tensor:
        """Rewards (completions, functions), NaN where a function returned `None`.

        Args:
            ids: The row of every completion, for messages.
            columns: Keyword arguments of the functions.

        Raises:
            RewardError: A function raised, took too long, or returned something else than one number or `None` for
                each completion.
        """
        results: list[Any] = [None] * len(self.funcs)
        threads = [
            threading.Thread(target=_run, args=(func, dict(columns), results, number), daemon=True)
            for number, func in enumerate(self.funcs)
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + self.timeout
        for thread, name in zip(threads, self.names):
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                raise RewardError(
                    f"The reward {name!r} has not returned after {self.timeout:g} s: mend it, or raise reward_timeout."
                )
        checked = [_checked(name, found, ids) for name, found in zip(self.names, results)]
        return torch.tensor(checked, dtype=torch.float64).T

    def total(self, rewards: torch.Tensor) -> torch.Tensor:
        """The weighted sums (completions,) of rewards that apply; NaN where none does."""
        weighted = (rewards * torch.tensor(self.weights, dtype=rewards.dtype)).nansum(1)
        return torch.where(rewards.isnan().all(1), torch.nan, weighted)


def _run(func: RewardFunc, columns: dict[str, Any], results: list[Any], number: int) -> None:
    """Keeps what a function returns, or the error that it raised."""
    try:
        found = func(**columns)
        results[number] = asyncio.run(_awaited(found)) if inspect.isawaitable(found) else found
    except Exception as error:  # kept for the thread that waits, which raises it with the reward's name
        results[number] = error


async def _awaited(found):
    return await found


def _checked(name: str, found: Any, ids: Sequence[str]) -> list[float]:
    if isinstance(found, Exception):
        raise RewardError(f"The reward {name!r} raised {type(found).__name__}: {found}") from found
    if isinstance(found, (torch.Tensor,)) or hasattr(found, "tolist"):
        found = found.tolist()
    if not isinstance(found, (list, tuple)):
        raise RewardError(
            f"The reward {name!r} returned a {type(found).__name__}: return a list with one number or None for each "
            "completion."
        )
    if len(found) != len(ids):
        raise RewardError(
            f"The reward {name!r} returned {len(found)} values for {len(ids)} completions: return one number or None "
            "for each."
        )
    for value, row in zip(found, ids):
        number = value is None or (isinstance(value, Real) and math.isfinite(value))
        if not number:
            raise RewardError(
                f"The reward {name!r} returned {value!r} for row {row!r}: return a finite number, or None where it "
                "does not apply."
            )
    return [math.nan if value is None else float(value) for value in found]
