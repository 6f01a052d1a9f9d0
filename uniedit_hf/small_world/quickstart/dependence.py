"""Measures whether edits depend on their inputs: repeats items with the source or the instruction of another item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from uniedit_hf.pipeline import UniEditPipeline
from uniedit_hf.small_world.compare import mismatches
from uniedit_hf.small_world.reader import read_all
from uniedit_hf.small_world.suite import Output, outputs_of, score
from uniedit_hf.small_world.suite_items import SmallWorldItem


NUM_ITEMS = 60
EXCHANGED = {"source": "sources", "instruction": "prompt"}


def dependence(
    pipeline: UniEditPipeline, items: Sequence[SmallWorldItem], outputs: Sequence[Output]
) -> dict[str, dict[str, float]]:
    """Draws edits again with the source or the instruction of the next item that has a different one; everything else,
    including the noise, is the same.

    Args:
        pipeline: The model.
        items: All test items.
        outputs: The model's outputs for them.

    Returns:
        For `source` and `instruction` the share of images that now read differently and the share that is still
        right, and under `neither` the share that was right. Uses every k-th edit, at most `NUM_ITEMS` in all, whether
        or not it was right.
    """
    edits = [index for index, item in enumerate(items) if item.ability == "editing"]
    chosen = edits[:: max(1, len(edits) // NUM_ITEMS)][:NUM_ITEMS]
    right = [score(items[index], outputs[index]).right for index in chosen]
    figures = {"neither": {"right": float(np.mean(right)), "n": len(chosen)}}
    for name, part in EXCHANGED.items():
        exchanged = [replace(items[index], **{part: _other(items, edits, index, part)}) for index in chosen]
        drawn = outputs_of(pipeline, exchanged)
        figures[name] = {
            "different": float(np.mean([_differ(outputs[index], each) for index, each in zip(chosen, drawn)])),
            "right": float(np.mean([score(items[index], each).right for index, each in zip(chosen, drawn)])),
        }
    return figures


def _other(items: Sequence[SmallWorldItem], edits: Sequence[int], index: int, part: str):
    """The value of the next edit that has a different one."""
    start, own = edits.index(index), getattr(items[index], part)
    following = (getattr(items[each], part) for each in [*edits[start + 1 :], *edits[:start]])
    return next(other for other in following if other != own)


def _differ(first: Image.Image, second: Image.Image) -> bool:
    return bool(mismatches(read_all(np.asarray(first)), read_all(np.asarray(second))))
