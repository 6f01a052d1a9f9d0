"""Measures a small model on easy-VQA's test images and prints one line of JSON.

    python -m uniedit_hf.small_world.base.measure assets/small_bagel --items 500

Understanding is exact match of written answers; drawings and edits are read from their pixels. Every figure is a share
with its 95 % interval and number of items.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from uniedit_hf.pipeline import UniEditPipeline
from uniedit_hf.small_world.base.base_items import drawing_items, plain_edit_items, question_items
from uniedit_hf.small_world.base.scenes import real_scenes
from uniedit_hf.small_world.easy_vqa import load_easy_vqa
from uniedit_hf.small_world.scene import Scene, render
from uniedit_hf.small_world.scoring import Score, score_answer, score_drawing, score_edit


# Chosen on training images.
DRAWING = {
    "bagel": {"text_guidance_scale": 2.5, "num_timesteps": 15},
    "janus": {"text_guidance_scale": 1.5, "temperature": 0.5},
}
IMAGE_GUIDANCE = 1.0  # off
VIEWS = {
    "bagel": {"vit": ("vit",), "vae": ("vae",), "both": ("vae", "vit")},
    "janus": {"siglip": ("siglip",), "vq": ("vq",), "both": ("siglip", "vq")},
}
ITEM_SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--items", type=int, default=500, help="for each ability")
    parser.add_argument(
        "--views", nargs="+", metavar="VIEW", help="of the source of edits: vit, vae, both; siglip, vq"
    )
    options = parser.parse_args()
    pipe = UniEditPipeline.from_pretrained(options.model, batch_size=50)
    print(json.dumps(measure(pipe, *real_scenes("test"), options.items, options.views)))


def measure(
    pipe: UniEditPipeline,
    images: np.ndarray,
    scenes: Sequence[Scene],
    count: int,
    views: Sequence[str] | None = None,
) -> dict[str, dict]:
    """All figures of a model: `{ability: {"all": share, part or kind: share}}`.

    Args:
        pipe: The model.
        images: Test images, uint8 (n, 64, 64, 3).
        scenes: Their scenes.
        count: Items for each ability.
        views: The views of the source for which edits are measured, from `VIEWS` of its family; all by default.
    """
    known = VIEWS[family(pipe)]
    figures = {"understanding": measure_answers(pipe, images, scenes, count)}
    figures["generation"] = measure_drawings(pipe, scenes, count)
    for each in views or known:
        figures[f"editing_{each}"] = measure_edits(pipe, images, scenes, count, known[each])
    return figures


def family(pipe: UniEditPipeline) -> str:
    """`"bagel"` or `"janus"`."""
    return pipe.model.config.model_type


def measure_answers(pipe: UniEditPipeline, images: np.ndarray, scenes: Sequence[Scene], count: int) -> dict:
    """Exact match of the answers, over all and by kind."""
    items = question_items(load_easy_vqa("test"), scenes, count, random.Random(ITEM_SEED))
    pictures = [Image.fromarray(images[item.image]) for item in items]
    written = pipe.answer(pictures, [item.question for item in items], max_new_tokens=6)
    return summary([score_answer(text, item.answer) for text, item in zip(written, items)], [i.kind for i in items])


def measure_drawings(pipe: UniEditPipeline, scenes: Sequence[Scene], count: int) -> dict:
    """Drawings that are right in everything that the prompt states, and in each part of it."""
    items = drawing_items(scenes, count, random.Random(ITEM_SEED))
    whole = {"guidance_interval": (0.0, 1.0)} if family(pipe) == "bagel" else {}
    drawn = pipe.generate([item.prompt for item in items], seed=list(range(count)), **DRAWING[family(pipe)], **whole)
    return summary([score_drawing(picture, item.drawing) for picture, item in zip(drawn, items)])


def measure_edits(
    pipe: UniEditPipeline, images: np.ndarray, scenes: Sequence[Scene], count: int, views: tuple[str, ...]
) -> dict:
    """Edits that are right in all parts, background included, in each part, and by kind of edit."""
    items = plain_edit_items(scenes, count, random.Random(ITEM_SEED))
    sources = [Image.fromarray(images[item.image]) for item in items]
    drawn = pipe.edit(
        sources,
        [item.instruction for item in items],
        seed=list(range(count)),
        source_views=views,
        image_guidance_scale=IMAGE_GUIDANCE,
        **DRAWING[family(pipe)],
    )
    scores = [score_edit(picture, *each) for picture, *each in zip(drawn, sources, [render(*i.target) for i in items])]
    return summary(scores, [item.kind for item in items])


def summary(scores: Sequence[Score], kinds: Sequence[str] = ()) -> dict:
    """Shares of right results, over all, in each part and by kind of item."""
    figures = {"all": share([score.right for score in scores])}
    figures |= {f"part {part}": share([score.parts[part] for score in scores]) for part in scores[0].parts}
    for kind in dict.fromkeys(kinds):
        figures[f"kind {kind}"] = share([score.right for score, other in zip(scores, kinds) if other == kind])
    return figures


def share(right: Sequence[int]) -> dict[str, float | int | list[float]]:
    """The share of ones in percent, its 95 % interval (Wilson's) and their number."""
    n, z = len(right), 1.959964
    p = sum(right) / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return {
        "percent": round(100 * p, 1),
        "ci95": [round(100 * (middle - half), 1), round(100 * (middle + half), 1)],
        "n": n,
    }


if __name__ == "__main__":
    main()
