"""The files of a checkpoint, in a local folder or in a repository on the Hub.

Loading needs hardly more memory than the weights themselves. A large tensor that is stored in the requested dtype is
memory-mapped, so processes share its pages. A tensor that will be cast is read when its turn comes, because the pages
of a mapped one would stay in memory next to the copy. Small tensors are always read: this costs nothing, and since
files do not align tensors, it keeps the results of small models independent of the layout that they were loaded from.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, constants, hf_hub_download, parse_safetensors_file_metadata, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HTTPError, LocalEntryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from safetensors import SafetensorError, safe_open
from transformers.utils.hub import has_file

from uniedit_hf.hub import DOWNLOAD_OPTIONS, hub_error


EMA_FILE, VAE_FILE = "ema.safetensors", "ae.safetensors"
INDEX_FILES = ("model.safetensors.index.json", "ema.safetensors.index.json")
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
SMALL_TENSOR = 1_000_000  # bytes
DTYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
FOLDER_OPTIONS = (*DOWNLOAD_OPTIONS, "subfolder")


class CheckpointFolder:
    """A checkpoint by its folder or Hub id. To make a configuration, only the headers of weight files are read.

    Args:
        name: Folder or Hub id.
        options: Options of `from_pretrained`; only those of `FOLDER_OPTIONS` are used.
    """

    def __init__(self, name: str | os.PathLike, options: dict[str, Any]):
        self.name = str(name)
        self.options = {key: options[key] for key in FOLDER_OPTIONS if options.get(key) is not None}
        self.subfolder = self.options.get("subfolder", "")
        self.local = Path(self.name, self.subfolder) if os.path.isdir(self.name) else None

    def has(self, file: str) -> bool:
        """Whether the checkpoint holds this file."""
        if self.local is not None:
            return (self.local / file).is_file()
        return has_file(
            self.name, self._in_repository(file), **self._some("cache_dir", "local_files_only", "token", "revision")
        )

    def names(self) -> list[str]:
        """The names of all files.

        Raises:
            OSError: If there is no such folder or repository.
        """
        if self.local is not None:
            return sorted(path.name for path in self.local.glob("*"))
        prefix = self._in_repository("")
        try:
            files = HfApi().list_repo_files(self.name, **self._some("token", "revision"))
        except (OSError, HTTPError) as error:
            raise hub_error(self.name, "model", error) from error
        return sorted(file.removeprefix(prefix) for file in files if file.startswith(prefix))

    def fetch(self, file: str) -> str | None:
        """The local path of a file, downloaded if necessary; `None` if the checkpoint does not have it.

        Raises:
            OSError: If there is no such folder or repository.
        """
        if self.local is not None:
            return str(self.local / file) if self.has(file) else None
        try:
            return hf_hub_download(self.name, file, **self.options)
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError) and not self._is_cached():
                raise hub_error(self.name, "model", error) from error
            return None
        except (OSError, ValueError, HTTPError) as error:
            raise hub_error(self.name, "model", error) from error

    def json(self, file: str) -> dict[str, Any]:
        """A JSON file, or an empty dictionary if there is none.

        Raises:
            ValueError: If the file is not JSON.
        """
        path = self.fetch(file)
        if path is None:
            return {}
        try:
            return json.loads(Path(path).read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not valid JSON ({error}): restore the file of the release.") from error

    def shapes(self, file: str) -> dict[str, list[int]]:
        """Names and shapes of the tensors in a safetensors file, from its header."""
        if self.local is not None:
            return tensor_shapes(self.local / file)
        file = self._in_repository(file)
        cached = try_to_load_from_cache(self.name, file, **self._some("cache_dir", "revision"))
        if isinstance(cached, str):
            return tensor_shapes(cached)
        try:
            header = parse_safetensors_file_metadata(self.name, file, **self._some("token", "revision"))
        except (OSError, HTTPError) as error:
            raise hub_error(self.name, "model", error) from error
        return {name: list(tensor.shape) for name, tensor in header.tensors.items()}

    def weight_files(self) -> list[str]:
        """The files with the model's weights, except the autoencoder's."""
        if self.has(EMA_FILE):
            return [EMA_FILE]
        for index in INDEX_FILES:
            if self.has(index):
                return sorted(set(self.json(index).get("weight_map", {}).values()) - {VAE_FILE})
        if self.has("model.safetensors"):
            return ["model.safetensors"]
        return [name for name in self.names() if SHARD.fullmatch(name)]

    def complete(self, files: Iterable[str]) -> list[str]:
        """Local paths of all weight files, given those that transformers found: adds shards that no index lists.

        Raises:
            OSError: If a shard is missing; the message names it.
        """
        complete: dict[str, None] = {}
        for file in files:
            folder, name = os.path.split(file)
            for sibling in _siblings(name):
                path = os.path.join(folder, sibling)
                if self.local is None and not os.path.isfile(path):
                    path = self.fetch(sibling) or path
                complete[path] = None
        missing = [path for path in complete if not os.path.isfile(path)]
        if missing:
            raise OSError(f"{', '.join(missing)} is missing: the checkpoint is incomplete, download it again.")
        return list(complete)

    def _is_cached(self) -> bool:
        """Whether some of the repository was downloaded before."""
        cache = self.options.get("cache_dir", constants.HF_HUB_CACHE)
        return Path(cache, repo_folder_name(repo_id=self.name, repo_type="model"), "snapshots").is_dir()

    def _in_repository(self, file: str) -> str:
        return f"{self.subfolder}/{file}" if self.subfolder else file

    def _some(self, *names: str) -> dict[str, Any]:
        return {name: self.options[name] for name in names if name in self.options}


def _siblings(name: str) -> list[str]:
    """All shards according to a shard's name; for any other file the file itself."""
    shard = SHARD.fullmatch(name)
    if shard is None:
        return [name]
    numbers = range(1, int(shard["count"]) + 1)
    return [f"{shard['stem']}-{number:05d}-of-{shard['count']}.safetensors" for number in numbers]


def tensor_shapes(path: str | os.PathLike) -> dict[str, list[int]]:
    """Names and shapes of the tensors in a local safetensors file, from its header.

    Raises:
        OSError: If the file is missing or is not a complete safetensors file.
    """
    with open_safetensors(path) as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}


def open_safetensors(path: str | PathLike, backend: str = "mmap") -> safe_open:
    """Opens a safetensors file and reads its header.

    Raises:
        OSError: If the file is missing, is not a safetensors file, or is shorter than its header says.
    """
    try:
        return safe_open(path, "pt", backend=backend)
    except SafetensorError as error:
        raise OSError(f"{path} is not a complete safetensors file ({error}): download it again.") from error


def check_safetensors(files: Iterable[str]) -> None:
    """Refuses weights in any other format, because loading a pickle runs its author's code.

    Raises:
        OSError: Names the file.
    """
    for file in files:
        if not str(file).endswith(".safetensors"):
            raise OSError(
                f"{file} is not a safetensors file, and pickled weights are not read, since loading one runs code: "
                "convert it if you trust its author (torch.load with weights_only=True, then "
                "safetensors.torch.save_file), or take a release in safetensors."
            )


class StoredTensor:
    """A tensor that is read from its file when it is sliced; has the three methods that transformers calls."""

    def __init__(self, file, name: str):
        self.file = file
        self.name = name

    def __getitem__(self, index) -> torch.Tensor:
        return self.file.get_tensor(self.name)[index]

    def get_shape(self) -> list[int]:
        """The shape, from the header."""
        return self.file.get_slice(self.name).get_shape()

    def get_dtype(self) -> str:
        """The dtype as named by safetensors, from the header."""
        return self.file.get_slice(self.name).get_dtype()


def open_tensors(files: Sequence[str], dtype: torch.dtype) -> dict[str, StoredTensor]:
    """All tensors of the files by name, not yet read.

    Args:
        files: Safetensors files.
        dtype: The dtype that most tensors will be cast to.

    Raises:
        OSError: If a file cannot be read.
    """
    tensors = {}
    for path in files:
        mapped, read = open_safetensors(path), open_safetensors(path, backend="pread")
        for name in mapped.keys():
            stored = mapped.get_slice(name)
            large = math.prod(stored.get_shape()) * dtype.itemsize > SMALL_TENSOR
            keep = large and stored.get_dtype() == DTYPE_NAMES.get(dtype)
            tensors[name] = stored if keep else StoredTensor(read, name)
    return tensors
