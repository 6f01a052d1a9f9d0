"""Notices of what the small models do not know, shown in place of the result before anything is drawn."""

from __future__ import annotations

import html

import numpy as np
from PIL import Image

from uniedit_hf.small_world.reader import read_all

from .models import SMALL_WORLD, Pair


UNKNOWN = 5  # words at most that are named as unknown
SHADES = 8  # of each channel, for counting colors
FLAT = 0.85  # share of a drawing's pixels that its four most frequent colors cover; photos reach 0.6
COMMAND = "uniedit demo --base ByteDance-Seed/BAGEL-7B-MoT --tuned NAME"


def notice(pair: Pair, picture: Image.Image | None, text: str | None) -> str | None:
    """Why the small models of a page cannot make sense of a request, in Markdown; None if they can.

    Args:
        pair: The models.
        `picture`: The image of the request.
        text: Its text.
    """
    doubts = doubts_of(pair, picture, text)
    if not doubts:
        return None
    return (
        f"**The small models of this page know only {pair.side}-pixel drawings of shapes**: {'; '.join(doubts)}. The "
        f"result will make no sense. For photos and any words, run a full-size model on a GPU: `{COMMAND}`. Or try "
        "the nearest example:"
    )


def doubts_of(pair: Pair, picture: Image.Image | None, text: str | None) -> list[str]:
    """The parts of a request that small models never saw, in a few words each. Large models know everything."""
    doubts = []
    if pair.side <= SMALL_WORLD and picture is not None and not is_drawing(picture):
        doubts.append("this image is not a drawing of shapes")
    if words := pair.unknown_words(text or ""):
        doubts.append(f"unknown words: {html.escape(', '.join(words[:UNKNOWN]))}")
    return doubts


def is_drawing(picture: Image.Image) -> bool:
    """Whether an image is of the kind that the small models were trained on: plain shapes on a plain ground."""
    small = picture.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)
    if read_all(small):
        return True
    colors = np.asarray(small).astype(int) // (256 // SHADES) @ [SHADES**2, SHADES, 1]
    counts = np.sort(np.unique(colors, return_counts=True)[1])[::-1]
    return max(picture.size) <= SMALL_WORLD and counts[:4].sum() >= FLAT * colors.size
