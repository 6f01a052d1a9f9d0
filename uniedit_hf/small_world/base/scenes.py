"""The images that the small world is trained on: easy-VQA's training images and others of the same kind."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import torch

from uniedit_hf.small_world.easy_vqa import Split, load_easy_vqa, load_image, one_row_per_image
from uniedit_hf.small_world.program import BIGGEST, QUARTERS, SMALLEST, Copies
from uniedit_hf.small_world.reader import read
from uniedit_hf.small_world.scene import PALETTE, SIDE, Scene, render


LIGHTEST, DARKEST = 255, 230  # the backgrounds of easy-VQA


def real_scenes(split: Split) -> tuple[np.ndarray, list[Scene]]:
    """All images of a split, uint8 (images, 64, 64, 3), and the scenes that the reader finds in them."""
    images = [np.asarray(load_image(row.image_path)) for row in one_row_per_image(load_easy_vqa(split))]
    return np.stack(images), [read(image) for image in images]


def random_scene(scenes: list[Scene], rng: random.Random) -> Scene:
    """A shape of the data set in another place, color and size, on another background."""
    shape = rng.choice(scenes)
    size = min(max(shape.size * rng.uniform(0.8, 1.25), SMALLEST), BIGGEST)
    background = tuple(rng.randint(DARKEST, LIGHTEST) for _ in range(3))
    center = rng.uniform(0, SIDE), rng.uniform(0, SIDE)
    return replace(shape.at(center, size), color=rng.choice(list(PALETTE)), background=background)


def random_picture(scenes: list[Scene], rng: random.Random, copies: float = 0.15) -> np.ndarray:
    """A random image, uint8 (64, 64, 3); the share `copies` of them shows one shape two to four times."""
    scene = random_scene(scenes, rng)
    shown = Copies(rng.randint(2, len(QUARTERS))).result(scene) if rng.random() < copies else [scene]
    return np.asarray(render(*shown))


def as_tensor(pictures: np.ndarray) -> torch.Tensor:
    """uint8 (n, h, w, 3) to pixels (n, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def as_pictures(pixels: torch.Tensor) -> np.ndarray:
    """Pixels (n, 3, h, w) in about [-1, 1] to uint8 (n, h, w, 3)."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
