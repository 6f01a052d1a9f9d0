"""How well the reader reads: real images, the same after a loss like a VAE's, and images without one shape.

    python -m benchmarks.reader [--images 1000]

Prints one JSON line and exits with 1 if a bar is missed: 99.5 % of the real test images, 99 % after the loss, and
99 % of the blank, noisy and two-shape images (the two apart) told as none.

- `questions`: easy-VQA's own test questions answered from what was read; `pictures`: those with all of them right.
- `redrawn`: mean absolute difference, in gray levels, between an image and its scene drawn again.
- `place_error`, `size_error`: pixels, mean and largest, on scenes drawn with known boxes (`clean`), and on real
  images after the loss against before (`lossy`).
- `overlapping`: images of two shapes, a tenth or more of the one behind in sight, told as none; it has no bar.
- The loss: Gaussian blur, noise and JPEG, together about 40 dB; `lossy_psnr` says how much it was.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from uniedit_hf.randomness import python_random
from uniedit_hf.small_world.easy_vqa import VqaRow, load_easy_vqa, load_image
from uniedit_hf.small_world.reader import read
from uniedit_hf.small_world.scene import PALETTE, SHAPES, SIDE, Scene, coverage, overlap, render


SEED = 0
VISIBLE = 0.1  # how much of a shape behind another has to show
BLUR, NOISE, JPEG_QUALITY = 0.42, 2.0, 93
BARS = {"pictures": 0.995, "lossy_pictures": 0.99, "blank": 0.99, "noisy": 0.99, "two_shapes": 0.99}


def right_answer(row: VqaRow, scene: Scene) -> bool:
    """Whether a scene gives the data set's answer to a question."""
    value = scene.color if row.attribute == "color" else scene.shape
    if row.is_open:
        return value == row.answer
    return ((value == row.value) != row.negated) == (row.answer == "yes")


def lossy(image: Image.Image, seed: int) -> Image.Image:
    """The image after a loss of about 40 dB, as a VAE round trip causes it."""
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(BLUR)), dtype=float)
    noisy = blurred + np.random.default_rng(seed).normal(0, NOISE, blurred.shape)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8)).save(
        buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0
    )
    return Image.open(buffer).convert("RGB")


def drawn_scenes(count: int) -> list[Scene]:
    """Scenes with sizes, places and colors like the data set's, but off its grid."""
    scenes = []
    for index in range(count):
        rng = python_random(SEED, index, "scene")
        background = tuple(rng.randint(225, 255) for _ in range(3))
        width = rng.uniform(8, 33)
        box = (0, 0, width, rng.uniform(8, 33))
        scene = Scene("rectangle", rng.choice(list(PALETTE)), box, background)
        shape = rng.choice(SHAPES)
        scene = scene if shape == "rectangle" else scene.turned_into(shape)
        scenes.append(scene.at((rng.uniform(5, 59), rng.uniform(5, 59))))
    return scenes


def errors(found: list[Scene | None], truth: list[Scene]) -> dict[str, float]:
    """Place and size errors of what was read, in pixels."""
    pairs = [(a, b) for a, b in zip(found, truth) if a is not None]
    place = [max(abs(p - q) for p, q in zip(a.center, b.center)) for a, b in pairs]
    size = [abs(a.size - b.size) for a, b in pairs]
    return {
        "place_error": round(float(np.mean(place)), 3),
        "place_error_max": round(max(place), 3),
        "size_error": round(float(np.mean(size)), 3),
        "size_error_max": round(max(size), 3),
    }


def visible(below: Scene, above: Scene) -> float:
    """How much of the lower shape is left, as a share of the larger of the two."""
    a, b = (coverage(scene.shape, scene.box) for scene in (below, above))
    return float((a * (1 - b)).sum() / max(a.sum(), b.sum()))


def told_as_none(count: int, scenes: list[Scene]) -> dict[str, float]:
    """How often images that show no shape, noise, two shapes, or two that overlap are told as none."""
    draw = np.random.default_rng(SEED)
    blank = [np.full((SIDE, SIDE, 3), draw.integers(225, 256, 3), dtype=np.uint8) for _ in range(count)]
    noisy = [draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(count // 2)]
    for scene in scenes[: count - len(noisy)]:
        strong = np.asarray(render(scene), dtype=float) + draw.normal(0, 60, (SIDE, SIDE, 3))
        noisy.append(np.clip(strong, 0, 255).astype(np.uint8))
    pairs = [(a, replace(b, background=a.background)) for a, b in zip(scenes, scenes[1:])]
    apart = [render(a, b) for a, b in pairs if not overlap([a.box, b.box])][:count]
    over = [render(a, b) for a, b in pairs if overlap([a.box, b.box]) and visible(a, b) > VISIBLE][:count]
    pictures = {"blank": blank, "noisy": noisy, "two_shapes": apart, "overlapping": over}
    return {name: float(np.mean([read(image) is None for image in images])) for name, images in pictures.items()}


def rows_by_picture(rows: list[VqaRow]) -> dict[Path, list[VqaRow]]:
    """The questions of each image."""
    asked: dict[Path, list[VqaRow]] = defaultdict(list)
    for row in rows:
        asked[row.image_path].append(row)
    return asked


def difference(a: Image.Image, b: Image.Image) -> np.ndarray:
    """How far each value of one image is from the other, in gray levels."""
    return np.abs(np.asarray(a, dtype=float) - np.asarray(b))


def measure(number: int) -> dict[str, float]:
    """All figures, on the first test images."""
    asked = dict(list(rows_by_picture(load_easy_vqa("test")).items())[:number])
    images = [load_image(path) for path in asked]
    lossy_images = [lossy(image, seed) for seed, image in enumerate(images)]
    squared = np.mean([(difference(a, b) ** 2).mean() for a, b in zip(images, lossy_images)])

    start = time.process_time()
    found = [read(image) for image in images]
    seconds = time.process_time() - start
    lossy_found = [read(image) for image in lossy_images]
    right, lossy_right = (
        [
            [scene is not None and right_answer(row, scene) for row in rows]
            for rows, scene in zip(asked.values(), scenes)
        ]
        for scenes in (found, lossy_found)
    )
    redrawn = [difference(render(scene), image).mean() for scene, image in zip(found, images) if scene is not None]
    drawn = drawn_scenes(2 * number)
    return {
        "images": len(images),
        "questions": float(np.mean([answer for answers in right for answer in answers])),
        "pictures": float(np.mean([all(answers) for answers in right])),
        "redrawn": round(float(np.mean(redrawn)), 3),
        "milliseconds": round(1000 * seconds / len(images), 2),
        "lossy_pictures": float(np.mean([all(answers) for answers in lossy_right])),
        "lossy_psnr": round(10 * math.log10(255**2 / float(squared)), 1),
        **{f"clean_{name}": value for name, value in errors([read(render(s)) for s in drawn], drawn).items()},
        **{f"lossy_{name}": value for name, value in errors(lossy_found, found).items()},
        **told_as_none(number, drawn),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="number of test images (default: all 1000)")
    options = parser.parse_args()
    if options.images < 1:
        parser.error(f"--images {options.images}: measure at least one image.")
    figures = measure(options.images)
    print(json.dumps(figures))
    sys.exit(any(figures[name] < bar for name, bar in BARS.items()))


if __name__ == "__main__":
    main()
