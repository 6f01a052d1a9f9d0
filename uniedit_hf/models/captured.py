"""Work over tensors at fixed addresses, captured as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Replayed:
    """A function without arguments whose tensors never move: the first call runs it, the second captures it, and later
    calls replay it. On devices other than CUDA every call runs it.

    From the second call on it returns the same tensors every time, with new values.

    Args:
        function: The function; it must not synchronize or read anything back from the device.
        device: Device of its tensors.
    """

    def __init__(self, function: Callable[[], Any], device: torch.device):
        self.function, self.on_cuda = function, device.type == "cuda"
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.result: Any = None

    def __call__(self) -> Any:
        self.calls += 1
        if not self.on_cuda or self.calls == 1:
            return self.function()
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            # other threads, such as those of a server, may continue meanwhile
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.result = self.function()
        self.graph.replay()
        return self.result
