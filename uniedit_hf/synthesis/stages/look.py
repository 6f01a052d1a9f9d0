"""Opens the picture of a draft: whether it can be used, what it looks like, and whether a benchmark has it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from uniedit_hf.images import ImageError
from uniedit_hf.release.decontamination import (
    Benchmarks,
    Match,
    perceptual_hash,
    pixel_hash,
    read_benchmarks,
    tells_apart,
)
from uniedit_hf.synthesis.calls.messages import Picture, off_loop
from uniedit_hf.synthesis.records import Draft, Rejection
from uniedit_hf.synthesis.settings import BenchmarkDataset, Decontaminate
from uniedit_hf.synthesis.sources.stream import stream


STAGE = "look"


class Look:
    """Pictures are decoded once, however many questions are asked about them in a row."""

    def __init__(self, settings: Decontaminate):
        self.benchmarks = [read_benchmarks(folder) for folder in settings.benchmarks]
        self.benchmarks += [images_of_dataset(dataset) for dataset in settings.benchmark_datasets]
        self.near = settings.near_duplicates
        self.seen = lru_cache(maxsize=256)(self._seen)

    async def __call__(self, draft: Draft) -> Draft | Rejection:
        picture = draft.image
        try:
            image, hashes, match = await off_loop(self.seen, picture)
        except ImageError as error:
            return draft.rejected(STAGE, "unusable image", str(error))
        if match is not None:
            return draft.rejected(STAGE, "in a benchmark", f"the picture is like {match.benchmark}: {match.kind}.")
        return draft.with_(image=image, hashes=hashes)

    def _seen(self, picture: Picture) -> tuple[Picture, tuple[bytes, bytes | None], Match | None]:
        """The picture, so that rows about it share what is known of it, its hashes, and where a benchmark has it."""
        pixels = picture.pixels()
        perceptual = None
        if self.near:
            hashed = perceptual_hash(pixels)
            perceptual = hashed.tobytes() if tells_apart(hashed) else None
        matches = (benchmark.image_match("", "source_image", pixels) for benchmark in self.benchmarks)
        return picture, (pixel_hash(pixels), perceptual), next(filter(None, matches), None)


def images_of_dataset(settings: BenchmarkDataset) -> Benchmarks:
    """The hashes of a data set's images.

    Raises:
        ValueError: There is no such data set, or it has no such column of images.
    """
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
