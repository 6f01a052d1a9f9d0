"""Reads the text in an image, to compare it with what was to be rendered."""

from __future__ import annotations

import asyncio
import hashlib

from uniedit_hf.calls.cache import CallCache
from uniedit_hf.calls.messages import EncodedImage, Reply
from uniedit_hf.reading_text import OcrEngine


class TextReader:
    """rapidocr, with what it read kept in the call cache.

    Raises:
        ImportError: It is not installed.
    """

    def __init__(self, cache: CallCache):
        self.engine = OcrEngine("verify.ocr")
        self.name = self.engine.name
        self.cache = cache
        self.turn = asyncio.Lock()  # the engine is not made for several threads

    async def read(self, image: EncodedImage) -> str:
        """The lines of text, from top to bottom."""
        key = hashlib.sha256(f"{self.name} {image.sha256}".encode()).digest()
        found = self.cache.get(key)
        if found is None:
            async with self.turn:
                text = await asyncio.to_thread(lambda: self.engine.read(image.pixels()))
            found = Reply(self.name, text)
            self.cache.put(key, "ocr", found, 0.0)
        return found.text
