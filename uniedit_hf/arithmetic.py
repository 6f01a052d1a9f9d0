"""Chooses device, dtype and processes by what the machine can do: a GPU if there is one, 16-bit arithmetic only where
it is faster than 32-bit, and one single-threaded process a core, two at most.

A CPU without 16-bit instructions emulates bfloat16, which takes several times as long as float32. Its feature flags do
not say how fast it is, and environment variables such as `ATEN_CPU_CAPABILITY` and `ONEDNN_MAX_CPU_ISA` switch
features off. So one small matrix product is timed in both dtypes, which takes a few milliseconds.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


ROWS, INPUTS, OUTPUTS, REPEATS = 256, 192, 384, 7
# The product must be clearly faster, since casting to 16 bit takes time as well.
WORTH_IT, SLOWER = 0.8, 1.2
MOST_JOBS = 2  # each process needs about half a gigabyte for PyTorch, transformers and a model


@dataclass(frozen=True)
class Arithmetic:
    """The device, dtype and number of processes that a small model is trained with.

    Args:
        device: `"cuda"`, `"mps"` or `"cpu"`.
        dtype: dtype of matrix products while training; weights stay in float32.
        jobs: Number of parallel processes, each with one thread, so that results depend only on dtype and device.
        reason: The reason, in words.
    """

    device: str
    dtype: torch.dtype
    jobs: int
    reason: str

    @property
    def dtype_name(self) -> str:
        """`"bfloat16"` or `"float32"`."""
        return str(self.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        processes = {1: "one process"}.get(self.jobs, f"{self.jobs} processes")
        return f"{self.dtype_name} on {self.device}, {processes} ({self.reason})"

    def autocast(self) -> torch.autocast:
        """A context in which matrix products use `dtype`."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == torch.bfloat16)


@functools.cache
def best_arithmetic() -> Arithmetic:
    """The fastest way to train a small model on this machine."""
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = torch.bfloat16 if native else torch.float32
        return Arithmetic("cuda", dtype, 1, torch.cuda.get_device_name())
    if torch.backends.mps.is_available():
        return Arithmetic("mps", torch.float32, 1, "Apple GPU")
    return cpu_arithmetic()


def inference_arithmetic(device: str | None = None, dtype: str = "auto") -> tuple[str, torch.dtype]:
    """The device and dtype for inference.

    Args:
        device: `"cuda:1"`, `"mps"`, `"cpu"` ...; by default a GPU if there is one.
        dtype: `"auto"` is bfloat16 on a CUDA device and float32 elsewhere.
    """
    device = device or best_arithmetic().device
    automatic = "bfloat16" if device.startswith("cuda") else "float32"
    return device, getattr(torch, automatic if dtype == "auto" else dtype)


@functools.cache
def cpu_arithmetic() -> Arithmetic:
    """The fastest way on the CPU, whatever else is there."""
    factor = bfloat16_time()
    words = f"{torch.backends.cpu.get_cpu_capability()}, bfloat16 takes {factor:.1f} times as long as float32"
    return Arithmetic(
        "cpu", torch.bfloat16 if factor < WORTH_IT else torch.float32, min(MOST_JOBS, available_cores()), words
    )


@functools.cache
def bfloat16_time() -> float:
    """Time of a matrix product in bfloat16 relative to float32, on one thread of the CPU."""
    products = [_product(dtype) for dtype in (torch.float32, torch.bfloat16)]
    with one_thread():
        times = [[_seconds(product) for product in products] for _ in range(REPEATS)]
    single, half = (min(each) for each in zip(*times))
    return half / single


@functools.cache
def warn_if_bfloat16_is_slow() -> None:
    """Warns, once, if the CPU only emulates 16-bit arithmetic."""
    from transformers.utils import logging  # the rest of this file needs only PyTorch

    factor = bfloat16_time()
    if factor > SLOWER:
        logging.get_logger(__name__).warning(
            f"bf16=True, but this CPU has no fast 16-bit arithmetic: a matrix product takes {factor:.1f} times as "
            "long as in float32. Set bf16=False."
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """Limits PyTorch to one thread: small models gain little from more, lose much on a busy machine, and with one
    thread give the same numbers on any number of cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _product(dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(ROWS, INPUTS, generator=generator).to(dtype)
    weight = torch.randn(OUTPUTS, INPUTS, generator=generator).to(dtype)
    return lambda: torch.nn.functional.linear(rows, weight)


def _seconds(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun
