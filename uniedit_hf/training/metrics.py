"""Sums that become means when they are logged, over any number of steps and devices."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence

import torch

from uniedit_hf.losses import Losses

from .data import PackNotes
from .meters import COUNTS


LOSS_SUMS = ("text_sum", "text_count", "image_sum", "image_count")
SUMMED = (*LOSS_SUMS, "loss", "steps", "tokens", "samples", "packs", "data_wait_seconds", "quarantined_rows", *COUNTS)


class RunningSums:
    """Sums accumulated on this process since the last log. Losses stay on their device until they are logged.

    Args:
        names: The names of the sums that are logged.
    """

    def __init__(self, names: Sequence[str] = SUMMED):
        self.names = names
        self.sums: dict[str, float | torch.Tensor] = defaultdict(float)
        self.since = time.perf_counter()

    def add(self, **values: float | torch.Tensor) -> None:
        """Adds to the sums with these names."""
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value

    def add_losses(self, losses: Losses) -> None:
        """Adds the sums and counts of a forward."""
        self.add(**{name: getattr(losses, name).detach() for name in LOSS_SUMS})

    def add_pack(self, notes: PackNotes) -> None:
        """Counts a pack."""
        self.add(packs=1, tokens=notes.tokens, samples=len(notes.ids))

    @property
    def seconds(self) -> float:
        """Since the last log, across a restart."""
        return time.perf_counter() - self.since

    def over_all(self, accelerator) -> dict[str, float]:
        """The sums over all processes."""
        table = torch.tensor([float(self.sums[name]) for name in self.names], dtype=torch.float64)
        if accelerator.num_processes > 1:
            table = accelerator.reduce(table.to(accelerator.device), reduction="sum")
        return dict(zip(self.names, table.tolist()))

    def clear(self) -> None:
        """Resets the sums."""
        self.sums.clear()
        self.since = time.perf_counter()

    def state_dict(self) -> dict[str, float]:
        """The sums as plain numbers."""
        return {"seconds": self.seconds, **{name: float(value) for name, value in self.sums.items()}}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Resumes from these sums."""
        self.sums = defaultdict(float, {name: value for name, value in state.items() if name != "seconds"})
        self.since = time.perf_counter() - state["seconds"]


def loss_means(sums: dict[str, float]) -> dict[str, float]:
    """The mean loss of each part that any token carried."""
    return {part: sums[f"{part}_sum"] / sums[f"{part}_count"] for part in ("image", "text") if sums[f"{part}_count"]}
