"""Checks whether a data set contains images or questions of a benchmark.

Images are compared by a difference hash of 256 bits (each bit says whether a pixel of a 17 x 16 thumbnail is darker
than its right neighbor; Krawetz, "Kind of Like That", 2013), which survives resizing and compression, and by their
pixels. Questions are compared as sequences of words, without case and punctuation.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from uniedit_hf.images import ImageError, open_image
from uniedit_hf.release.raw import IMAGE_SUFFIXES


# Bits of 256 that may differ. Unrelated photographs differ in about 128, an image and its JPEG in fewer than 10.
MAX_DISTANCE = 12
# An image with fewer bits of either kind is a flat area or a slope to the hash, and matches every other such image.
MIN_BITS = 8
TEXT_KEYS = ("question", "prompt", "instruction", "text", "caption")
MIN_WORDS = 4  # "how many are there?" is in every benchmark


@dataclass(frozen=True)
class Match:
    """A row that matches an item of a benchmark."""

    row_id: str
    column: str
    benchmark: str
    kind: str


@dataclass
class Benchmarks:
    """Images and questions to look for.

    Args:
        pixels: Hash of the pixels -> name of the image.
        hashes: Perceptual hashes, (images, 4) uint64.
        names: The images of `hashes`.
        texts: Normalized text -> its place in the benchmark.
        unreadable: Files that could not be read, with the reason.
    """

    pixels: dict[bytes, str] = field(default_factory=dict)
    hashes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.uint64))
    names: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)

    def image_match(self, row_id: str, column: str, image: Image.Image) -> Match | None:
        """The match of an image, if any."""
        exact = self.pixels.get(pixel_hash(image))
        if exact:
            return Match(row_id, column, exact, "same pixels")
        hashed = perceptual_hash(image)
        if not self.names or not tells_apart(hashed):
            return None
        distances = np.bitwise_count(self.hashes ^ hashed).sum(axis=1)
        nearest = int(distances.argmin())
        if distances[nearest] <= MAX_DISTANCE:
            return Match(row_id, column, self.names[nearest], f"{distances[nearest]} of 256 bits differ")
        return None

    def text_match(self, row_id: str, column: str, text: str | None) -> Match | None:
        """The place of the same question in a benchmark, if any."""
        place = self.texts.get(normalised(text or ""))
        return Match(row_id, column, place, "same text") if place else None


def read_benchmarks(folder: Path) -> Benchmarks:
    """Reads every image below a folder, and the texts in its JSONL, JSON, CSV, TSV and text files.

    Raises:
        ValueError: If there is no such folder, or nothing in it can be compared.
    """
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}: expected benchmark images and questions.")
    benchmarks = Benchmarks()
    hashes = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        try:
            if path.suffix.lower() in IMAGE_SUFFIXES:
                image = open_image(path, name=name)
                benchmarks.pixels[pixel_hash(image)] = name
                if tells_apart(perceptual_hash(image)):
                    hashes.append(perceptual_hash(image))
                    benchmarks.names.append(name)
            else:
                for text in _texts(path):
                    if len(normalised(text).split()) >= MIN_WORDS:
                        benchmarks.texts.setdefault(normalised(text), name)
        except (ImageError, UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
            benchmarks.unreadable.append(f"{name}: {error}")
    if hashes:
        benchmarks.hashes = np.stack(hashes)
    if not benchmarks.pixels and not benchmarks.texts:
        raise ValueError(f"Nothing in {folder} can be compared: expected images, or questions as JSONL, CSV or text.")
    return benchmarks


def pixel_hash(image: Image.Image) -> bytes:
    """16 bytes that depend on size and pixels, but not on the file format."""
    return hashlib.blake2b(repr(image.size).encode() + image.tobytes(), digest_size=16).digest()


def perceptual_hash(image: Image.Image) -> np.ndarray:
    """The difference hash of an RGB image, (4,) uint64."""
    gray = np.asarray(image.convert("L").resize((17, 16), Image.Resampling.BOX), dtype=np.int16)
    return np.packbits(gray[:, :-1] < gray[:, 1:]).view(np.uint64)


def normalised(text: str) -> str:
    """Lower case, words only, one blank between them."""
    return " ".join(re.findall(r"\w+", text.lower()))


def tells_apart(hashed: np.ndarray) -> bool:
    """Whether a perceptual hash is meaningful, that is, not that of a flat area or a slope."""
    return MIN_BITS <= int(np.bitwise_count(hashed).sum()) <= 256 - MIN_BITS


def _texts(path: Path) -> Iterator[str]:
    ending = path.suffix.lower()
    if ending == ".txt":
        yield from path.read_text(encoding="utf-8").splitlines()
    elif ending == ".jsonl":
        yield from _values(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    elif ending == ".json":
        yield from _values(json.loads(path.read_text(encoding="utf-8")))
    elif ending in (".csv", ".tsv"):
        with open(path, encoding="utf-8", newline="") as file:
            yield from _values(csv.DictReader(file, delimiter="," if ending == ".csv" else "\t"))


def _values(content: object) -> Iterator[str]:
    """The texts under keys for questions, at any depth."""
    if isinstance(content, dict):
        for key, value in content.items():
            if isinstance(value, str) and str(key).lower() in TEXT_KEYS:
                yield value
            elif isinstance(value, (dict, list)):
                yield from _values(value)
    elif isinstance(content, Iterable) and not isinstance(content, str):
        for each in content:
            yield from _values(each)
