"""Text that is drawn into an image, read back by OCR against the known answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from uniedit_hf.reading_text import OcrEngine, text_match, words_of

from .reward_columns import opened, rows


def rendered_text(images: Sequence[Any], sources: Sequence[Any], **columns: Any) -> list[float | None]:
    """How much of the column `answer` can be read in the image, from 0 to 1, times the share of newly written letters
    that belong to it.

    Words that the source shows already are not counted as new. So drawing many answers at once is not worth more than
    drawing the right one. `None` for rows without an answer.

    Raises:
        ImportError: rapidocr is not installed.
    """
    found = rows(len(images), columns, "answer")
    return [
        None if image is None or not answer else _read_back(opened(image), opened(source), answer)
        for image, source, (answer,) in zip(images, sources, found)
    ]


def _read_back(image, source, answer: str) -> float:
    if image is None:
        return 0.0
    new = Counter(words_of(_engine().read(image)))
    if source is not None:
        new -= Counter(words_of(_engine().read(source)))
    written = " ".join(new.elements())
    letters = sum(len(word) * count for word, count in new.items())
    wanted = sum(map(len, words_of(answer)))
    return text_match(answer, written) * min(1.0, wanted / letters) if letters else 0.0


@cache
def _engine() -> OcrEngine:
    return OcrEngine("the reward rendered_text")
