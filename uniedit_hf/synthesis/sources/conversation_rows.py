"""JSONL in the style of LLaVA-OneVision, each row one image and a conversation about it:

{"images": ["a.png"], "messages": [{"content": "<image>how many?"}, {"content": "two"}, ...], "subject": "CLEVR"}

Every question with its answer becomes a draft. Messages may name their role; otherwise roles alternate.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from uniedit_hf.row_error import RowError
from uniedit_hf.synthesis.settings import Conversations


# The placeholder of the image in a question, including everything before it in the style of
# `<|img_start|>...<|img_end|>\n`.
IMAGE_MARK = re.compile(r"^.*img_end\W*\n|<image>\s*|<\|?vision_start\|?>.*?<\|?vision_end\|?>", re.DOTALL)
ASKS = ("user", "human")
ANSWERS = ("assistant", "gpt")


class ConversationRows:
    """Parses a row of this format. Its methods raise `RowError`."""

    def __init__(self, settings: Conversations):
        self.settings = settings

    def image(self, row: dict[str, Any]) -> Any:
        """The row's reference to its only image."""
        images = row.get("images")
        if not isinstance(images, list) or len(images) != 1:
            found = len(images) if isinstance(images, list) else f"{images!r:.40}"
            raise RowError("not exactly one image", f"images holds {found}: expected a list of one.")
        return images[0]

    def questions(self, row: dict[str, Any]) -> list[tuple[str, str] | RowError]:
        """Every turn: question and answer, or the error."""
        return list(turns(row))

    def origin(self, row: dict[str, Any]) -> dict[str, Any]:
        """The fields of a draft that describe its origin."""
        return {"source": str(row.get("subject") or self.settings.files[0].stem), "license": self.settings.license}


def turns(row: dict[str, Any]) -> Iterator[tuple[str, str] | RowError]:
    """Every question of a conversation with its answer, or the error.

    Raises:
        RowError: If nothing in the row can be used.
    """
    messages = row.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise RowError("no conversation", f"messages is {str(messages)[:60]!r}: expected a list of objects.")
    spoken = [message for message in messages if message.get("role", message.get("from")) != "system"]
    question = None
    for index, message in enumerate(spoken):
        text = _text(message)
        role = message.get("role", message.get("from", ASKS[0] if index % 2 == 0 else ANSWERS[0]))
        if role in ASKS:
            if question is not None:
                yield RowError("question without an answer", f"{question[:60]!r} is followed by another question.")
            question = IMAGE_MARK.sub("", text).strip()
        elif role in ANSWERS and question is not None:
            yield (question, text.strip())
            question = None
        else:
            yield RowError("answer without a question", f"{text[:60]!r} comes from {role!r} and answers nothing.")
    if question is not None:
        yield RowError("question without an answer", f"{question[:60]!r} ends the conversation.")
    if not spoken:
        yield RowError("no conversation", "messages is empty: expected a question and an answer.")


def _text(message: dict[str, Any]) -> str:
    content = message.get("content", message.get("value"))
    if isinstance(content, list):
        content = "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
