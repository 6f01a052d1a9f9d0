"""The loop that trains stacks of small models on a GPU: one step is one CUDA graph, and the learning rate follows the
clock.

All weights of a stack are one matrix (models, parameters), so that the optimizer is a few operations. The same loop
runs step by step on a CPU.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from uniedit_hf.files import written_file

from .static_model import Weights


BETAS, EPS, CLIP = (0.9, 0.98), 1e-8, 1.0
SYNC_EVERY, WARMUP_STEPS = 10, 3
Losses = dict[str, torch.Tensor]  # per model (M,); "loss" is what is minimized


class FlatWeights:
    """Named weights of M models as columns of one matrix.

    Args:
        weights: (M, ...) each.
    """

    def __init__(self, weights: Weights):
        self.shapes = {name: weight.shape[1:] for name, weight in weights.items()}
        self.sizes = [shape.numel() for shape in self.shapes.values()]

    def flatten(self, weights: Weights) -> torch.Tensor:
        """(M, P)."""
        return torch.cat([weights[name].flatten(1) for name in self.shapes], dim=1)

    def named(self, flat: torch.Tensor) -> Weights:
        """Views by name."""
        parts = flat.split(self.sizes, dim=1)
        return {name: part.view(len(flat), *shape) for (name, shape), part in zip(self.shapes.items(), parts)}

    def per_parameter(self, value_of: Callable[[str], float]) -> torch.Tensor:
        """(P,) a value that depends on a weight's name."""
        return torch.cat([torch.full((size,), value_of(name)) for name, size in zip(self.shapes, self.sizes)])


@dataclass
class Schedule:
    """The learning rate over the elapsed share of the time: warm-up, plateau, a straight line to `last`."""

    warmup: float = 0.03
    decay: float = 0.35
    last: float = 0.0

    def __call__(self, gone: float) -> float:
        left = (1 - gone) / self.decay if self.decay else 1.0
        return max(min(gone / self.warmup if self.warmup else 1.0, 1.0, left), self.last, 1e-4)


class StackTrainer:
    """AdamW with an average of the weights over a matrix of parameters.

    Args:
        flat: (M, P) the weights to start from.
        losses: Computes the losses from the matrix in the dtype of the arithmetic, on new draws.
        rate: (M, P) or (M, 1) peak learning rates.
        decay: Weight decay.
        average: Decay of the average.
        anchor: Strength (M, 1) of the pull towards the start, in units of the rate; none by default.
        dtype: dtype of the arithmetic.
    """

    def __init__(
        self, flat: torch.Tensor, losses: Callable[[torch.Tensor], Losses], rate: torch.Tensor, decay: float,
        average: float, dtype: torch.dtype, anchor: torch.Tensor | None = None,
    ):  # fmt: skip
        self.flat = flat.clone().requires_grad_(True)
        self.losses, self.rate, self.decay, self.average_decay, self.dtype = losses, rate, decay, average, dtype
        self.start = None if anchor is None else flat.clone()
        self.anchor = anchor
        self.first, self.second = torch.zeros_like(flat), torch.zeros_like(flat)
        self.average = flat.clone()
        self.steps = torch.zeros((), device=flat.device)
        self.factor = torch.zeros((), device=flat.device)  # factor of the rate, set by the schedule
        self.sums: Losses = {}
        self.graph: torch.cuda.CUDAGraph | None = None

    def step(self) -> None:
        """One step, as operations or as the captured graph."""
        self.graph.replay() if self.graph is not None else self._step()

    def capture(self) -> None:
        """Captures a step as a CUDA graph; the warm-up steps count as training steps."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUP_STEPS):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        self.graph = graph

    def _step(self) -> None:
        losses = self.losses(self.flat.to(self.dtype))
        (gradient,) = torch.autograd.grad(losses["loss"].sum(), self.flat)
        with torch.no_grad():
            self.steps += 1
            self._update(gradient.float())
            for name, value in losses.items():
                if name not in self.sums:
                    self.sums[name] = torch.zeros_like(value, dtype=torch.float32)
                self.sums[name] += value.detach().float()

    def _update(self, gradient: torch.Tensor) -> None:
        norm = gradient.square().sum(1, keepdim=True).sqrt()
        gradient.mul_((CLIP / (norm + 1e-6)).clamp(max=1.0))
        self.first.lerp_(gradient, 1 - BETAS[0])
        self.second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        corrections = [1 - beta**self.steps for beta in BETAS]
        update = (self.first / corrections[0]) / ((self.second / corrections[1]).sqrt() + EPS)
        if self.decay:
            update.add_(self.flat, alpha=self.decay)
        if self.anchor is not None:
            update.add_(self.anchor * (self.flat - self.start))
        self.flat.sub_(self.factor * self.rate * update)
        # at first the average follows quickly
        keep = torch.minimum(torch.full_like(self.steps, self.average_decay), (1 + self.steps) / (10 + self.steps))
        self.average.add_((1 - keep) * (self.flat - self.average))

    def take_means(self) -> dict[str, list[float]]:
        """Means of the losses since the last call, by model."""
        count = self.counted()
        means = {name: (value / max(count, 1)).tolist() for name, value in self.sums.items()}
        for value in self.sums.values():
            value.zero_()
        self._counted_to = int(self.steps.item())
        return means

    def counted(self) -> int:
        return int(self.steps.item()) - getattr(self, "_counted_to", 0)

    def state(self) -> dict[str, torch.Tensor]:
        """The state needed to resume."""
        names = ("flat", "first", "second", "average", "steps")
        return {name: getattr(self, name).detach().cpu() for name in names}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name in ("flat", "first", "second", "average", "steps"):
                getattr(self, name).copy_(state[name])
        self._counted_to = int(self.steps.item())


def train_until(
    trainer: StackTrainer, seconds: float, spent: float, schedule: Schedule, folder: Path, seed: int,
    each_step: Callable[[float], None] = lambda gone: None, log_every: float = 2.0, save_every: float = 30.0,
) -> None:  # fmt: skip
    """Trains until `seconds` are spent in total, with a log and checkpoints in `folder`.

    Args:
        trainer: The trainer; resumed from `folder/state.pt` by the caller.
        seconds: Total seconds of training.
        spent: Seconds of training before this call.
        schedule: Schedule of the rate.
        folder: Folder for `log.jsonl` and `state.pt`.
        seed: Seed of this call's draws, together with the number of steps done.
        each_step: Called with the elapsed share of the time before every step.
        log_every: Seconds between lines of the log.
        save_every: Seconds between checkpoints.
    """
    torch.manual_seed(seed + 1_000_003 * int(trainer.steps.item()))
    begun = logged = saved = time.perf_counter()
    while True:
        for _ in range(SYNC_EVERY):
            gone = min(1.0, (spent + time.perf_counter() - begun) / seconds)
            trainer.factor.fill_(schedule(gone))
            each_step(gone)
            trainer.step()
        if trainer.flat.is_cuda:
            torch.cuda.synchronize()
        now = time.perf_counter()
        over = spent + now - begun >= seconds
        if over or now - logged >= log_every:
            logged = now
            line = {"step": int(trainer.steps.item()), "seconds": round(spent + now - begun, 1)}
            rounded = {name: [round(x, 4) for x in values] for name, values in trainer.take_means().items()}
            append(folder / "log.jsonl", line | rounded)
        if over or now - saved >= save_every:
            saved = now
            save(folder / "state.pt", trainer.state() | {"seconds": spent + now - begun})
        if over:
            return


def append(path: Path, line: dict) -> None:
    """Adds a line of JSON to a file."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def save(path: Path, state: dict) -> None:
    """Writes a file atomically."""
    with written_file(path) as part:
        torch.save(state, part)
