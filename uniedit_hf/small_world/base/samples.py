"""Training samples of the small base: answers, drawings, plain edits and redrawing, drawn from a pool of images."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from uniedit_hf.arithmetic import cpu_arithmetic
from uniedit_hf.randomness import python_random
from uniedit_hf.segments import ImageSegment, Sample, TextSegment
from uniedit_hf.small_world.base.scenes import as_tensor, random_scene, real_scenes
from uniedit_hf.small_world.easy_vqa import load_easy_vqa
from uniedit_hf.small_world.instructions import Instruction, draw_plain_edit
from uniedit_hf.small_world.program import Keep, apply
from uniedit_hf.small_world.questions import composed_questions, drawing_of
from uniedit_hf.small_world.scene import Scene, render
from uniedit_hf.small_world.topics import PLAIN_KINDS
from uniedit_hf.small_world.wording import action_phrases


EDITS_PER_PICTURE = 1.5  # on average
TEXT_DROPOUT, IMAGE_DROPOUT = 0.1, 0.05
BLANK = torch.zeros(3, 64, 64)  # only the size of a VAE view is used; its latents are in the pool
VIEWS = {("vit",): 0.6, ("vae",): 0.1, ("vae", "vit"): 0.3}
ENCODING_BATCH = 50


@dataclass(frozen=True)
class Pool:
    """Images with their latents, and the edits between them.

    Args:
        images: uint8 (n, 64, 64, 3); the real training images come first.
        scenes: The scenes of each, one or several.
        latents: (n, 8, 8, 8), scaled and shifted.
        edits: Source, target and instruction.
        questions: The questions and answers of easy-VQA for each real image.
        conditional: Source, target and instruction of edits with a condition.
        embedded: An image, a question that a condition asks about it, and the answer.
        plans: An image, an instruction with a condition, and what it comes down to.
        planned: Source, target and plan of the edits with a condition.
    """

    pictures: np.ndarray
    scenes: list[tuple[Scene, ...]]
    latents: torch.Tensor
    edits: list[tuple[int, int, str]]
    questions: list[list[tuple[str, str]]]
    conditional: Sequence[tuple[int, int, str]] = ()
    embedded: Sequence[tuple[int, str, str]] = ()
    plans: Sequence[tuple[int, str, str]] = ()
    planned: Sequence[tuple[int, int, str]] = ()

    @property
    def single(self) -> list[int]:
        """The images that show one shape."""
        return [index for index, scenes in enumerate(self.scenes) if len(scenes) == 1]


def draw_question(pool, single: list[int], rng: random.Random, composed: float) -> tuple[int, str, str]:
    """An image of a pool, a question about it and the answer.

    Args:
        pool: Has `scenes` and `questions`.
        single: The images of the pool that show one shape.
        rng: Draws.
        composed: Share of composed questions; the others are easy-VQA's own.
    """
    if rng.random() < composed:
        image = rng.choice(single)
        drawn = rng.choice(composed_questions(pool.scenes[image][0]))
        return image, drawn.text, drawn.answer
    image = rng.randrange(len(pool.questions))
    return image, *rng.choice(pool.questions[image])


@dataclass(frozen=True)
class Drawn:
    """A sample, and the images of its VAE views in order, as numbers in the pool."""

    sample: Sample
    latents: tuple[int, ...]


class Drawings(NamedTuple):
    """Images, scenes, edits and questions, as in `Pool`."""

    pictures: np.ndarray
    scenes: list[tuple[Scene, ...]]
    edits: list[tuple[int, int, str]]
    questions: list[list[tuple[str, str]]]


def make_pool(model, seed: int, random_pictures: int, kept: Path) -> Pool:
    """The drawings of `draw_pictures` with the latents of the model's autoencoder, which are stored in a file."""
    drawn = draw_pictures(seed, random_pictures)
    if not kept.exists():
        save_file({"latents": encode(model, drawn.pictures).contiguous()}, kept)
    return Pool(drawn.pictures, drawn.scenes, load_file(kept)["latents"], drawn.edits, drawn.questions)


def draw_pictures(seed: int, random_pictures: int) -> Drawings:
    """All training images, additional random ones, and the targets of plain edits of both.

    Args:
        seed: Seed of all random draws.
        random_pictures: Number of images to draw in addition to the real ones.
    """
    real, found = real_scenes("train")
    sources = [*found, *(random_scene(found, python_random(seed, "source", i)) for i in range(random_pictures))]
    pictures = [*real, *(np.asarray(render(scene)) for scene in sources[len(found) :])]
    scenes = [(scene,) for scene in sources]
    edits = []
    for index, source in enumerate(sources):
        rng = python_random(seed, "edit", index)
        for kind in rng.sample(PLAIN_KINDS, 1 + (rng.random() < EDITS_PER_PICTURE - 1)):
            instruction = draw_plain_edit(source, kind, rng)
            if isinstance(instruction, Instruction):
                edits.append((index, len(scenes), instruction.text))
                scenes.append(tuple(apply(instruction.program, source)))
                pictures.append(np.asarray(render(*scenes[-1])))
    questions: list[list[tuple[str, str]]] = [[] for _ in found]
    for row in load_easy_vqa("train"):
        questions[row.image_id].append((row.question, row.answer))
    return Drawings(np.stack(pictures), scenes, edits, questions)


def encode(model, pictures: np.ndarray) -> torch.Tensor:
    """Latents (n, 8, 8, 8) of images uint8 (n, 64, 64, 3), scaled and shifted as `encode_images` does it."""
    scale, shift, latents = model.config.vae_config.scaling_factor, model.config.vae_config.shift_factor, []
    for start in tqdm(range(0, len(pictures), ENCODING_BATCH), desc="latents", mininterval=10):
        # In 16 bit where that is fast; the error is smaller than the posterior's standard deviation.
        with torch.no_grad(), cpu_arithmetic().autocast():
            latents.append(model.vae.encode(as_tensor(pictures[start : start + ENCODING_BATCH])).latent_dist.mean)
    return scale * (torch.cat(latents).float() - shift)


class Draws:
    """Draws samples from a pool.

    Args:
        pool: The images.
        noise_draws: Number of noised copies of a target in a sample; the context is computed once.
    """

    def __init__(self, pool: Pool, noise_draws: int):
        self.pool = pool
        self.noise_draws = noise_draws
        self.single = pool.single

    def answer(self, name: str, rng: random.Random, composed: float) -> Drawn:
        """A question about an image, and its answer; `composed` is the share that is not easy-VQA's own."""
        return self._answer(name, *draw_question(self.pool, self.single, rng, composed))

    def embedded(self, name: str, rng: random.Random) -> Drawn:
        """A question that a condition asks, and its answer."""
        return self._answer(name, *rng.choice(self.pool.embedded))

    def plan(self, name: str, rng: random.Random) -> Drawn:
        """An instruction with a condition, and the plan that it comes down to."""
        return self._answer(name, *rng.choice(self.pool.plans))

    def _answer(self, name: str, image: int, question: str, answer: str) -> Drawn:
        segments = [self._pixels(image), TextSegment(question), TextSegment(answer, loss=True)]
        return Drawn(Sample(segments, name), ())

    def drawing(self, name: str, rng: random.Random) -> Drawn:
        """A prompt, and an image that fulfills it."""
        image = rng.choice(self.single)
        prompt = rng.choice(drawing_of(self.pool.scenes[image][0]).prompts())
        return self._target(name, [], [], prompt if rng.random() >= TEXT_DROPOUT else None, image)

    def edit(self, name: str, rng: random.Random) -> Drawn:
        """An image, a plain instruction and the result."""
        source, target, instruction = rng.choice(self.pool.edits)
        return self._from_source(name, source, instruction, target, rng)

    def conditional(self, name: str, rng: random.Random) -> Drawn:
        """An image, an instruction with a condition, and the result."""
        source, target, instruction = rng.choice(self.pool.conditional)
        return self._from_source(name, source, instruction, target, rng)

    def planned(self, name: str, rng: random.Random) -> Drawn:
        """An image, the plan of an edit with a condition, and the result."""
        source, target, plan = rng.choice(self.pool.planned)
        return self._from_source(name, source, plan, target, rng)

    def redrawing(self, name: str, rng: random.Random) -> Drawn:
        """An image, no instruction or one to keep it, and the same image."""
        image = rng.randrange(len(self.pool.scenes))
        text = f"{rng.choice(action_phrases(Keep()))}." if rng.random() < 0.4 else None
        return self._from_source(name, image, text, image, rng)

    def _from_source(self, name: str, source: int, text: str | None, target: int, rng: random.Random) -> Drawn:
        views = rng.choices(list(VIEWS), list(VIEWS.values()))[0]
        if text is not None and rng.random() < IMAGE_DROPOUT:
            views = ()
        if rng.random() < TEXT_DROPOUT:
            text = None
        segments = [ImageSegment(BLANK, "vae") if view == "vae" else self._pixels(source) for view in views]
        return self._target(name, segments, [source] * ("vae" in views), text, target)

    def _target(self, name: str, segments: list, latents: list[int], text: str | None, target: int) -> Drawn:
        texts = [] if text is None else [TextSegment(text)]
        targets = [ImageSegment(BLANK, "vae", loss=True)] * self.noise_draws
        return Drawn(Sample([*segments, *texts, *targets], name), (*latents, *[target] * self.noise_draws))

    def _pixels(self, image: int) -> ImageSegment:
        return ImageSegment(as_tensor(self.pool.pictures[image][None])[0], "vit")
