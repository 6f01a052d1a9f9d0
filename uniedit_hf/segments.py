"""The two nouns every recipe is written in: a `Segment` is a piece of text or one view of an image, a `Sample` is a
list of segments. They know no model: what a view means, and how many tokens it has, is the processor's business."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal


View = Literal["vit", "vae", "siglip", "vq"]


@dataclass(frozen=True)
class TextSegment:
    """A piece of text.

    Args:
        text: The text, or its token ids without the beginning and end markers.
        loss: Whether the model learns to write this text.
        dropout: Probability of leaving the segment out while training (conditioning dropout).
        dropped: Whether it was left out. A dropped text takes no tokens and no rotary position.
    """

    text: str | Sequence[int]
    loss: bool = False
    dropout: float = 0.0
    dropped: bool = False


@dataclass(frozen=True)
class ImageSegment:
    """One view of an image: which encoder sees it.

    Args:
        image: A `PIL.Image.Image`, encoded bytes, a path, or `{"bytes": ..., "path": ...}` as `datasets` stores it;
            `None` while packs are planned from sizes alone.
        view: `"vit"` or `"vae"` for BAGEL, `"siglip"` or `"vq"` for Janus-Pro.
        loss: Whether the model learns to draw this image.
        dropout: Probability of leaving the segment out while training (conditioning dropout).
        dropped: Whether it was left out. A dropped image takes no tokens but still one rotary position.
        size: `(width, height)` in pixels before any resizing, so that packs can be planned without decoding.
    """

    image: Any
    view: View
    loss: bool = False
    dropout: float = 0.0
    dropped: bool = False
    size: tuple[int, int] | None = None


Segment = TextSegment | ImageSegment


@dataclass(frozen=True)
class Sample:
    """One edit, one question and answer, one text-to-image pair, or a multi-turn interleaving of them.

    Args:
        segments: What the model reads and writes, in order.
        id: A stable name; every random draw of the sample is a function of it (see `uniedit_hf.randomness`).
    """

    segments: tuple[Segment, ...]
    id: str = ""

    def __post_init__(self):
        object.__setattr__(self, "segments", tuple(self.segments))

    def with_segments(self, segments: Sequence[Segment]) -> Sample:
        """The same sample, by id, with other segments."""
        return replace(self, segments=tuple(segments))
