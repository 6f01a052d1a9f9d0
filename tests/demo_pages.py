"""The page of `uniedit demo` on tiny models, served by a thread of the test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import gradio as gr
from PIL import Image
from tiny_models import FAMILIES, picture

from uniedit_hf.demo.limits import Limits
from uniedit_hf.demo.main import build
from uniedit_hf.demo.models import Pair
from uniedit_hf.pipeline import UniEditPipeline


INSTRUCTION = "if the circle is red, make it blue; otherwise make it bigger"


def tiny_pair(family: str = "bagel") -> Pair:
    """Two tiny models that draw different things."""
    tiny = FAMILIES[family]
    pipes = [UniEditPipeline(tiny.model(seed), tiny.processor()) for seed in (0, 1)]
    return Pair(*pipes, "tiny/base", "tiny/tuned")


@contextmanager
def served(pair: Pair, limits: Limits | None = None, **options) -> Iterator[tuple[gr.Blocks, str]]:
    """The page at an address on loopback, until the block ends; `options` are Gradio's."""
    page = build(pair, limits)
    _, address, _ = page.launch(
        quiet=True, ssr_mode=False, prevent_thread_lock=True, show_error=True, max_file_size="20mb", **options
    )
    try:
        yield page, address
    finally:
        page.close()


def save_bad_files(folder: Path) -> dict[str, Path]:
    """Files that cannot be edited, by what is wrong with them."""
    paths = {name: folder / f"{name}.png" for name in ("text", "huge", "cut")}
    paths["text"].write_text("I am a text.")
    Image.new("L", (20_000, 10_000)).save(paths["huge"])  # 200 megapixels of black in some kilobytes
    whole = BytesIO()
    picture(200, 200).save(whole, "PNG")
    paths["cut"].write_bytes(whole.getvalue()[:-500])
    paths["animation"] = folder / "animation.gif"
    frames = [picture(seed=seed) for seed in range(3)]
    frames[0].save(paths["animation"], save_all=True, append_images=frames[1:])
    return paths
