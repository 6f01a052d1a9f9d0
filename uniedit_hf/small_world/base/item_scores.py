"""Scores the outputs of models for the items of a world's file, on all cores."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence

import numpy as np
from PIL import Image

from uniedit_hf.small_world.questions import DrawingPrompt
from uniedit_hf.small_world.scoring import score_answer, score_drawing, score_edit


class Scorer:
    """A pool of scoring processes, started once.

    Args:
        processes: Number of processes; with 1, this process scores.
    """

    def __init__(self, processes: int):
        self.pool = None if processes == 1 else multiprocessing.get_context("spawn").Pool(processes)

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *error) -> None:
        if self.pool is not None:
            self.pool.terminate()

    def score_all(self, images: np.ndarray, items: Sequence[dict], outputs: Sequence[Sequence]) -> list[list[dict]]:
        """Whether every output is right, as `{"right": 0 or 1, "changed": ..., ...}`, by model and item.

        Args:
            images: All images of the world, uint8 (n, 64, 64, 3).
            items: As `world_tables.described` has them.
            outputs: For each model and item a text, or an image uint8 (64, 64, 3).
        """
        work = [
            (item, output, *(_image_of(images, item, name) for name in ("source", "expected")))
            for of_model in outputs
            for item, output in zip(items, of_model)
        ]
        scores = list(map(_score, work)) if self.pool is None else self.pool.map(_score, work, chunksize=64)
        return [scores[start : start + len(items)] for start in range(0, len(scores), len(items))]


def _image_of(images: np.ndarray, item: dict, name: str) -> np.ndarray | None:
    return images[item[name]] if item["ability"] == "editing" else None


def _score(work: tuple) -> dict:
    item, output, source, target = work
    if item["ability"] == "understanding":
        score = score_answer(output, item["expected"])
    elif item["ability"] == "generation":
        score = score_drawing(Image.fromarray(output), DrawingPrompt(**item["expected"]))
    else:
        score = score_edit(*(Image.fromarray(each) for each in (output, source, target)))
    return {"right": score.right, **score.parts}
