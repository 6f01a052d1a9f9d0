"""Chats as samples, and the arguments with which users of transformers call a processor.

A chat is a list of messages, each with a `role` and a `content`: a text, or a list of parts such as
`{"type": "text", "text": ...}` and `{"type": "image", "image": ...}`. It becomes the same segments that
`UniEditPipeline.answer` makes of the same turns.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import BatchFeature
from transformers.image_utils import load_image

from uniedit_hf.segments import UNDERSTANDING, ImageSegment, Sample, TextSegment


IMAGE_KEYS = ("image", "url", "path", "base64", "image_url")
ROLES = ("user", "assistant", "system")
NESTED = ("text_kwargs", "images_kwargs", "common_kwargs", "videos_kwargs", "audio_kwargs")
# Without effect on a context: its markers are part of it, and no model here reads videos.
WITHOUT_EFFECT = ("add_special_tokens", "num_frames", "fps", "do_sample_frames")


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
        add_generation_prompt: Whether the model will write the following text; `None` means yes, unless rows are
            padded on the right.
        return_tensors: `"pt"` or `None`.
        padding: `"max_length"` pads to `max_length`, anything else to the longest row.
        max_length: Maximum number of tokens in a row.
        truncation: Whether rows may be truncated; a row that would need it is refused.
        padding_side: `"left"`, or `"right"` for contexts that are trained on.
        pad_to_multiple_of: The length of a row is a multiple of this.
        return_attention_mask: Must not be false: the model needs the mask.
        continue_final_message: Whether the model continues the assistant's last message, which then has no end marker.
        return_assistant_tokens_mask: Whether to return `assistant_masks` (B, L), 1 at what the assistant said.
        sanitize_control_tokens: Whether the name of a control token in a text is plain text; `None` keeps the
            processor's `parse_control_tokens`.
        images: Settings of the image processor for this call.
    """

    add_generation_prompt: bool | None = None
    return_tensors: str | None = "pt"
    padding: bool | str | None = None
    max_length: int | None = None
    truncation: bool | str | None = None
    padding_side: str = "left"
    pad_to_multiple_of: int | None = None
    return_attention_mask: bool | None = None
    continue_final_message: bool = False
    return_assistant_tokens_mask: bool = False
    sanitize_control_tokens: bool | None = None
    images: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.return_tensors not in ("pt", None):
            raise ValueError(
                f"return_tensors is {self.return_tensors!r}, but the model's inputs are torch tensors: use 'pt'."
            )
        if self.padding_side not in ("left", "right"):
            raise ValueError(f"padding_side is {self.padding_side!r}: use 'left', or 'right' to train on chats.")
        if self.return_attention_mask is False:
            raise ValueError("return_attention_mask is off, but the model needs it to skip padding: leave it on.")
        if self.add_generation_prompt is None:
            self.add_generation_prompt = self.padding_side == "left"
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError(
                "continue_final_message and add_generation_prompt exclude each other: the model continues the last "
                "message, or begins another."
            )
        if self.add_generation_prompt and self.padding_side == "right":
            raise ValueError(
                "padding_side is 'right', but the model continues its contexts: use 'left', or "
                "add_generation_prompt=False to train on them."
            )

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
        length = max(longest, self.max_length or 0) if self.padding == "max_length" else longest
        multiple = self.pad_to_multiple_of or 1
        return -(-length // multiple) * multiple


def call_options(options: dict[str, Any], tokenizer) -> CallOptions:
    """The options of a call, given flat or in dictionaries by modality; they override those that the tokenizer was
    created with.

    Raises:
        TypeError: If an option has no meaning.
        ValueError: If one is given twice, or as `CallOptions`.
    """
    flat = {name: value for name, value in options.items() if name not in NESTED}
    defaults = ("padding", "max_length", "truncation")
    merged = {name: tokenizer.init_kwargs[name] for name in defaults if name in tokenizer.init_kwargs}
    for name in NESTED:
        given = dict(options.get(name) or {})
        twice = sorted(each for each in given if each in flat)
        if twice and (name != "common_kwargs" or any(given[each] != flat[each] for each in twice)):
            raise ValueError(f"{', '.join(twice)} is given by itself and in {name}: give it once.")
        if name in ("videos_kwargs", "audio_kwargs"):
            given = {}  # for modalities that this model does not read
        merged |= given
    merged |= flat
    names = {each.name for each in dataclasses.fields(CallOptions)} - {"images"}
    rest = {name: value for name, value in merged.items() if name not in (*names, *WITHOUT_EFFECT)}
    return CallOptions(
        **{name: value for name, value in merged.items() if name in names},
        images={name: value for name, value in rest.items() if value is not None},
    )


class ChatCalls:
    """The methods of a processor that take chats and the usual options of transformers. `SampleProcessor` adds
    `contexts` and `open_source`."""

    # Whether the text of any chat template can be tokenized, as transformers' own processors do.
    tokenizes_templates: ClassVar[bool] = False

    def with_image_settings(self, **settings) -> ChatCalls:
        """A processor with changed settings of its image processor.

        Raises:
            TypeError: If there is no such setting.
        """
        if settings:
            names = ", ".join(sorted(settings))
            raise TypeError(f"{type(self).__name__} takes no {names} with samples or chats: leave it out.")
        return self

    def contexts_as(self, samples: Sequence[Sample], options: dict[str, Any]) -> BatchFeature:
        """`contexts` with the usual options of transformers, see `CallOptions`."""
        chosen = call_options(options, self.tokenizer)
        processor = self.with_image_settings(**chosen.images)
        if chosen.sanitize_control_tokens is not None:
            processor = copy.copy(processor)
            processor.parse_control_tokens = not chosen.sanitize_control_tokens
        return processor.contexts(samples, "write" if chosen.add_generation_prompt else "read", chosen)

    def apply_chat_template(
        self, conversation, chat_template=None, *, tokenize=False, return_dict=False, return_tensors="auto",
        add_generation_prompt=False, continue_final_message=False, return_assistant_tokens_mask=False,
        processor_kwargs=None, **kwargs,
    ):  # fmt: skip
        """A chat, or a list of chats, as text, or with `tokenize` as inputs of `generate()`.

        Tokens are those of the segments that `UniEditPipeline.answer` reads; texts are made by the template.

        Args:
            conversation: Messages with roles and contents, see `uniedit_hf.models.chats`.
            chat_template: For text; for tokens too if the family `tokenizes_templates`.
            tokenize: Whether to return tokens.
            return_dict: Whether to return images and masks with the ids.
            return_tensors: Without `"pt"` and `return_dict`, ids are lists.
            add_generation_prompt: Whether the assistant's answer comes next.
            continue_final_message: Whether the model continues the assistant's last message.
            return_assistant_tokens_mask: Whether to return `assistant_masks` (B, L), 1 at what the assistant said and
                its end marker. Needs `return_dict`.
            processor_kwargs: Arguments of `__call__`.
            kwargs: Likewise, or for text those of transformers.

        Raises:
            ValueError: If a message cannot be read, or an option has no meaning.
        """
        is_other = chat_template not in (None, self.chat_template)
        if not tokenize or is_other and self.tokenizes_templates:
            return super().apply_chat_template(
                conversation, chat_template, tokenize=tokenize, return_dict=return_dict, return_tensors=return_tensors,
                add_generation_prompt=add_generation_prompt, continue_final_message=continue_final_message,
                return_assistant_tokens_mask=return_assistant_tokens_mask, processor_kwargs=processor_kwargs, **kwargs,
            )  # fmt: skip
        if is_other:
            raise ValueError(
                "Chats become tokens as their segments do, so chat_template has no effect with tokenize=True: leave "
                "it out."
            )
        if return_assistant_tokens_mask and not return_dict:
            raise ValueError("return_assistant_tokens_mask adds a column: set return_dict=True, or leave it out.")
        chats = conversation if is_batch(conversation) else [conversation]
        samples = [chat_sample(chat, self.open_source) for chat in chats]
        options = {"add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message}
        options |= {"return_assistant_tokens_mask": return_assistant_tokens_mask, **(processor_kwargs or {}), **kwargs}
        if return_tensors != "auto":
            options["return_tensors"] = return_tensors
        features = self.chat_features(self.contexts_as(samples, options))
        if return_dict:
            return features
        ids = features["input_ids"]
        if return_tensors == "pt":
            return ids
        return ids.tolist() if is_batch(conversation) else ids[0].tolist()

    def chat_features(self, features: BatchFeature) -> BatchFeature:
        """Renames the inputs of a chat to the names that this family has in transformers."""
        return features
