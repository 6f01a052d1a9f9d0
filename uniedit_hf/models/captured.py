"""Work over tensors that stay where they are, captured as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Replayed:
    """A function without arguments whose tensors never move: the first call runs it, the second captures it, and from
    then on it is replayed. On other devices than CUDA's every call runs it.

    What it returns from the second call on are the same tensors every time, with new values.

    Args:
        function: It must wait for nothing and read nothing back from the device.
        device: Of its tensors.
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
            # other threads, such as those of a server, may go on meanwhile
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.result = self.function()
        self.graph.replay()
        return self.result
