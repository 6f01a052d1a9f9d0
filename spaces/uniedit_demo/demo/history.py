"""The drawings of a visitor on this visit: tiles that open large and restore their request."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import gradio as gr
from PIL import Image


ENTRIES = 12  # requests that a visitor's history holds
TILE = 512  # longest side of an image in a tile, in pixels
SOURCE = 1024  # longest side of a source that is kept, in pixels


@dataclass(frozen=True)
class Drawn:
    """A finished request.

    Args:
        tab: Where it was made.
        values: Text, seed and settings, in the order of `Tab.settings`; None for what the tab does not have.
        source: Its image as PNG.
        tile: Both results, base left and tuned right.
        caption: Text and seed.
    """

    tab: str
    values: tuple
    source: bytes | None
    tile: Image.Image
    caption: str


def remember(
    tab: str,
    history: list[Drawn],
    base: Image.Image | None,
    tuned: Image.Image | None,
    source: Image.Image | None,
    used_seed: float,
    text: str,
    _seed: float | None,
    *settings: float | None,
) -> tuple[list[Drawn], gr.Gallery]:
    """The history with a new request in front, and the gallery that shows it.

    Args:
        tab: The tab of the request.
        history: Earlier drawings.
        base: Result of the base model; nothing is remembered without it.
        tuned: Result of the tuned model.
        source: The image of the request.
        used_seed: The seed of the results.
        text: The text of the request.
        settings: Steps, guidance of text and image, and thinking.
    """
    if base is not None and tuned is not None:
        both = Image.new("RGB", (base.width + tuned.width, max(base.height, tuned.height)), "white")
        both.paste(base, (0, 0))
        both.paste(tuned, (base.width, 0))
        both.thumbnail((2 * TILE, TILE))
        caption = f"{text[:80]} (seed {used_seed:.0f})"
        drawn = Drawn(tab, (text, int(used_seed), *settings), _as_png(source), both, caption)
        history = [drawn, *history][:ENTRIES]
    tiles = [(each.tile, each.caption) for each in history]
    return history, gr.Gallery(tiles, visible=bool(tiles))


def source_of(drawn: Drawn) -> Image.Image | None:
    """The image of a request."""
    if drawn.source is None:
        return None
    with Image.open(BytesIO(drawn.source)) as image:
        return image.convert("RGB")


def _as_png(source: Image.Image | None) -> bytes | None:
    if source is None:
        return None
    kept = source.copy()
    kept.thumbnail((SOURCE, SOURCE))
    file = BytesIO()
    kept.save(file, "PNG")
    return file.getvalue()
