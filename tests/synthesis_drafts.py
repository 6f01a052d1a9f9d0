"""Drafts, and settings that need no model, for tests of single stages of synthesis."""

from __future__ import annotations

import numpy as np
from PIL import Image

from uniedit_hf.calls.messages import EncodedImage, encoded
from uniedit_hf.synthesis.records import Draft


def photo(seed: int, size=(96, 64)) -> Image.Image:
    """Smooth noise that no other seed gives."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def draft(number: int = 0, **fields) -> Draft:
    given = {
        "position": (number, 0), "id": str(number), "image": EncodedImage(encoded(photo(number))),
        "question": "how many?", "answer": "two", "short_answer": "two", "source": "s", "category": "count",
    }  # fmt: skip
    return Draft(**(given | fields))


def minimal(**changes) -> dict:
    return {
        "output_dir": "x",
        "source": {"kind": "easy_vqa"},
        "classify": {"backend": "rules"},
        "instruct": {"backend": "rules"},
        "edit": {"backend": "exact"},
    } | changes  # fmt: skip
