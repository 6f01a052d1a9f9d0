"""Peak memory of a step, measured by counting the bytes of all live tensors, on any device."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class CountedMemory(TorchDispatchMode):
    """Counts the storages that operations allocate inside the context, until they are freed.

    Args:
        tensors: Tensors that already exist, such as the weights.

    Attributes:
        now: Bytes alive.
        peak: The largest number of bytes alive at once.
    """

    def __init__(self, tensors=()):
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()
        for tensor in tensors:
            self._see(tensor)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        for each in tree_iter(result):
            if isinstance(each, torch.Tensor):
                self._see(each)
        return result

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
