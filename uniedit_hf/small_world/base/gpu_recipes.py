"""Tunes a small base in many ways and with several seeds at once on one GPU, and measures all of them.

    python -m uniedit_hf.small_world.base.gpu_recipes --world world.pt.gz --base runs/base2/weights.pt \\
        --output_dir runs/recipes --seconds 80 --lora_seconds 25

All tunings of one kind are one stack of models (`static_model.py`), so that their steps are one program. All models
have the same number of steps. `scores.jsonl` has the score of every item for every recipe, seed and split; recipes are
chosen on
the split `train` (`chosen.json` has the rule and the choice), figures are those of the split `test`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from .gpu_base import chosen_mode, device_and_dtype, layer_of, note, resume, start
from .item_scores import Scorer
from .static_draws import Views, make_batch
from .static_items import groups_of, outputs_of
from .static_model import (
    ModelShape,
    RowLayout,
    Rows,
    StaticModel,
    Weights,
    cast,
    draw,
    image_loss,
    see,
    several,
    text_loss,
)
from .static_training import FlatWeights, Losses, Schedule, StackTrainer, append, save, train_until
from .static_world import Table, World, load_world


TEXT, SHIFT = 60, 1.0
LAYOUT = RowLayout(vae=False, vit=True, text=TEXT, copies=1)
TUNED_VIEWS = Views(vit=1.0, vae=0.0, none=0.0, text=0.1)  # the paper's: the ViT view, one text in ten left out
AVERAGE, WARMUP, RATE, LORA_RATE, RANK = 0.99, 0.05, 2e-4, 1e-3, 16
SELF_DRAWN, DRAWING_BATCH = 2000, 500
# A recipe may lose at most this many points of the base in each of these, on items of training images.
KEPT, MOST_LOST = ("understanding", "generation", "plain"), 3.0
HEADLINE = "intelligent, to change"


@dataclass(frozen=True)
class TuningRecipe:
    """A way to tune.

    Args:
        shares: Shares of the tables in a batch.
        rate: Peak learning rate.
        gen_rate: Factor of the generation expert's rate.
        anchor: Strength of the pull towards the base.
        text_weight: Weight of the text loss.
        lora: Train adapters.
        seeds: Number of seeds.
    """

    shares: Mapping[str, float]
    rate: float = RATE
    gen_rate: float = 1.0
    anchor: float = 0.0
    text_weight: float = 0.0
    lora: bool = False
    seeds: int = 99


QUESTIONS = {"question": 1.0}
SELF = {"question": 0.6, "self drawings": 0.2, "self edits": 0.2}
RECIPES: dict[str, TuningRecipe] = {
    "paper": TuningRecipe(QUESTIONS),
    "plain": TuningRecipe({"plain": 1.0}),
    "answer": TuningRecipe({"answer": 1.0}),
    "mixed": TuningRecipe({"question": 0.5, "drawings": 0.25, "answers": 0.25}, text_weight=0.25),
    "self-drawn": TuningRecipe(SELF),
    "low gen rate": TuningRecipe(QUESTIONS, gen_rate=0.2),
    "anchored": TuningRecipe(QUESTIONS, anchor=100.0),
    "paper, rate 1e-4": TuningRecipe(QUESTIONS, rate=1e-4, seeds=1),
    "paper, rate 4e-4": TuningRecipe(QUESTIONS, rate=4e-4, seeds=1),
    "self-drawn, rate 1e-4": TuningRecipe(SELF, rate=1e-4, seeds=1),
    "self-drawn, rate 4e-4": TuningRecipe(SELF, rate=4e-4, seeds=1),
    "LoRA": TuningRecipe(QUESTIONS, rate=LORA_RATE, lora=True),
    "LoRA, self-drawn": TuningRecipe(SELF, rate=LORA_RATE, lora=True),
}


@dataclass(frozen=True)
class Run:
    """One model of a stack."""

    recipe: str
    seed: int


# --- data


def tuning_table(world: World, self_rows: Table) -> tuple[Table, dict[str, tuple[int, int]]]:
    """All rows of all recipes in one table, and the start and length of each kind."""
    real = torch.isin(world.tables["drawings"]["source"], world.real)
    rows = {name: world.only(name, TEXT) for name in ("question", "answer", "plain", "answers")}
    rows["drawings"] = {key: value[real] for key, value in world.only("drawings", TEXT).items()}
    kinds = {name: torch.full((len(each["source"]),), name == "answers") for name, each in rows.items()}
    places, begin = {}, 0
    for name, each in rows.items():
        places[name] = (begin, len(each["source"]))
        begin += len(each["source"])
    table = {key: torch.cat([each[key] for each in rows.values()]) for key in ("source", "target", "length", "text",
                                                                               "labels")}  # fmt: skip
    answer = torch.cat(list(kinds.values())).to(world.device)
    edit = ~answer
    edit[places["drawings"][0] : sum(places["drawings"])] = False
    half = len(self_rows["source"]) // 2
    places |= {"self drawings": (begin, half), "self edits": (begin + half, half)}
    table = {key: torch.cat([value, self_rows[key]]) for key, value in table.items()}
    no = torch.zeros(half, dtype=torch.bool, device=world.device)
    table["is_answer"], table["is_edit"] = torch.cat([answer, no, no]), torch.cat([edit, no, ~no])
    return table, places


def self_drawn(world: World, model: StaticModel, weights: Weights, features, count: int, seed: int):
    """The base's own results for prompts and plain edits of training images: rows whose targets are numbered after the
    world's images, and all latents.
    """
    generator = torch.Generator().manual_seed(seed)
    real = torch.isin(world.tables["drawings"]["source"], world.real)
    parts, latents = [], []
    for name, view in (("drawings", False), ("plain", True)):
        table = world.only(name, TEXT)
        rows = {key: value[real] for key, value in table.items()} if name == "drawings" else table
        chosen = torch.randperm(len(rows["source"]), generator=generator)[:count].to(world.device)
        chosen = chosen.repeat(count // len(chosen) + 1)[:count]
        rows = {key: value[chosen] for key, value in rows.items()}
        for begin in range(0, count, DRAWING_BATCH):
            part = {key: value[None, begin : begin + DRAWING_BATCH] for key, value in rows.items()}
            there = torch.full(part["source"].shape, view, device=world.device)
            read = Rows(part["text"], part["length"], has_vit=there, vit=features[part["source"]])
            noise = torch.randn(*part["source"].shape, 16, 32, generator=generator).to(world.device)
            latents.append(draw(model, weights, read, LAYOUT, noise)[0])
        parts.append(rows)
    joined = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    joined["target"] = torch.arange(2 * count, device=world.device) + len(world.latents)
    return joined, torch.cat([world.latents, *latents])


class TuningLosses:
    """The losses of a stack of tunings on fresh draws.

    Args:
        world: The tables.
        model: The forward pass.
        weights_of: Maps the trained matrix to the weights of the models.
        runs: The models of the stack.
        data: The table of all rows, and the ranges of its kinds.
        latents: Latents by image number.
        features: ViT features by image number.
        batch: Samples per step for each model.
    """

    def __init__(self, world, model, weights_of, runs: Sequence[Run], data, latents, features, batch: int):
        self.world, self.model, self.weights_of = world, model, weights_of
        self.table, places = data
        self.latents, self.features = latents, features
        slots = [
            [
                places[name]
                for name, number in counts_of(RECIPES[run.recipe].shares, batch).items()
                for _ in range(number)
            ]
            for run in runs
        ]
        self.first, self.count = torch.tensor(slots, device=world.device).unbind(-1)
        text_weight = [RECIPES[run.recipe].text_weight for run in runs]
        self.text_weight = torch.tensor(text_weight, device=world.device)

    def __call__(self, flat: torch.Tensor) -> Losses:
        weights = self.weights_of(flat)
        uniform = torch.rand(self.first.shape, device=self.first.device)
        chosen = self.first + (uniform * self.count).long().clamp(max=self.count - 1)
        rows = {name: value[chosen] for name, value in self.table.items()}
        batch = make_batch(self.world, rows, rows["is_answer"], rows["is_edit"], TUNED_VIEWS, 1, SHIFT, self.latents)
        batch.rows.vit = self.features[batch.source]
        text, drawn = self.model(weights, batch.rows, LAYOUT)
        image = image_loss(weights, drawn, batch.velocity, batch.counts)
        words = text_loss(weights, text, batch.rows.labels)
        return {"loss": image + self.text_weight * words, "image": image, "text": words.detach()}


def counts_of(shares: Mapping[str, float], batch: int) -> dict[str, int]:
    """Number of samples of each kind; the first kind gets the rounding difference."""
    counts = {name: round(share * batch) for name, share in shares.items()}
    first = next(iter(counts))
    counts[first] += batch - sum(counts.values())
    return counts


# --- weights


def is_trained(name: str) -> bool:
    """Whether a parameter is trained. In the paper all are, except the ViT, the position tables and the text head,
    which `mixed` also trains.
    """
    return not name.startswith(("vit_model.", "vit_pos_embed.", "latent_pos_embed."))


def is_gen(name: str) -> bool:
    return "_moe_gen" in name or name.startswith(("vae2llm.", "llm2vae.", "time_embedder."))


class FullWeights:
    """All trained weights of every model, followed by the frozen ones."""

    def __init__(self, base: Weights, runs: Sequence[Run]):
        self.frozen = {name: each for name, each in several(base, len(runs)).items() if not is_trained(name)}
        self.names = FlatWeights({name: each for name, each in base.items() if is_trained(name)})
        self.flat = self.names.flatten(several(base, len(runs)))
        gen = self.names.per_parameter(lambda name: float(is_gen(name))).to(self.flat.device)
        recipes = [RECIPES[run.recipe] for run in runs]
        self.rate = torch.stack([each.rate * (1 + (each.gen_rate - 1) * gen) for each in recipes])

    def __call__(self, flat: torch.Tensor) -> Weights:
        return self.names.named(flat) | cast(self.frozen, flat.dtype)


class LoraWeights:
    """Low-rank changes of the decoder's matrices: the base plus B A, with B zero at first."""

    def __init__(self, base: Weights, runs: Sequence[Run]):
        self.base = base
        self.adapted = [name for name in base if ".layers." in name and "language_model" in name
                        and base[name].dim() == 3]  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        start: Weights = {}
        for name in self.adapted:
            out, into = base[name].shape[1:]
            start[f"{name} A"] = torch.randn(1, RANK, into, generator=generator).to(base[name].device) * into**-0.5
            start[f"{name} B"] = torch.zeros(1, out, RANK, device=base[name].device)
        self.names = FlatWeights(start)
        self.flat = self.names.flatten(several(start, len(runs)))
        self.rate = torch.tensor([[RECIPES[run.recipe].rate] for run in runs], device=self.flat.device)

    def __call__(self, flat: torch.Tensor) -> Weights:
        parts = self.names.named(flat)
        models = len(flat)
        weights = {name: each.to(flat.dtype).expand(models, *each.shape[1:]) for name, each in self.base.items()}
        for name in self.adapted:
            weights[name] = weights[name] + torch.bmm(parts[f"{name} B"], parts[f"{name} A"])
        return weights


# --- the whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--world", type=Path, required=True, help="of world_tables.py")
    parser.add_argument("--base", type=Path, required=True, help="weights.pt of gpu_base.py")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=80.0, help="of training of the full tunings")
    parser.add_argument("--lora_seconds", type=float, default=25.0, help="of training of the adapters")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64, help="samples of a step of each model")
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--self_drawn", type=int, default=SELF_DRAWN, help="drawings, and as many edits, of the base")
    parser.add_argument("--mode", choices=["auto", "compiled", "graph", "eager"], default="auto")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="that score")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    run_recipes(options)


def run_recipes(options: argparse.Namespace) -> None:
    """Tunes, measures and chooses."""
    begun = time.perf_counter()
    with Scorer(options.processes) as scorer:
        tune_all(options, scorer, begun)


def tune_all(options: argparse.Namespace, scorer: Scorer, begun: float) -> None:
    """The tunings, in stacks, and their measurements."""
    device, dtype = device_and_dtype()
    kept = load_world(options.world)
    latents_file = None if device.type == "cuda" else options.output_dir / "latents.pt"
    world = World(kept, kept["vae"], kept["scale"], kept["shift"], device, latents_file)
    stored = torch.load(options.base, weights_only=True)
    base = {name: weight[None].to(device) for name, weight in stored["weights"].items()}
    mode = chosen_mode(options.mode, device)
    model = StaticModel(ModelShape(**stored["shape"]), layer_of(mode))
    plain_model = StaticModel(model.shape)  # shapes vary while measuring
    features = seen_features(world, model.shape, base, dtype)
    measure(options, scorer, world, plain_model, base, features, dtype, [Run("base", 0)])
    note(options, "base measured", begun)
    self_rows, latents = self_drawn(world, plain_model, cast(base, dtype), features, options.self_drawn, options.seed)
    data = tuning_table(world, self_rows)
    for lora, kind, seconds in ((False, FullWeights, options.seconds), (True, LoraWeights, options.lora_seconds)):
        runs = [
            Run(name, seed)
            for name in options.recipes
            for seed in range(min(options.seeds, RECIPES[name].seeds))
            if RECIPES[name].lora == lora
        ]
        if not runs or not seconds:
            continue
        weights_of = kind(base, runs)
        losses = TuningLosses(world, model, weights_of, runs, data, latents, features, options.batch)
        anchor = torch.tensor([[RECIPES[run.recipe].anchor] for run in runs], device=device)
        trainer = StackTrainer(
            weights_of.flat, losses, weights_of.rate, 0.0, AVERAGE, dtype, anchor if anchor.any() else None
        )
        folder = options.output_dir / ("lora" if lora else "full")
        folder.mkdir(exist_ok=True)
        spent = resume(trainer, folder)
        if spent < seconds:
            start(trainer, mode)
            note(options, f"{folder.name} ready, {mode}, {len(runs)} models", begun)
            train_until(
                trainer, seconds, spent, Schedule(WARMUP, 0.0), folder, options.seed + 1, save_every=float("inf")
            )
        note(options, f"{folder.name} trained, {int(trainer.steps.item())} steps", begun)
        tuned = weights_of(trainer.average)
        measure(options, scorer, world, plain_model, tuned, features, dtype, runs)
        keep_first_seeds(options, tuned, runs, lora, base)
        note(options, f"{folder.name} measured", begun)
    choose(options, world)
    note(options, "finished", begun)


@torch.no_grad()
def seen_features(world: World, shape: ModelShape, base: Weights, dtype: torch.dtype) -> torch.Tensor:
    """ViT features (images, 16, vit hidden) of all images."""
    weights, parts = cast(base, dtype), []
    for begin in range(0, len(world.images), 1000):
        numbers = torch.arange(begin, min(begin + 1000, len(world.images)), device=world.device)[None]
        parts.append(see(weights, shape, world.seen_patches(numbers, dtype))[0])
    return torch.cat(parts)


@torch.no_grad()
def measure(
    options, scorer: Scorer, world: World, model: StaticModel, weights: Weights, features, dtype, runs: list[Run]
) -> None:
    """Appends the scores of all items to `scores.jsonl`, one line for every model and split."""
    for split, items in world.items.items():
        outputs: list[list] = []
        for begin in range(0, len(runs), 8):
            part = {name: weight[begin : begin + 8].to(dtype) for name, weight in weights.items()}
            outputs += outputs_of(model, part, features, world, items)
        outputs = [[each if isinstance(each, str) else each.numpy() for each in of_model] for of_model in outputs]
        scores = scorer.score_all(world.images.numpy(), items, outputs)
        for run, of_model in zip(runs, scores):
            line = {"recipe": run.recipe, "seed": run.seed, "split": split}
            line["right"] = [score["right"] for score in of_model]
            line["changed"] = [score.get("changed", score["right"]) for score in of_model]
            line["kept"] = [score.get("kept", score["right"]) for score in of_model]
            append(options.output_dir / "scores.jsonl", line)


def keep_first_seeds(options, tuned: Weights, runs: Sequence[Run], lora: bool, base: Weights) -> None:
    """Writes the trained weights of the first seed of every recipe, in 16 bit."""
    for index, run in enumerate(runs):
        if run.seed == 0:
            weights = {name: weight[index].half().cpu() for name, weight in tuned.items() if is_trained(name)}
            save(options.output_dir / f"{run.recipe.replace(' ', '_').replace(',', '')}.pt", {"weights": weights})


def choose(options, world: World) -> None:
    """Among the recipes with intelligent edits that keep the base's abilities on items of training images, chooses the
    one with the most correct intelligent edits that change something. Writes the choice and a table of both splits.
    """
    table = {}
    lines = [json.loads(line) for line in (options.output_dir / "scores.jsonl").read_text().splitlines()]
    for split, items in world.items.items():
        groups = groups_of(items, world)
        for recipe in dict.fromkeys(line["recipe"] for line in lines):
            seeds = [line["right"] for line in lines if (line["recipe"], line["split"]) == (recipe, split)]
            means = np.mean(seeds, axis=0)
            table.setdefault(recipe, {})[split] = {
                name: round(100 * float(np.mean(means[indices])), 1) for name, indices in groups.items()
            }
    base = table["base"]["train"]
    losses = {
        recipe: max(base[name] - splits["train"][name] for name in KEPT)
        for recipe, splits in table.items()
        if recipe != "base" and "question" in RECIPES[recipe].shares and RECIPES[recipe].seeds > 1
    }
    keeping = [recipe for recipe, lost in losses.items() if lost <= MOST_LOST]
    pool = keeping or sorted(losses, key=losses.get)[:3]
    chosen = max(pool, key=lambda recipe: table[recipe]["train"].get(HEADLINE, 0.0))
    facts = {
        "rule": f"on items of training images: of the recipes that lose at most {MOST_LOST} points of "
        f"{', '.join(KEPT)} (or of the three that lose least, if none does), the one with the most of: {HEADLINE}",
        "chosen": chosen,
        "most_lost": losses,
        "recipes": {name: asdict(replace(each, shares=dict(each.shares))) for name, each in RECIPES.items()},
        "table": table,
    }
    (options.output_dir / "chosen.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
