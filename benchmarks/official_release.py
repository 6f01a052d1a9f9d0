"""A raw release in the official format, of any size, from the pictures of easy-VQA."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from PIL import Image

from uniedit_hf.schema import TASK_CATEGORIES
from uniedit_hf.synthesis.easy_vqa import load_easy_vqa


def write_official_release(folder: Path, rows: int, side: int = 64, pictures: int = 4000) -> None:
    """Writes `uniedit_148k.jsonl` and its pictures.

    Args:
        folder: Made if it is missing.
        rows: Lines of the manifest; every line has an instruction of its own.
        side: Width and height of the pictures in pixels; easy-VQA's are 64 and are enlarged.
        pictures: How many different ones there are.
    """
    questions = load_easy_vqa("train")
    paths = sorted({row.image_path for row in questions})[:pictures]
    (folder / "images").mkdir(parents=True)
    for number, path in enumerate(paths):
        target = folder / "images" / f"{number}.png"
        if side == 64:
            target.write_bytes(path.read_bytes())
        else:
            with Image.open(path) as picture:
                picture.resize((side, side), Image.Resampling.BICUBIC).save(target)
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
