"""A written answer against the known one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from uniedit_hf.reading_text import words_of

from .reward_columns import rows


ARTICLES = ("a", "an", "the")


def answer_match(images: Sequence[Any], **columns: Any) -> list[float | None]:
    """1 if the text is the column `answer` but for case, punctuation, articles and the spelling of small numbers;
    `None` where an image was drawn.

    The whole text is compared, so that naming every possible answer gets 0.
    """
    found = rows(len(images), columns, "texts", "answer")
    return [None if text is None else float(_plain(text) == _plain(answer)) for text, answer in found]


def _plain(text: str) -> list[str]:
    return [word for word in words_of(text) if word not in ARTICLES] or [text.strip()]
