"""Lays out segments as one sequence of tokens, in the format of Janus-Pro's conversations.

    BOS <|User|>: [image] \\n instruction \\n\\n <|Assistant|>: [image]
    BOS <|User|>: [image] \\n question \\n\\n <|Assistant|>: answer EOS

An image is BOI, its tokens, EOI. Segments with loss are the assistant's, the others the user's. A dropped segment
keeps its length: its tokens, its markers and the words around it become padding that is attended to, as in the
unconditional branch of the reference and of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

from uniedit_hf.segments import ImageSegment, Sample, TextSegment


# The token types: padding, text and markers, tokens of the SigLIP view, tokens of the VQ view.
PADDING, TEXT, SIGLIP, VQ = range(4)
USER, ASSISTANT = "<|User|>:", "<|Assistant|>:"
TURN = f"\n\n{ASSISTANT}"


@dataclass(frozen=True)
class Markers:
    """Ids of the special tokens, and the number of tokens of an image."""

    bos: int
    eos: int
    pad: int
    begin: int
    end: int
    placeholder: int
    num_image_tokens: int


@dataclass(frozen=True)
class Piece:
    """A segment with the words around it, before tokenization.

    Args:
        segment: The segment.
        before: Words before it.
        after: Words after it.
        begins: Whether it is the first of its sample, after the begin-of-sequence token.
    """

    segment: TextSegment | ImageSegment
    before: str
    after: str
    begins: bool

    @property
    def whole_text(self) -> str | None:
        """Words and text in one string, as they are tokenized, or `None` if the segment is not only text."""
        if isinstance(self.segment, TextSegment) and isinstance(self.segment.text, str):
            return self.before + self.segment.text.strip() + self.after
        return None

    @property
    def is_answer(self) -> bool:
        """Whether it is a text of the assistant, which ends with the end-of-sequence token."""
        return isinstance(self.segment, TextSegment) and self.segment.loss


# The same words as a chat template, with a placeholder for each image.
CHAT_TEMPLATE = (
    "{%- set seen = namespace(last='') -%}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is string -%}{%- set parts = [{'type': 'text', 'text': message['content']}] -%}"
    "{%- else -%}{%- set parts = message['content'] or [] -%}{%- endif -%}"
    "{%- for part in parts -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- if seen.last != '' -%}{{ '\\n\\n<|Assistant|>:' }}{%- set seen.last = '' -%}{%- endif -%}"
    "{%- generation -%}{{ ' ' + part['text'] | trim + eos_token }}{%- endgeneration -%}"
    "{%- else -%}"
    "{%- if seen.last == '' -%}{{ '<|User|>: ' }}"
    "{%- elif part['type'] != 'text' and seen.last != 'text' -%}"
    "{%- elif part['type'] == seen.last -%}{{ ' ' }}"
    "{%- else -%}{{ '\\n' }}{%- endif -%}"
    "{%- if part['type'] == 'text' -%}{{ part['text'] | trim }}{%- set seen.last = 'text' -%}"
    "{%- else -%}{{ '<image_placeholder>' }}{%- set seen.last = 'image' -%}{%- endif -%}"
    "{%- endif -%}"
    "{%- endfor -%}{%- endfor -%}"
    "{%- if add_generation_prompt and seen.last != '' -%}{{ '\\n\\n<|Assistant|>:' }}{%- endif -%}"
)


def pieces(sample: Sample, system_prompt: bool, is_answered: bool = True) -> list[Piece]:
    """The segments of a sample with the words around them.

    Args:
        sample: The sample.
        system_prompt: Whether it begins with the system prompt of a text conversation.
        is_answered: Whether the assistant's turn begins after the user's last segment.
    """
    found = []
    segments: Sequence = [None, *sample.segments, None]
    for number in range(1, len(segments) - 1):
        earlier, this, later = segments[number - 1 : number + 2]
        is_text = isinstance(this, TextSegment)
        if this.loss:
            before = " " if is_text and isinstance(this.text, str) else ""  # ids pass through as they are
        elif earlier is None or earlier.loss:
            before = USER + " "
        elif is_text:
            before = " " if isinstance(earlier, TextSegment) else "\n"
        else:
            before = "\n" if isinstance(earlier, TextSegment) else ""
        if earlier is None and system_prompt:
            before = DEFAULT_SYSTEM_PROMPT + before
        is_turn = not this.loss and (is_answered if later is None else later.loss)
        after = TURN if is_turn else ""
        found.append(Piece(this, before, after, earlier is None))
    return found


class JanusRow:
    """The tokens of one sample: ids, types and text labels. A label is at the position that predicts the token, one
    before it.
    """

    def __init__(self):
        self.ids: list[int] = []
        self.types: list[int] = []
        self.labels: list[int] = []

    def extend(self, ids: Sequence[int], kind: int = TEXT) -> None:
        """Appends tokens without loss."""
        self.ids += ids
        self.types += [kind] * len(ids)
        self.labels += [-100] * len(ids)

    def learn(self, ids: Sequence[int]) -> None:
        """Appends tokens with loss."""
        start = len(self.ids) - 1
        self.extend(ids)
        self.labels[start : start + len(ids)] = ids

    def arrays(self) -> dict[str, np.ndarray]:
        """Each attribute as int64 (L,)."""
        columns = {"input_ids": self.ids, "token_type_ids": self.types, "labels": self.labels}
        return {name: np.asarray(values, dtype=np.int64) for name, values in columns.items()}


def lay_out(
    sample: Sample,
    tokenize: Callable[[str], list[int]],
    marks: Markers,
    system_prompt: bool,
    is_answered: bool = True,
) -> JanusRow:
    """All tokens of a sample, see `pieces`."""
    row = JanusRow()
    for piece in pieces(sample, system_prompt, is_answered):
        if piece.begins:
            row.extend([marks.bos])
        if piece.segment.dropped:
            row.extend([marks.pad] * piece_length(piece, tokenize, marks))
        elif isinstance(piece.segment, ImageSegment):
            kind = SIGLIP if piece.segment.view == "siglip" else VQ
            row.extend([*tokenize(piece.before), marks.begin])
            row.extend([marks.placeholder] * marks.num_image_tokens, kind)
            row.extend([marks.end, *tokenize(piece.after)])
        else:
            ids = text_ids(piece, tokenize)
            row.learn([*ids, marks.eos]) if piece.is_answer else row.extend(ids)
    return row


def text_ids(piece: Piece, tokenize: Callable[[str], list[int]]) -> list[int]:
    """Ids of a text with the words around it; a list of ids is returned unchanged."""
    if piece.whole_text is not None:
        return tokenize(piece.whole_text)
    return [*tokenize(piece.before), *(int(each) for each in piece.segment.text), *tokenize(piece.after)]


def piece_length(piece: Piece, tokenize: Callable[[str], list[int]], marks: Markers) -> int:
    """Number of tokens of a piece without the begin-of-sequence token."""
    if isinstance(piece.segment, ImageSegment):
        return len(tokenize(piece.before)) + marks.num_image_tokens + 2 + len(tokenize(piece.after))
    return len(text_ids(piece, tokenize)) + piece.is_answer
