"""Reads the text in an image, to compare it with what was to be rendered."""

from __future__ import annotations

import asyncio
import hashlib
from difflib import SequenceMatcher
from importlib.metadata import version

import numpy as np

from uniedit_hf.calls.cache import CallCache
from uniedit_hf.calls.messages import EncodedImage, Reply
from uniedit_hf.synthesis.stages.screen import words_of


SHORT = 40  # letters
SHORTEST_RUN = 3


class TextReader:
    """rapidocr, with what it read kept in the call cache.

    Raises:
        ImportError: It is not installed.
    """

    def __init__(self, cache: CallCache):
        try:
            from rapidocr import RapidOCR
        except ImportError as error:
            raise ImportError('verify.ocr needs rapidocr: run `pip install "uniedit_hf[ocr]"`.') from error
        self.engine = RapidOCR(params={"Global.log_level": "error"})
        self.name = f"rapidocr {version('rapidocr')}"
        self.cache = cache
        self.turn = asyncio.Lock()  # the engine is not made for several threads

    async def read(self, image: EncodedImage) -> str:
        """The lines of text, from top to bottom."""
        key = hashlib.sha256(f"{self.name} {image.sha256}".encode()).digest()
        found = self.cache.get(key)
        if found is None:
            async with self.turn:
                text = await asyncio.to_thread(self._read, image)
            found = Reply(self.name, text)
            self.cache.put(key, "ocr", found, 0.0)
        return found.text

    def _read(self, image: EncodedImage) -> str:
        result = self.engine(np.asarray(image.pixels())[:, :, ::-1])
        return "\n".join(result.txts or ())


def text_match(wanted: str, found: str) -> float:
    """How much of the wanted text was found, 0 to 1, whatever stands around it: of a short text how much its most
    similar place has in common with it, of a long one the share that is found in runs of a few letters, in order."""
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
