"""Converts chat messages, in the form of transformers' chat templates, to the `Sample` that a model answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from uniedit_hf.segments import UNDERSTANDING, ImageSegment, Sample, TextSegment


ROLES = ("system", "user", "assistant")


def conversation_sample(messages: Sequence[dict], open_source: Callable[..., Any]) -> Sample:
    """The texts and images of a conversation in order.

    Earlier replies of the assistant are marked as the model's own text (`loss`), so that families that name the two
    speakers can do so.

    Args:
        messages: `{"role": "system", "user" or "assistant", "content": text or parts}`; a part is `{"type": "text",
            "text": ...}` or, of the user, `{"type": "image", "image": what open_image takes}`. The last is the user's.
        open_source: Opens an image for the model; takes the image and its `name` for errors.

    Raises:
        ValueError: If a message or a part does not have this form, or no message has text.
    """
    segments: list[TextSegment | ImageSegment] = []
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError("The conversation is empty: give a list of messages, the last one the user's.")
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise ValueError(f"message {number} has the role {role!r}: expected one of {', '.join(ROLES)}.")
        segments += [_segment(part, role, f"message {number}", open_source) for part in _parts(message, number)]
    if role != "user":
        raise ValueError(f"The last message is of the role {role!r}: end the conversation with the user's message.")
    if not any(isinstance(segment, TextSegment) for segment in segments):
        raise ValueError("The conversation has no text: write what the model should do.")
    return Sample(segments)


def _parts(message: dict, number: int) -> list[dict]:
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, Sequence) or not parts or not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"message {number} has no content: expected a text, or a list of text and image parts.")
    return list(parts)


def _segment(part: dict, role: str, name: str, open_source: Callable[..., Any]):
    kind = part.get("type")
    if kind == "text":
        text = part.get("text")
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name} has an empty text: write something, or leave the part out.")
        return TextSegment(text, loss=role == "assistant")
    if kind == "image" and role == "user":
        return ImageSegment(open_source(part.get("image"), name=f"the image of {name}"), UNDERSTANDING)
    if kind == "image":
        raise ValueError(f"{name} is of the role {role!r} and has an image: only the user shows images.")
    raise ValueError(f"{name} has a part of the type {kind!r}: expected 'text' or 'image'.")
