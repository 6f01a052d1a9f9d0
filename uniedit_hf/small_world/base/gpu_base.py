"""Trains the second base, a BAGEL of 11 million parameters, on one GPU (or slowly on a CPU): answers, drawings, plain
edits, redrawing and a few conditional edits, all from tables that `world_tables.py` made.

    python -m uniedit_hf.small_world.base.gpu_base --world world.pt.gz --output_dir runs/base2 --seconds 100

Resumes from `state.pt` in its folder, and stops after `--seconds` of training in total. Needs only PyTorch. The
bands, stated before it was trained: questions 80 to 95 % right, drawings 75 to 95, plain edits by the ViT view 75 to
95, intelligent edits that change something 10 to 30.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from uniedit_hf.arithmetic import cpu_arithmetic

from .static_draws import Batch, Views, draw_rows, joined, make_batch, reading_loss
from .static_model import (
    CHANNELS,
    ModelShape,
    RowLayout,
    StaticModel,
    connect,
    decoder_layer,
    fresh_weights,
    image_loss,
    see,
    text_loss,
)
from .static_training import FlatWeights, Losses, Schedule, StackTrainer, append, save, train_until
from .static_world import World, load_world


TEXT, COPIES, SHIFT = 32, 2, 3.0
LAYOUT = RowLayout(vae=True, vit=True, text=TEXT, copies=COPIES)
PEAK_RATE, PLACE_RATE, WEIGHT_DECAY, AVERAGE = 1.2e-3, 4.0, 0.01, 0.998
TEXT_WEIGHT, READING_WEIGHT, READING_UNTIL = 0.2, 0.5, 0.3
COLD = ("vit_pos_embed", "latent_pos_embed")
SHAPES = {
    "full": lambda words: ModelShape(words),
    "tiny": lambda words: ModelShape(words, 64, 128, 2, 4, 48, 96, 1, 3),
}


@dataclass(frozen=True)
class Mix:
    """Shares of a batch: easy-VQA's questions, composed and embedded ones, drawings, conditional edits, redrawing; the
    rest are plain edits."""

    answers: float = 0.04
    composed: float = 0.05
    embedded: float = 0.02
    drawings: float = 0.26
    conditional: float = 0.02
    redrawing: float = 0.12


class BaseLosses:
    """The losses of a base on fresh draws.

    Args:
        world: The tables.
        model: The forward pass.
        names: Names of the columns of the weight matrix.
        batch: Samples per step.
        mix: Their shares.
    """

    def __init__(self, world: World, model: StaticModel, names: FlatWeights, batch: int, mix: Mix):
        self.world, self.model, self.names = world, model, names
        fits = {name: world.only(name, TEXT) for name in ("answers", "composed", "embedded", "drawings", "edits",
                                                          "conditional", "keeping")}  # fmt: skip
        self.tables = fits
        self.counts = {name: max(1, round(getattr(mix, name) * batch)) for name in Mix.__dataclass_fields__}
        self.counts["edits"] = batch - sum(self.counts.values())
        asked = sum(self.counts[name] for name in ("answers", "composed", "embedded"))
        place = torch.arange(batch, device=world.device)
        self.answer, self.edit = place < asked, place >= asked + self.counts["drawings"]
        self.reading_weight = torch.zeros((), device=world.device)

    def __call__(self, flat: torch.Tensor) -> Losses:
        weights = self.names.named(flat)
        batch = self.draw(len(flat))
        features = see(weights, self.model.shape, self.world.seen_patches(batch.source, flat.dtype))
        batch.rows.vit = features
        text, drawn = self.model(weights, batch.rows, LAYOUT)
        image = image_loss(weights, drawn, batch.velocity, batch.counts)
        words = text_loss(weights, text, batch.rows.labels)
        tokens = connect(weights, features)
        read = reading_loss(weights, tokens, self.world.latents[batch.source])
        loss = image + TEXT_WEIGHT * words + self.reading_weight * read
        return {"loss": loss, "image": image, "text": words, "reading": read}

    def draw(self, models: int) -> Batch:
        """A batch of all kinds, questions first, then drawings, then edits."""
        order = ("answers", "composed", "embedded", "drawings", "edits", "conditional")
        parts = [draw_rows(self.tables[name], models, self.counts[name]) for name in order]
        parts.append(self._redrawing(models))
        return make_batch(self.world, joined(parts), self.answer, self.edit, Views(), COPIES, SHIFT)

    def _redrawing(self, models: int) -> dict[str, torch.Tensor]:
        """Images that stay unchanged; the text, if any, says so."""
        rows = draw_rows(self.tables["keeping"], models, self.counts["redrawing"])
        images = torch.randint(len(self.world.images), rows["source"].shape, device=self.world.device)
        silent = torch.rand(images.shape, device=images.device) < 0.6
        length = torch.where(silent, 0, rows["length"])
        return rows | {"source": images, "target": images, "length": length}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--world", type=Path, required=True, help="of world_tables.py")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=100.0, help="of training, over all calls")
    parser.add_argument("--shape", choices=list(SHAPES), default="full")
    parser.add_argument("--batch", type=int, default=1024, help="samples of a step")
    parser.add_argument("--mode", choices=["auto", "compiled", "graph", "eager"], default="auto")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    train_base(options)


def train_base(options: argparse.Namespace) -> None:
    """Trains, and writes `weights.pt`: the averaged weights of one model."""
    begun = time.perf_counter()
    device, dtype = device_and_dtype()
    kept = load_world(options.world)
    latents = None if device.type == "cuda" else options.output_dir / "latents.pt"
    world = World(kept, kept["vae"], kept["scale"], kept["shift"], device, latents)
    note(options, "world", begun)
    shape = SHAPES[options.shape](len(world.words) + 6)
    weights = fresh_weights(shape, options.seed)
    weights["reading.weight"] = torch.zeros(1, CHANNELS, shape.hidden)
    weights["reading.bias"] = torch.zeros(1, CHANNELS)
    names = FlatWeights(weights)
    flat = names.flatten(weights).to(device)
    mode = chosen_mode(options.mode, device)
    losses = BaseLosses(world, StaticModel(shape, layer_of(mode)), names, options.batch, Mix())
    rate = names.per_parameter(lambda name: PLACE_RATE if name.startswith(COLD) else 1.0)[None].to(device) * PEAK_RATE
    trainer = StackTrainer(flat, losses, rate, WEIGHT_DECAY, AVERAGE, dtype)
    spent = resume(trainer, options.output_dir)
    if spent < options.seconds:
        losses.reading_weight.fill_(READING_WEIGHT)
        start(trainer, mode)
        note(options, f"ready, {mode}", begun)
        train_until(
            trainer, options.seconds, spent, Schedule(), options.output_dir, options.seed,
            each_step=lambda gone: losses.reading_weight.fill_(READING_WEIGHT if gone < READING_UNTIL else 0.0),
        )  # fmt: skip
    finished = {name: weight[0].clone().cpu() for name, weight in names.named(trainer.average).items()}
    finished = {name: weight for name, weight in finished.items() if not name.startswith("reading.")}
    save(options.output_dir / "weights.pt", {"shape": shape.as_dict(), "weights": finished, "words": world.words})
    note(options, "finished", begun)


def device_and_dtype() -> tuple[torch.device, torch.dtype]:
    """The GPU in 16 bit, if there is one."""
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
        return torch.device("cuda"), torch.bfloat16
    return torch.device("cpu"), cpu_arithmetic().dtype


def chosen_mode(mode: str, device: torch.device) -> str:
    return ("compiled" if device.type == "cuda" else "eager") if mode == "auto" else mode


def layer_of(mode: str):
    """The decoder layer, compiled once for all layers if requested."""
    return torch.compile(decoder_layer, dynamic=False) if mode == "compiled" else decoder_layer


def start(trainer: StackTrainer, mode: str) -> None:
    """Captures a step as a graph, if the mode says so."""
    if mode != "eager":
        trainer.capture()


def resume(trainer: StackTrainer, folder: Path) -> float:
    """Loads the last checkpoint, if there is one; returns the seconds spent before."""
    file = folder / "state.pt"
    if not file.exists():
        return 0.0
    state = torch.load(file, weights_only=True)
    trainer.load(state)
    return state["seconds"]


def note(options: argparse.Namespace, what: str, begun: float) -> None:
    append(options.output_dir / "log.jsonl", {"note": what, "after": round(time.perf_counter() - begun, 1)})


if __name__ == "__main__":
    main()
