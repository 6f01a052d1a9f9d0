"""Chats as samples, and the arguments with which users of transformers call a processor.

A chat is a list of messages, each with a `role` and a `content`: a text, or a list of parts such as
`{"type": "text", "text": ...}` and `{"type": "image", "image": ...}`. It becomes the same segments that
`UniEditPipeline.answer` makes of the same turns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers.image_utils import load_image

from uniedit_hf.segments import UNDERSTANDING, ImageSegment, Sample, TextSegment


IMAGE_KEYS = ("image", "url", "path", "base64", "image_url")
ROLES = ("user", "assistant", "system")
NESTED = ("text_kwargs", "images_kwargs", "common_kwargs", "videos_kwargs", "audio_kwargs")
TEXT_OPTIONS = ("padding", "max_length", "truncation", "padding_side", "return_attention_mask", "add_special_tokens")


def is_batch(conversation: Sequence) -> bool:
    """Whether this is a list of chats instead of one chat."""
    return bool(conversation) and not isinstance(conversation[0], dict)


def chat_sample(messages: Sequence[dict[str, Any]], open_source: Callable[[Any], Any]) -> Sample:
    """Converts a chat to a sample; earlier answers are marked as the assistant's.

    Args:
        messages: The messages.
        open_source: Opens an image for the model's family.

    Raises:
        ValueError: If there is an unknown role or part.
    """
    segments: list = []
    for number, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise ValueError(f"Message {number} has the role {role!r}: use one of {', '.join(ROLES)}.")
        said = role == "assistant"
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content or []:
            if part.get("type") == "text":
                segments.append(TextSegment(part["text"], loss=said))
            elif part.get("type") in ("image", "image_url"):
                segments.append(ImageSegment(open_source(_image_of(part, number)), UNDERSTANDING))
            else:
                raise ValueError(
                    f"Message {number} has a part of type {part.get('type')!r}, but models read 'text' and 'image'."
                )
    return Sample(segments)


def _image_of(part: dict[str, Any], number: int) -> Any:
    found = next((part[key] for key in IMAGE_KEYS if part.get(key) is not None), None)
    if isinstance(found, dict):
        found = found.get("url")
    if found is None:
        raise ValueError(f"Message {number} has a part of the type 'image' without one: add 'image', 'url' or 'path'.")
    return load_image(found) if isinstance(found, str) else found


@dataclass
class CallOptions:
    """Options of a processor call besides its inputs.

    Args:
        add_generation_prompt: Whether the model will write the following text.
        return_tensors: `"pt"` or `None`.
        padding: `"max_length"` pads to `max_length`, anything else to the longest row.
        max_length: Maximum number of tokens in a row.
        truncation: Whether rows may be truncated; a row that would need it is refused.
        images: Settings of the image processor for this call.
    """

    add_generation_prompt: bool = True
    return_tensors: str | None = "pt"
    padding: bool | str | None = None
    max_length: int | None = None
    truncation: bool | str | None = None
    images: dict[str, Any] = field(default_factory=dict)

    def row_length(self, lengths: Sequence[int]) -> int:
        """The length of padded rows, from the lengths of all rows.

        Raises:
            ValueError: If a row is too long, or rows of different lengths are not to be padded.
        """
        longest = max(lengths)
        if self.truncation and self.max_length is not None and longest > self.max_length:
            raise ValueError(
                f"A context has {longest} tokens, but max_length is {self.max_length}: its texts and images cannot be "
                "cut, so shorten the text or raise max_length."
            )
        if self.padding in (False, "do_not_pad") and longest > min(lengths):
            raise ValueError("padding is off, but the contexts differ in length: leave it on, or process them singly.")
        return max(longest, self.max_length or 0) if self.padding == "max_length" else longest


def call_options(options: dict[str, Any], tokenizer) -> CallOptions:
    """The options of a call, given flat or in dictionaries by modality; they override those that the tokenizer was
    created with.

    Raises:
        TypeError: If an option has no meaning.
        ValueError: If one is given twice, or tensors other than torch's are requested.
    """
    flat = {name: value for name, value in options.items() if name not in NESTED}
    merged = {name: tokenizer.init_kwargs[name] for name in TEXT_OPTIONS[:3] if name in tokenizer.init_kwargs}
    for name in NESTED:
        given = dict(options.get(name) or {})
        if twice := sorted(each for each in given if each in flat):
            raise ValueError(f"{', '.join(twice)} is given by itself and in {name}: give it once.")
        if name in ("videos_kwargs", "audio_kwargs"):
            given = {}  # for modalities that this model does not read
        merged |= given
    merged |= flat
    names = {each.name for each in dataclasses.fields(CallOptions)} - {"images"}
    chosen = {name: value for name, value in merged.items() if name in names}
    if chosen.get("return_tensors", "pt") not in ("pt", None):
        raise ValueError(
            f"return_tensors is {chosen['return_tensors']!r}, but the model's inputs are torch tensors: use 'pt'."
        )
    if merged.get("padding_side", "left") != "left":
        raise ValueError("padding_side is 'right', but the model continues its contexts: use 'left'.")
    rest = {name: value for name, value in merged.items() if name not in (*names, *TEXT_OPTIONS)}
    return CallOptions(**chosen, images={name: value for name, value in rest.items() if value is not None})
