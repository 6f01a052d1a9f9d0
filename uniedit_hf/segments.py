"""The two nouns every recipe is written in: a `Segment` is a piece of text or one view of an image, a `Sample` is a
list of segments. They do not depend on a model: a processor decides which encoder a view uses, and how many tokens it
has.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args


if TYPE_CHECKING:
    import torch


# The two views that a unified model has of an image: one to understand it, and one to draw (and perhaps read) it. Each
# family has its own names for them, such as "vit" and "vae", which its processor accepts as well.
View = Literal["understanding", "drawing"]
UNDERSTANDING, DRAWING = get_args(View)

SURROGATES = re.compile("[\ud800-\udfff]")


def check_characters(text: str, name: str) -> None:
    """Checks that a text is valid Unicode, as tokenizers need it; raises ValueError if it has half a character."""
    if not text.isascii() and SURROGATES.search(text):
        raise ValueError(f"The {name} has half a character (a lone surrogate): use valid Unicode.")


class ImageTokens(NamedTuple):
    """Tokens of an image that were computed before.

    Args:
        ids: Token ids, row by row.
        made_by: Fingerprint of the tokenizer that computed them.
    """

    ids: Sequence[int]
    made_by: str


class StoredView(NamedTuple):
    """The stored output of a family's encoder for an image.

    Args:
        data: Tensors in safetensors.
        made_by: Fingerprint of the encoder that computed them.
    """

    data: bytes
    made_by: str


class DrawnState(NamedTuple):
    """A state of a drawing that the model made itself, for families that draw by a flow.

    Args:
        latents: Latent tokens (P, C).
        time: The flow time of the latents; at 0 the drawing is finished, and training adds noise as to any target.
    """

    latents: torch.Tensor
    time: float = 0.0


@dataclass(frozen=True)
class TextSegment:
    """A piece of text.

    Args:
        text: The text, or its token ids without the beginning and end markers.
        loss: Whether the model learns to write this text.
        dropout: Probability of dropping the segment while training (conditioning dropout).
        dropped: Whether it was dropped. In BAGEL a dropped text takes no tokens and no rotary position; in Janus-Pro
            its tokens become padding.
        joint_dropout: Probability of dropping all segments that have one, together.
    """

    text: str | Sequence[int]
    loss: bool = False
    dropout: float = 0.0
    dropped: bool = False
    joint_dropout: float = 0.0


@dataclass(frozen=True)
class ImageSegment:
    """One view of an image.

    Args:
        image: A `PIL.Image.Image`, encoded bytes, a path, or `{"bytes": ..., "path": ...}` as `datasets` stores it;
            `None` while packs are planned from sizes alone.
        view: `"understanding"` or `"drawing"`, or the family's own name of it: `"vit"` or `"vae"` for BAGEL,
            `"siglip"` or `"vq"` for Janus-Pro.
        loss: Whether the model learns to draw this image.
        dropout: Probability of dropping the segment while training (conditioning dropout).
        dropped: Whether it was dropped. In BAGEL a dropped image takes no tokens but still one rotary position; in
            Janus-Pro its tokens become padding.
        size: `(width, height)` in pixels before any resizing, so that packs can be planned without decoding.
        joint_dropout: Probability of dropping all segments that have one, together.
        tokens: Tokens of the drawing view that were stored with the data, for families that draw discrete tokens.
        stored: Output of the view's encoder that was stored with the data, for the other families.
        state: A state of the drawing, used instead of an image.
    """

    image: Any
    view: View | str
    loss: bool = False
    dropout: float = 0.0
    dropped: bool = False
    size: tuple[int, int] | None = None
    joint_dropout: float = 0.0
    tokens: ImageTokens | None = None
    stored: StoredView | None = None
    state: DrawnState | None = None


Segment = TextSegment | ImageSegment


@dataclass(frozen=True)
class Sample:
    """One edit, one question and answer, one text-to-image pair, or a multi-turn interleaving of them.

    Args:
        segments: The texts and images that the model reads and writes, in order.
        id: A stable name; every random draw of the sample is a function of it (see `uniedit_hf.randomness`).
    """

    segments: tuple[Segment, ...]
    id: str = ""

    def __post_init__(self):
        object.__setattr__(self, "segments", tuple(self.segments))

    def with_segments(self, segments: Sequence[Segment]) -> Sample:
        """A sample with the same id and other segments."""
        return replace(self, segments=tuple(segments))
