"""Speed of a run: operations per second and their share of the card's peak, time by part of a step, peak memory."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback

from uniedit_hf.models.workload import ROWS, Workload

from .cards import Card, card_at_hand
from .flops import OperationCounter, Operations
from .memory_plan import GIB


PARTS = ("data", "forward", "backward", "optimizer", "other")
COUNTS = ("useful_operations", "all_operations", *(f"{part}_seconds" for part in PARTS))
# Figures that depend on the clock and not on the run.
LOGGED = ("tflops_per_second", "mfu", "peak_memory_gib", *(f"{part}_seconds" for part in PARTS))


class StepClock:
    """Measures seconds of each part of the steps. On a GPU it records events, so that nothing waits until they are
    read.

    Args:
        device: The device of the steps.
    """

    def __init__(self, device: torch.device):
        self.on_gpu = device.type == "cuda"
        self.laps: list[tuple[str, object]] = []

    def begin(self, part: str) -> None:
        """Ends the current part and begins another."""
        if self.on_gpu:
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
        else:
            mark = time.perf_counter()
        self.laps.append((part, mark))

    def read(self) -> dict[str, float]:
        """Seconds by part since the last read; the current part continues."""
        if not self.laps:
            return {}
        running = self.laps[-1][0]
        self.begin(running)
        if self.on_gpu:
            torch.cuda.synchronize()
        seconds: dict[str, float] = defaultdict(float)
        for (part, begun), (_, ended) in zip(self.laps, self.laps[1:]):
            seconds[part] += begun.elapsed_time(ended) / 1000 if self.on_gpu else ended - begun
        self.laps = self.laps[-1:]
        return dict(seconds)


class Meters:
    """Counts operations, time and memory of one process.

    Args:
        model: The model in training.
        recompute: Whether the layers of the decoder run again in the backward pass.
        text_loss: Whether the text loss has a weight.
        device: The device of the steps.
    """

    def __init__(self, model, recompute: bool, text_loss: bool, device: torch.device):
        self.card: Card = card_at_hand(device)
        self.clock = StepClock(device)
        self._device = device
        self._counter: OperationCounter | None = None  # for families whose operations cannot be counted
        if model.config.model_type in ROWS:
            self._counter = OperationCounter(model, recompute, text_loss)

    def operations(self, packs: Iterable[Workload]) -> Operations:
        """The operations of forward and backward over packs."""
        return Operations() if self._counter is None else sum(map(self._counter.count, packs), Operations())

    def counts(self) -> dict[str, float]:
        """The counts since the last log, to be summed over processes."""
        return {f"{part}_seconds": seconds for part, seconds in self.clock.read().items()}

    def logs(self, sums: Mapping[str, float], seconds: float, processes: int) -> dict[str, float]:
        """Figures of the time since the last log, means over steps and processes.

        `mfu` is the share of the card's dense bf16 peak that useful operations take, not counting recomputation; it is
        given if the card's peak is known. `tflops_per_second` counts the same operations. Both are given for the
        families of `uniedit_hf.models.workload.ROWS`.
        """
        logs = {}
        if self._counter is not None:
            rate = sums["useful_operations"] / seconds / processes / 1e12
            logs["tflops_per_second"] = float(f"{rate:.4g}")
            if self.card.tflops is not None:
                logs["mfu"] = round(rate / self.card.tflops, 4)
        if self._device.type == "cuda":
            logs["peak_memory_gib"] = round(torch.cuda.max_memory_allocated(self._device) / GIB, 2)
        return logs | {f"{part}_seconds": round(sums[f"{part}_seconds"] / sums["steps"], 4) for part in PARTS}


class MeteredProgress(ProgressCallback):
    """The progress bar of `Trainer`, which also shows speed, share of the card's peak and memory."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(str(rounded(logs)))
            if "tokens_per_second" in logs:
                self.training_bar.set_postfix_str(summary(logs))


class NumberPrinter(PrinterCallback):
    """Prints logs as numbers, where `Trainer` prints them as texts, when there is no progress bar."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_local_process_zero and logs is not None:
            print(rounded(logs))  # noqa: T201


def rounded(logs: Mapping[str, Any]) -> dict[str, Any]:
    """Logs with numbers of four digits, without `total_flos`, to be read by people and by programs."""
    values = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in logs.items()}
    return {name: value for name, value in values.items() if name != "total_flos"}


def summary(logs: Mapping[str, float]) -> str:
    """The meters of a log in a few words."""
    words = [f"{logs['tokens_per_second']:,.0f} tokens/s"]
    if "mfu" in logs:
        words.append(f"MFU {100 * logs['mfu']:.1f} %")
    if "peak_memory_gib" in logs:
        words.append(f"{logs['peak_memory_gib']:.1f} GiB")
    return ", ".join(words)


def typical(history: Sequence[Mapping[str, float]]) -> str | None:
    """The median meters of a run in a few words, without its first log where there are more; `None` without any."""
    logs = [log for log in history if "tokens_per_second" in log]
    logs = logs[1:] or logs
    if not logs:
        return None
    names = [name for name in ("tokens_per_second", "mfu", "peak_memory_gib") if name in logs[-1]]
    return summary({name: median(log[name] for log in logs if name in log) for name in names})
