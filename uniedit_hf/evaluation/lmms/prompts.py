"""The prompts of Uni-Edit's evaluation for MMMU and MMBench, where lmms-eval's texts or images differ."""

from __future__ import annotations

import ast
from collections.abc import Mapping

from PIL import Image


LETTER = "Answer with the option's letter from the given choices directly."
PHRASE = "Answer the question using a single word or phrase."


def mmmu_question(doc: Mapping, settings: Mapping | None = None) -> str:
    """Question, options, and the kind of answer asked for, one per line; `<image 1>` stays in the text."""
    asked = LETTER if doc["question_type"] == "multiple-choice" else PHRASE
    options = dict(zip("ABCDEFGHIJKLM", ast.literal_eval(doc["options"])))
    return _lines(doc["question"].strip(), options, asked)


def mmmu_pictures(doc: Mapping) -> list[Image.Image]:
    """All images in order, the first at twice its size."""
    pictures = [doc[name].convert("RGB") for name in (f"image_{n}" for n in range(1, 8)) if doc.get(name) is not None]
    if pictures:
        width, height = pictures[0].size
        pictures[0] = pictures[0].resize((2 * width, 2 * height), Image.Resampling.BILINEAR)
    return pictures


def mmbench_question(doc: Mapping, settings: Mapping | None = None) -> str:
    """Hint, question, options and `LETTER`, one per line."""
    options = {letter: doc[letter] for letter in "ABCDE" if _said(doc.get(letter))}
    question = f"{doc['hint']}\n{doc['question']}" if _said(doc.get("hint")) else doc["question"]
    return _lines(question, options, LETTER)


def _lines(question: str, options: Mapping[str, str], asked: str) -> str:
    return "\n".join([question, *(f"{letter}. {option.strip()}" for letter, option in options.items()), asked])


def _said(text: str | None) -> bool:
    """The data set has "nan" for empty values."""
    return text not in (None, "", "nan")
