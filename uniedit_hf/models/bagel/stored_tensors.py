"""The tensors of checkpoint files, opened so that loading needs hardly more memory than the weights themselves.

A large tensor that is stored in the asked dtype is mapped: its pages are the file's own, and processes share them. One
that will be cast is read when its turn comes: the pages of a mapped one would stay in memory beside the copy. Small
tensors are read as well, which costs nothing and, since a file aligns nothing, keeps the sums of small models
independent of the layout they came from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike

import torch
from safetensors import SafetensorError, safe_open


# A million bytes are small.
SMALL = 1_000_000
NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def open_safetensors(path: str | PathLike, backend: str = "mmap") -> safe_open:
    """A safetensors file whose header has been read.

    Raises:
        OSError: If the file is missing, no safetensors file, or shorter than its header says.
    """
    try:
        return safe_open(path, "pt", backend=backend)
    except SafetensorError as error:
        raise OSError(f"{path} is no complete safetensors file ({error}): download it again.") from error


class StoredTensor:
    """A tensor that is read from its file when it is sliced, with the three methods that transformers calls."""

    def __init__(self, file, name: str):
        self.file = file
        self.name = name

    def __getitem__(self, index) -> torch.Tensor:
        return self.file.get_tensor(self.name)[index]

    def get_shape(self) -> list[int]:
        """The shape, from the header."""
        return self.file.get_slice(self.name).get_shape()

    def get_dtype(self) -> str:
        """The dtype in the words of safetensors, from the header."""
        return self.file.get_slice(self.name).get_dtype()


def open_tensors(files: Sequence[str], dtype: torch.dtype) -> dict[str, StoredTensor]:
    """All tensors of the files by name; none is read yet.

    Args:
        files: Safetensors files.
        dtype: What most tensors will be cast to.

    Raises:
        OSError: If a file cannot be read.
    """
    tensors = {}
    for path in files:
        mapped, read = open_safetensors(path), open_safetensors(path, backend="pread")
        for name in mapped.keys():
            stored = mapped.get_slice(name)
            large = math.prod(stored.get_shape()) * dtype.itemsize > SMALL
            keep = large and stored.get_dtype() == NAMES.get(dtype)
            tensors[name] = stored if keep else StoredTensor(read, name)
    return tensors
