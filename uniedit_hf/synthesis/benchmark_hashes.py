"""Hashes of benchmark images. They are stored on disk, so that only the first shard or run opens the images."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from uniedit_hf.files import written_file
from uniedit_hf.release.decontamination import Benchmarks, perceptual_hash, pixel_hash, read_benchmarks, tells_apart
from uniedit_hf.schema import stable_id
from uniedit_hf.synthesis.settings import BenchmarkDataset, Decontaminate
from uniedit_hf.synthesis.sources.rows import stream


PIXEL_BYTES = 16


def benchmark_hashes(settings: Decontaminate, kept_in: Path) -> list[Benchmarks]:
    """The hashes of every benchmark.

    Args:
        settings: The settings that name the benchmarks.
        kept_in: The folder where hashes are stored.

    Raises:
        ValueError: If a benchmark does not exist or contains no image.
    """
    loaded = [_kept(kept_in, _state(folder), partial(_of_folder, folder)) for folder in settings.benchmarks]
    loaded += [
        _kept(kept_in, f"{each.model_dump_json()} {_state(Path(each.dataset))}", partial(_of_dataset, each))
        for each in settings.benchmark_datasets
    ]
    return loaded


def _of_folder(folder: Path) -> Benchmarks:
    benchmarks = read_benchmarks(folder)
    if not benchmarks.pixels:
        raise ValueError(f"{folder} contains no image that can be read: check decontaminate.benchmarks.")
    if benchmarks.unreadable:
        warnings.warn(
            f"{len(benchmarks.unreadable)} files of {folder} cannot be read, the first is "
            f"{benchmarks.unreadable[0]}: rows with these images are not detected.",
            stacklevel=2,
        )
    return benchmarks


def _of_dataset(settings: BenchmarkDataset) -> Benchmarks:
    from datasets import Image

    rows = stream(settings.dataset, settings.config, settings.split, "decontaminate.benchmark_datasets")
    if not isinstance((rows.features or {}).get(settings.image), Image):
        raise ValueError(
            f"The benchmark {settings.dataset} has no column {settings.image!r} of images but "
            f"{', '.join(rows.features or {})}: name it under decontaminate.benchmark_datasets."
        )
    benchmarks, hashes = Benchmarks(), []
    for number, row in enumerate(rows.select_columns([settings.image])):
        pixels = row[settings.image].convert("RGB")
        name = f"row {number} of {settings.dataset}"
        benchmarks.pixels[pixel_hash(pixels)] = name
        hashed = perceptual_hash(pixels)
        if tells_apart(hashed):
            hashes.append(hashed)
            benchmarks.names.append(name)
    if hashes:
        benchmarks.hashes = np.stack(hashes)
    return benchmarks


def _kept(folder: Path, state: str, read: Callable[[], Benchmarks]) -> Benchmarks:
    """The hashes of a benchmark in this state, read from disk if they are stored."""
    file = folder / f"{stable_id(state)}.npz"
    if file.exists():
        with np.load(file, allow_pickle=False) as kept:
            pixels = dict(zip(map(bytes, kept["pixels"]), kept["pixel_names"].tolist()))
            return Benchmarks(pixels, kept["hashes"], kept["names"].tolist())
    benchmarks = read()
    with written_file(file) as part, open(part, "wb") as content:
        np.savez(
            content,
            pixels=np.frombuffer(b"".join(benchmarks.pixels), np.uint8).reshape(-1, PIXEL_BYTES),
            pixel_names=np.array(list(benchmarks.pixels.values()), dtype=np.str_),
            hashes=benchmarks.hashes,
            names=np.array(benchmarks.names, dtype=np.str_),
        )
    return benchmarks


def _state(folder: Path) -> str:
    """A string that changes with every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    states = ((path, path.stat()) for path in files)
    return f"{folder.absolute()}\n" + "\n".join(f"{p} {s.st_size} {s.st_mtime_ns}" for p, s in states)
