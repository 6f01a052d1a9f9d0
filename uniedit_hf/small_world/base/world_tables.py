"""Precomputes everything that training on a GPU reads, as one file of tensors.

    python -m uniedit_hf.small_world.base.world_tables --output runs/small_world/world.pt.gz

Images, texts as ids, and test items of both splits. The training program then only needs PyTorch: nothing is
rendered, tokenized or packed while the GPU waits.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from uniedit_hf.randomness import python_random
from uniedit_hf.small_world.base.samples import draw_pictures
from uniedit_hf.small_world.base.static_model import BOS, EOS, NO_LABEL, PAD
from uniedit_hf.small_world.easy_vqa import load_easy_vqa
from uniedit_hf.small_world.edits import Shares, intelligent_edits, made, plain_counterparts
from uniedit_hf.small_world.program import Keep
from uniedit_hf.small_world.questions import composed_questions, drawing_of
from uniedit_hf.small_world.suite_items import SmallWorldItem, test_items
from uniedit_hf.small_world.vocabulary import vocabulary
from uniedit_hf.small_world.wording import action_phrases, split_words
from uniedit_hf.synthesis.records import Record, record_to_row


# The conditional instructions that the base sees: one condition, about the shape or the color.
FIRST_GRASP = Shares(categories={"shape": 0.5, "color": 0.5}, depths={1: 1.0})
FIRST_GRASP_SEED, TUNING_SEED = 7_000_001, 0
UNKNOWN = 5
ASSETS = Path(__file__).resolve().parents[3] / "assets"
COMPRESSION = 6


@dataclass
class Images:
    """Images by number, each stored once."""

    pixels: list[np.ndarray] = field(default_factory=list)
    numbers: dict[bytes, int] = field(default_factory=dict)

    def number(self, image: np.ndarray) -> int:
        """The number of an image, uint8 (64, 64, 3)."""
        key = image.tobytes()
        if key not in self.numbers:
            self.numbers[key] = len(self.pixels)
            self.pixels.append(image)
        return self.numbers[key]

    def of_png(self, data: bytes) -> int:
        return self.number(np.asarray(Image.open(BytesIO(data)).convert("RGB")))

    def stacked(self) -> torch.Tensor:
        """All of them, uint8 (n, 64, 64, 3)."""
        return torch.from_numpy(np.stack(self.pixels))


class Words:
    """Texts as ids of the small tokenizer, without transformers."""

    def __init__(self):
        self.words = vocabulary()
        self.ids = {word: index for index, word in enumerate(self.words, UNKNOWN + 1)}

    def text(self, text: str) -> list[int]:
        return [BOS, *(self.ids[word] for word in split_words(text)), EOS]

    @property
    def size(self) -> int:
        return UNKNOWN + 1 + len(self.words)


@dataclass
class Samples:
    """Rows of a table: the image before, the image after, and the text, with labels where it has a loss."""

    rows: list[tuple[int, int, list[int], int]] = field(default_factory=list)

    def add(self, source: int, target: int, text: list[int], answer_from: int = -1) -> None:
        """`answer_from` is where the answer's `BOS` is in the text; -1 for a text without loss."""
        self.rows.append((source, target, text, answer_from))

    def table(self) -> dict[str, torch.Tensor]:
        """`source`, `target`, `length` (n,), `text` and `labels` (n, longest)."""
        longest = max(len(text) for _, _, text, _ in self.rows)
        text = torch.full((len(self.rows), longest), PAD, dtype=torch.int16)
        labels = torch.full((len(self.rows), longest), NO_LABEL, dtype=torch.int16)
        for index, (_, _, ids, answer_from) in enumerate(self.rows):
            text[index, : len(ids)] = torch.tensor(ids, dtype=torch.int16)
            if answer_from >= 0:
                labels[index, answer_from : len(ids) - 1] = text[index, answer_from + 1 : len(ids)]
        return {
            "source": torch.tensor([row[0] for row in self.rows], dtype=torch.int32),
            "target": torch.tensor([row[1] for row in self.rows], dtype=torch.int32),
            "length": torch.tensor([len(row[2]) for row in self.rows], dtype=torch.int16),
            "text": text,
            "labels": labels,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("runs/small_world/world.pt.gz"))
    parser.add_argument("--random_images", type=int, default=20000, help="to draw beside the real ones")
    parser.add_argument("--conditional", type=int, default=1500, help="conditional edits that the base sees")
    parser.add_argument("--tuning", type=int, default=6000, help="intelligent edits to tune on")
    parser.add_argument("--items", type=int, default=100, help="test items of each kind; 60 % of them on train images")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    world = make_world(options.seed, options.random_images, options.conditional, options.tuning, options.items)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(options.output, "wb", COMPRESSION) as file:
        torch.save(world, file)


def make_world(seed: int, random_images: int, conditional: int, tuning: int, items: int) -> dict:
    """All tables.

    Args:
        seed: Seed of all random draws.
        random_images: Number of random images in addition to the real training images.
        conditional: Conditional edits that the base sees.
        tuning: Intelligent edits to tune on, in three ways of asking, and as many plain ones.
        items: Test items of each kind.
    """
    words, images = Words(), Images()
    drawn = draw_pictures(seed, random_images)
    numbers = [images.number(picture) for picture in drawn.pictures]
    real = numbers[: len(drawn.questions)]
    world: dict = {"words": words.words, "tables": {}, "items": {}}
    for name, samples in base_samples(drawn, numbers, words, seed).items():
        world["tables"][name] = samples.table()
    grasp = intelligent_edits(load_easy_vqa("train"), seed=FIRST_GRASP_SEED, size=conditional, shares=FIRST_GRASP)
    world["tables"]["conditional"] = edits_of(grasp, images, words).table()
    for name, samples in tuning_samples(tuning, images, words).items():
        world["tables"][name] = samples.table()
    world["items"]["test"] = [described(item, images, words) for item in test_items(items)]
    world["items"]["train"] = [described(item, images, words) for item in test_items(max(1, 3 * items // 5), "train")]
    world["real"] = torch.tensor(real, dtype=torch.int32)
    world["images"] = images.stacked()
    world |= autoencoder()
    return world


def autoencoder() -> dict:
    """The autoencoder of the first base, which is reused."""
    folder = ASSETS / "small_bagel"
    weights = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())["vae_config"]
    vae = {name: weight.float() for name, weight in weights.items() if name.startswith(("encoder.", "decoder."))}
    return {"vae": vae, "scale": config["scaling_factor"], "shift": config["shift_factor"]}


def base_samples(drawn, numbers: Sequence[int], words: Words, seed: int) -> dict[str, Samples]:
    """Training samples of every base: answers, drawings, plain edits, and instructions to leave an image unchanged."""
    answers, composed, drawings, edits, keeping = (Samples() for _ in range(5))
    for image, asked in zip(numbers, drawn.questions):
        for question, answer in asked:
            add_answer(answers, image, question, answer, words)
    for index, scenes in enumerate(drawn.scenes):
        if len(scenes) != 1:
            continue
        rng = python_random(seed, "texts", index)
        for question in rng.sample(asked := composed_questions(scenes[0]), min(4, len(asked))):
            add_answer(composed, numbers[index], question.text, question.answer, words)
        for prompt in drawing_of(scenes[0]).prompts():
            drawings.add(numbers[index], numbers[index], words.text(prompt))
    for source, target, text in drawn.edits:
        edits.add(numbers[source], numbers[target], words.text(text))
    for phrase in action_phrases(Keep()):
        keeping.add(numbers[0], numbers[0], words.text(f"{phrase}."))
    return {"answers": answers, "composed": composed, "drawings": drawings, "edits": edits, "keeping": keeping}


def add_answer(samples: Samples, image: int, question: str, answer: str, words: Words) -> None:
    asked = words.text(question)
    samples.add(image, image, [*asked, *words.text(answer)], len(asked))


def edits_of(results: Iterator, images: Images, words: Words) -> Samples:
    """Records as a table."""
    samples = Samples()
    for record in results:
        if isinstance(record, Record):
            source, target = images.of_png(record.source_image), images.of_png(record.target_image)
            samples.add(source, target, words.text(record.instruction))
    return samples


def tuning_samples(size: int, images: Images, words: Words) -> dict[str, Samples]:
    """Intelligent edits with the question embedded and with the answer spelled out, plain edits of the same images,
    and the embedded questions with their answers."""
    rows = load_easy_vqa("train")
    records = [r for r in intelligent_edits(rows, seed=TUNING_SEED, size=size) if isinstance(r, Record)]
    spelled = intelligent_edits(rows, seed=TUNING_SEED, size=size, asking="answer")
    sources = enumerate(map(record_to_row, records))
    plain = made(plain_counterparts(sources, seed=TUNING_SEED), TUNING_SEED)
    embedded = Samples()
    for record in records:
        if record.question and record.answer:
            add_answer(embedded, images.of_png(record.source_image), record.question, record.answer, words)
    return {
        "question": edits_of(iter(records), images, words),
        "answer": edits_of(spelled, images, words),
        "plain": edits_of(plain, images, words),
        "embedded": embedded,
    }


def described(item: SmallWorldItem, images: Images, words: Words) -> dict:
    """A test item in plain values: the model's input, and the correct result."""
    facts = {
        "name": item.name, "ability": item.ability, "kind": item.kind, "view": item.view, "prompt": item.prompt,
        "noise_seed": item.noise_seed(), "text": words.text(item.prompt),
        "source": -1 if item.source is None else images.number(np.asarray(item.source)),
    }  # fmt: skip
    if item.ability == "understanding":
        return facts | {"expected": item.expected}
    if item.ability == "generation":
        return facts | {"expected": vars(item.expected)}
    return facts | {"expected": images.number(np.asarray(item.expected))}


if __name__ == "__main__":
    main()
