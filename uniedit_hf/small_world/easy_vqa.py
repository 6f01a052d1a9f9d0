"""The easy-VQA data set (PyPI `easy-vqa`, MIT): 5,000 images of one colored shape, 48,248 questions and answers."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image, UnidentifiedImageError

from uniedit_hf.small_world.scene import PALETTE, SHAPES, SIDE


Split = Literal["train", "test"]

LICENSE = "MIT"
QUESTION_TEMPLATES = (
    "what color is the shape?",
    "what color is the {shape}?",
    "what is the color of the shape?",
    "what is the color of the {shape}?",
    "what shape is in the image?",
    "what shape does the image contain?",
    "what shape is present?",
    "what is the {color} shape?",
    "is there a {thing}?",
    "is there a {thing} in the image?",
    "does the image contain a {thing}?",
    "is a {thing} present?",
    "is there not a {thing}?",
    "is there not a {thing} in the image?",
    "does the image not contain a {thing}?",
    "is no {thing} present?",
)


@dataclass(frozen=True)
class VqaRow:
    """One question about one image.

    Args:
        image_path: The PNG file.
        question: As easy-VQA asks it, in lower case.
        answer: One of the 13 answers: a shape, a color, "yes" or "no".
        split: "train" or "test".
        image_id: The image's number within its split.
    """

    image_path: Path
    question: str
    answer: str
    split: Split
    image_id: int

    @property
    def is_open(self) -> bool:
        """Whether the answer is a shape or a color, not yes or no."""
        return self.answer not in ("yes", "no")

    @property
    def value(self) -> str:
        """The shape or color that the answer names or, for yes and no, the question."""
        return self.answer if self.is_open else _value_in(self.question)

    @property
    def attribute(self) -> Literal["shape", "color"]:
        """The attribute that the question asks about."""
        return "color" if self.value in PALETTE else "shape"

    @property
    def negated(self) -> bool:
        """Whether a yes/no question asks for absence."""
        return bool({"no", "not"} & set(self.question.split()))


def easy_vqa_folder() -> Path:
    """The data folder of the installed package, found without importing it.

    Raises:
        FileNotFoundError: The package is not installed.
    """
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            "The easy-VQA data set is not installed: expected the package `easy-vqa`; "
            'run `pip install "uniedit_hf[quickstart]"`.'
        )
    return Path(spec.origin).parent / "data"


def load_easy_vqa(split: Split, folder: str | Path | None = None) -> list[VqaRow]:
    """All questions of one split, in the data set's order.

    Args:
        split: "train" (38,575 questions, 4,000 images) or "test" (9,673 and 1,000).
        folder: A folder with `train/` and `test/`; the installed package's by default.

    Raises:
        FileNotFoundError: The package or its question file is missing.
        ValueError: An unknown split, or a question file in another format.
    """
    if split not in ("train", "test"):
        raise ValueError(f'The split of easy-VQA is "train" or "test", got {split!r}')
    place = (easy_vqa_folder() if folder is None else Path(folder)) / split
    file = place / "questions.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"No easy-VQA questions at {file}; expected the data folder of the package `easy-vqa`: "
            'run `pip install "uniedit_hf[quickstart]"` or name the folder that holds train/ and test/.'
        )
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not valid JSON ({error}); reinstall the package `easy-vqa`.") from error
    return [_row(entry, index, place, split, file) for index, entry in enumerate(entries)]


def one_row_per_image(rows: Iterable[VqaRow]) -> list[VqaRow]:
    """The first row of each image, in order."""
    return list({row.image_path: row for row in reversed(list(rows))}.values())[::-1]


def load_image(path: str | Path) -> Image.Image:
    """An image of the data set, 64 x 64 RGB.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not an image that can be decoded, or has another size.
    """
    try:
        with Image.open(path) as image:
            pixels = image.convert("RGB")
    except FileNotFoundError:
        raise
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be decoded as an image ({error}); expected a PNG file.") from error
    if pixels.size != (SIDE, SIDE):
        raise ValueError(f"{path} is {pixels.width} x {pixels.height} pixels; easy-VQA images are {SIDE} x {SIDE}.")
    return pixels


def _row(entry: object, index: int, place: Path, split: Split, file: Path) -> VqaRow:
    match entry:
        case [str(question), str(answer), int(image_id)]:
            return VqaRow(place / "images" / f"{image_id}.png", question, answer, split, image_id)
    raise ValueError(
        f"{file}, entry {index}: expected [question, answer, image number], found {entry!r}; "
        "reinstall the package `easy-vqa`."
    )


def _value_in(question: str) -> str:
    for word in question.rstrip("?").split():
        if word in PALETTE or word in SHAPES:
            return word
    raise ValueError(f"The question {question!r} names neither a color nor a shape of easy-VQA.")
