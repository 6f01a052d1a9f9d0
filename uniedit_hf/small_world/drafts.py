"""easy-VQA's questions and images as drafts, with the scene that the reader finds in the image."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from PIL import Image

from uniedit_hf.calls.messages import EncodedImage
from uniedit_hf.schema import stable_id
from uniedit_hf.small_world.easy_vqa import LICENSE, VqaRow, load_image
from uniedit_hf.small_world.reader import read
from uniedit_hf.synthesis.records import Draft, Rejection


STAGE = "source"


def draft_of_row(row: VqaRow, number: int = 0) -> Draft | Rejection:
    """A question as a draft; `number` is its position in the source.

    Raises:
        FileNotFoundError: The image file is missing.
    """
    image = draft_of_image(row)
    if isinstance(image, Rejection):
        return replace(image, question=row.question, position=(number, 0))
    return image.with_(
        position=(number, 0),
        id=stable_id(image.image.data, row.question, row.answer),
        question=row.question,
        answer=row.answer,
        row=row,
    )


def draft_of_image(row: VqaRow) -> Draft | Rejection:
    """The image of a question as a draft without a question.

    Raises:
        FileNotFoundError: The image file is missing.
    """
    return _draft_of_file(row.image_path, row.split)


def draft_of_bytes(data: bytes, name: str, license: str | None) -> Draft | Rejection:
    """An encoded training image as a draft without a question; `name` is its name in rejections."""
    return _draft(data, Image.open(io.BytesIO(data)), "train", license, name)


@lru_cache(maxsize=8192)  # easy-VQA asks about ten questions about each image
def _draft_of_file(path: Path, split: str) -> Draft | Rejection:
    name = f"{split}/{path.name}"
    try:
        image = load_image(path)
    except ValueError:
        return Rejection("the source is not a 64 x 64 image that can be decoded", name, STAGE)
    return _draft(path.read_bytes(), image, split, LICENSE, name)


def _draft(data: bytes, image: Image.Image, split: str, license: str | None, name: str) -> Draft | Rejection:
    scene = read(image)
    if scene is None:
        return Rejection("the source image shows no single shape", name, STAGE)
    return Draft(
        position=(0, 0),
        id=stable_id(data),
        image=EncodedImage(data),
        question=None,
        answer=None,
        source="easy-vqa",
        license=license,
        split=split,
        scene=scene,
    )
