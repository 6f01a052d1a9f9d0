"""Text in images read by OCR, and texts compared by their words."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from importlib.metadata import version

import numpy as np
from PIL import Image


NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
SHORT = 40  # letters
SHORTEST_RUN = 3


class OcrEngine:
    """rapidocr. It is not made for several threads at a time.

    Args:
        needed_by: The feature to name in the error if it is not installed.

    Raises:
        ImportError: It is not installed.
    """

    def __init__(self, needed_by: str):
        try:
            from rapidocr import RapidOCR
        except ImportError as error:
            raise ImportError(f'{needed_by} needs rapidocr: run `pip install "uniedit_hf[ocr]"`.') from error
        self.engine = RapidOCR(params={"Global.log_level": "error"})
        self.name = f"rapidocr {version('rapidocr')}"

    def read(self, image: Image.Image) -> str:
        """The lines of text, from top to bottom."""
        result = self.engine(np.asarray(image)[:, :, ::-1])
        return "\n".join(result.txts or ())


def words_of(text: str) -> list[str]:
    """Lower-case words; numbers up to twelve as digits, so that "Two" and "2" are the same."""
    found = re.findall(r"\d+(?:[.,]\d+)*|[^\W\d_]+", text.lower())
    return [str(NUMBERS.index(word)) if word in NUMBERS else word for word in found]


def text_match(wanted: str, found: str) -> float:
    """The share of the wanted text that was found, 0 to 1, ignoring text around it: for a short text the similarity of
    its most similar place, for a long one the share found in runs of a few letters, in order.
    """
    sought, read = "".join(words_of(wanted)), "".join(words_of(found))
    if not sought:
        return float(wanted.strip() in found)
    if sought in read:
        return 1.0
    if len(sought) > SHORT:
        blocks = SequenceMatcher(None, sought, read, autojunk=False).get_matching_blocks()
        return sum(block.size for block in blocks if block.size >= SHORTEST_RUN) / len(sought)
    places = range(max(1, len(read) - len(sought) + 1))
    return max(SequenceMatcher(None, sought, read[at : at + len(sought)], autojunk=False).ratio() for at in places)
