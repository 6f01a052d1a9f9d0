"""A raw release in the official format, of any size: easy-VQA's questions with its images, or with larger ones."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path

import numpy as np
from PIL import Image

from uniedit_hf.schema import TASK_CATEGORIES
from uniedit_hf.small_world.easy_vqa import load_easy_vqa


def photograph(seed: int, width: int, height: int, kind: str, **options) -> bytes:
    """A smooth image with the grain of a photograph, encoded: as many bytes as one, and as long to decode."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    picture = Image.fromarray((smooth + draw.integers(-3, 4, smooth.shape)).clip(0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def write_official_release(folder: Path, rows: int, side: int = 64, pictures: int = 4000) -> None:
    """Writes `uniedit_148k.jsonl` and its images.

    Args:
        folder: Made if it is missing.
        rows: Lines of the manifest; every line has an instruction of its own.
        side: Width and height of the images in pixels: 64 for easy-VQA's own; larger ones are drawn, with grain.
        images: How many different ones there are.
    """
    questions = load_easy_vqa("train")
    paths = sorted({row.image_path for row in questions})[:pictures]
    (folder / "images").mkdir(parents=True)
    for number, path in enumerate(paths):
        target = folder / "images" / f"{number}.png"
        if side == 64:
            target.write_bytes(path.read_bytes())
        else:
            target.write_bytes(photograph(number, side, side, "PNG", compress_level=1))
    with open(folder / "uniedit_148k.jsonl", "w", encoding="utf-8") as manifest:
        for number, row in enumerate(itertools.islice(itertools.cycle(questions), rows)):
            entry = {
                "task_category": TASK_CATEGORIES[number % len(TASK_CATEGORIES)],
                "original_question": row.question,
                "original_answer": row.answer,
                "process_answer": row.answer,
                "image_path": f"images/{number % len(paths)}.png",
                "edit_instruction": f'Answer "{row.question}" and paint number {number}.',
                "output_image_path": f"images/{(number + 1) % len(paths)}.png",
                "analysis": "clear",
                "score": 5,
            }
            manifest.write(json.dumps(entry) + "\n")
