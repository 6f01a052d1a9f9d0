"""The pictures that edits start from."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from uniedit_hf.small_world.easy_vqa import LICENSE, VqaRow, load_image
from uniedit_hf.small_world.reader import read
from uniedit_hf.small_world.scene import Scene
from uniedit_hf.synthesis.records import Record, Rejection


@dataclass(frozen=True)
class Source:
    """A picture, as encoded bytes, with what the reader found in it.

    Args:
        image: Encoded bytes.
        scene: What it shows.
        split: Where it may be used.
        license: Its licence.
    """

    image: bytes
    scene: Scene
    split: str
    license: str | None


def source_of_row(row: VqaRow) -> Source | Rejection:
    """The picture of a row, or a rejection if the file is broken or shows no single shape.

    Raises:
        FileNotFoundError: There is no such file.
    """
    return _load(row.image_path, row.split)


def source_of_record(record: Record) -> Source | Rejection:
    """The picture that a record starts from."""
    scene = read(Image.open(io.BytesIO(record.source_image)))
    if scene is None:
        return Rejection("the source picture shows no single shape", record.id)
    return Source(record.source_image, scene, record.split, record.license)


@lru_cache(maxsize=8192)  # easy-VQA asks about ten questions about each picture
def _load(path: Path, split: str) -> Source | Rejection:
    try:
        image = load_image(path)
    except ValueError:
        return Rejection("the source picture is no 64 x 64 picture that can be decoded", f"{split}/{path.name}")
    scene = read(image)
    if scene is None:
        return Rejection("the source picture shows no single shape", f"{split}/{path.name}")
    return Source(path.read_bytes(), scene, split, LICENSE)
