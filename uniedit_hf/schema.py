"""The columns of the data set `uniedit-148k`, in one place: the loading script, synthesis and release share them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from datasets import Features


TASK_CATEGORIES = ("shape", "color", "count", "location", "math", "ocr", "caption", "knowledge")
SCORES = ("quality", "instruction", "preservation")


def row_features() -> Features:
    """The columns of the data set. Values that the source of a row does not give are null.

    `source_size` and `target_size` are `(width, height)` in pixels, upright, so that packs are planned without pixels;
    `scores` are visual quality 1 to 5, instruction followed and rest kept, each 0 to 1.
    """
    from datasets import ClassLabel, Features, Image, Sequence, Value

    return Features(
        {
            "id": Value("string"),
            "source_image": Image(),
            "instruction": Value("string"),
            "target_image": Image(),
            "task_category": ClassLabel(names=list(TASK_CATEGORIES)),
            "question": Value("string"),
            "answer": Value("string"),
            "variant": Value("string"),
            "source": Value("string"),
            "editor": Value("string"),
            "judge": Value("string"),
            "scores": {name: Value("float32") for name in SCORES},
            "license": Value("string"),
            # `Sequence` and not `List`, which datasets 3 does not have; datasets 4 converts it to a `List`.
            "source_size": Sequence(Value("int32"), length=2),
            "target_size": Sequence(Value("int32"), length=2),
        }
    )


def stable_id(*parts: bytes | str) -> str:
    """32 hexadecimal digits that depend only on the parts."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode() if isinstance(part, str) else part
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()
