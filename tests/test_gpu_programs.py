"""The programs that train the second base and try recipes on a GPU: the same code, small and on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from uniedit_hf.pipeline import UniEditPipeline
from uniedit_hf.randomness import python_random
from uniedit_hf.small_world.base import gpu_base, gpu_recipes, gpu_session, world_tables
from uniedit_hf.small_world.base.export_base import FIRST_BASE, export
from uniedit_hf.small_world.base.scenes import random_scene
from uniedit_hf.small_world.base.static_model import ModelShape, StaticModel, fresh_weights
from uniedit_hf.small_world.base.static_training import FlatWeights, Schedule, StackTrainer, train_until
from uniedit_hf.small_world.base.static_world import World, load_world, to_patches
from uniedit_hf.small_world.instructions import Instruction, draw_plain_edit
from uniedit_hf.small_world.program import apply
from uniedit_hf.small_world.questions import composed_questions, drawing_of
from uniedit_hf.small_world.scene import Scene, render
from uniedit_hf.small_world.suite_items import SmallWorldItem


CIRCLE = Scene("circle", "red", (20.0, 20.0, 44.0, 44.0), (240, 240, 250))


@pytest.fixture(scope="module")
def world_file(tmp_path_factory):
    """A world of twelve scenes with all tables that the programs read."""
    words, images = world_tables.Words(), world_tables.Images()
    names = ("answers", "composed", "embedded", "drawings", "edits", "conditional", "keeping", "question", "answer",
             "plain")  # fmt: skip
    tables = {name: world_tables.Samples() for name in names}
    items = []
    for index in range(12):
        scene = random_scene([CIRCLE], python_random(0, index))
        image = images.number(np.asarray(render(scene)))
        question = composed_questions(scene)[0]
        for name in ("answers", "composed", "embedded"):
            world_tables.add_answer(tables[name], image, question.text, question.answer, words)
        tables["drawings"].add(image, image, words.text(drawing_of(scene).prompts()[0]))
        edit = draw_plain_edit(scene, "color", python_random(1, index))
        assert isinstance(edit, Instruction)
        target = images.number(np.asarray(render(*apply(edit.program, scene))))
        for name in ("edits", "conditional", "question", "answer", "plain"):
            tables[name].add(image, target, words.text(edit.text))
        items += items_of(scene, edit, target, question, images, words)
    tables["keeping"].add(0, 0, words.text("leave it as it is."))
    world = {"words": words.words, "tables": {name: each.table() for name, each in tables.items()}}
    world |= {"items": {"test": items, "train": items[:8]}, "real": torch.arange(12, dtype=torch.int32)}
    world |= {"images": images.stacked(), **world_tables.autoencoder()}
    path = tmp_path_factory.mktemp("world") / "world.pt"
    torch.save(world, path)
    return path


def items_of(scene, edit, target, question, images, words) -> list[dict]:
    source = render(scene)
    rows = [
        ("understanding", "composed", question.text, question.answer, source, None),
        ("generation", "drawing", drawing_of(scene).prompts()[0], drawing_of(scene), None, None),
        ("editing", "plain", edit.text, render(*apply(edit.program, scene)), source, "vit"),
        ("editing", "intelligent", edit.text, render(*apply(edit.program, scene)), source, "both"),
    ]
    return [
        world_tables.described(
            SmallWorldItem(f"{kind} {scene}", prompt, {"ability": ability, "kind": kind, "view": view},
                           [] if image is None else [lambda image=image: image], expected=expected),
            images, words,
        )
        for ability, kind, prompt, expected, image, view in rows
    ]  # fmt: skip


@pytest.fixture(scope="module")
def world(world_file) -> World:
    kept = load_world(world_file)
    return World(kept, kept["vae"], kept["scale"], kept["shift"], torch.device("cpu"))


def test_patches_are_those_of_the_processor(world):
    processor = UniEditPipeline.from_pretrained(FIRST_BASE).processor.image_processor
    wanted = processor.patchify_vit(world.images[0].permute(2, 0, 1).float() / 127.5 - 1)
    assert torch.allclose(world.seen_patches(torch.tensor([[0]]), torch.float32)[0, 0], wanted, atol=1e-6)
    assert to_patches(world.images[:2]).shape == (2, 16, 768)


def small_trainer(world: World, batch: int = 16) -> StackTrainer:
    shape = gpu_base.SHAPES["tiny"](len(world.words) + 6)
    weights = fresh_weights(shape, 0)
    weights |= {"reading.weight": torch.zeros(1, 32, shape.hidden), "reading.bias": torch.zeros(1, 32)}
    names = FlatWeights(weights)
    losses = gpu_base.BaseLosses(world, StaticModel(shape), names, batch, gpu_base.Mix())
    losses.reading_weight.fill_(0.5)
    rate = torch.full((1, 1), 2e-3)
    return StackTrainer(names.flatten(weights), losses, rate, 0.01, 0.9, torch.float32)


def test_the_base_learns(world, tmp_path):
    trainer = small_trainer(world)
    trainer.factor.fill_(1.0)
    torch.manual_seed(0)
    for _ in range(5):
        trainer.step()
    first = trainer.take_means()
    for _ in range(60):
        trainer.step()
    last = trainer.take_means()
    assert last["text"][0] < 0.7 * first["text"][0] and last["image"][0] < first["image"][0]


def test_training_ends_with_the_clock_and_resumes(world, tmp_path):
    trainer = small_trainer(world)
    train_until(trainer, 1.0, 0.0, Schedule(), tmp_path, 0)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["seconds"] >= 1.0 and lines[-1]["step"] == int(trainer.steps.item())
    again = small_trainer(world)
    spent = gpu_base.resume(again, tmp_path)
    assert spent >= 1.0 and torch.equal(again.flat, trainer.flat) and torch.equal(again.average, trainer.average)


def test_the_rate_follows_the_clock():
    rate = Schedule(warmup=0.1, decay=0.4)
    assert [round(rate(gone), 3) for gone in (0.05, 0.3, 0.6, 0.8)] == [0.5, 1.0, 1.0, 0.5] and rate(1.0) <= 1e-4


def test_recipes_are_tuned_measured_and_chosen(world_file, world, tmp_path):
    shape = gpu_base.SHAPES["tiny"](len(world.words) + 6)
    weights = {name: weight[0] for name, weight in fresh_weights(shape, 0).items()}
    torch.save({"shape": shape.as_dict(), "weights": weights, "words": world.words}, tmp_path / "base.pt")
    names = ["paper", "plain", "mixed", "self-drawn", "low gen rate", "anchored", "LoRA"]
    options = SimpleNamespace(
        world=world_file, base=tmp_path / "base.pt", output_dir=tmp_path, seconds=0.5, lora_seconds=0.5, seeds=2,
        batch=8, recipes=names, self_drawn=4, mode="eager", processes=1, seed=0,
    )  # fmt: skip
    gpu_recipes.run_recipes(options)
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    found = {(line["recipe"], line["seed"], line["split"]) for line in lines}
    assert found == {("base", 0, s) for s in ("test", "train")} | {
        (name, seed, split) for name in names for seed in (0, 1) for split in ("test", "train")
    }
    assert {len(line["right"]) for line in lines if line["split"] == "test"} == {48}
    facts = json.loads((tmp_path / "chosen.json").read_text())
    assert facts["chosen"] in names and facts["chosen"] != "plain" and "plain" not in facts["most_lost"]


def test_what_a_recipe_holds_still_stays(world):
    """The ViT and the places never move; of two models in a stack each has its own rate."""
    shape = gpu_base.SHAPES["tiny"](len(world.words) + 6)
    base = fresh_weights(shape, 0)
    runs = [gpu_recipes.Run("paper", 0), gpu_recipes.Run("low gen rate", 0)]
    full = gpu_recipes.FullWeights(base, runs)
    assert not any(name.startswith("vit_model.") for name in full.names.shapes)
    gen = full.names.per_parameter(lambda name: float(gpu_recipes.is_gen(name))).bool()
    assert torch.allclose(full.rate[1][gen], 0.2 * full.rate[0][gen]) and torch.equal(
        full.rate[1][~gen], full.rate[0][~gen]
    )
    lora = gpu_recipes.LoraWeights(base, runs)
    assert all(torch.equal(value[1], base[name][0]) for name, value in lora(lora.flat).items())


def test_a_checkpoint_of_another_size_loads(tmp_path):
    shape = ModelShape(133, 64, 128, 2, 4, 48, 96, 1, 3)
    weights = {name: weight[0] for name, weight in fresh_weights(shape, 0).items()}
    export(weights, shape, FIRST_BASE, tmp_path / "model")
    pipe = UniEditPipeline.from_pretrained(tmp_path / "model")
    assert torch.equal(pipe.model.model.connector.fc2.weight, weights["connector.fc2.weight"].half().float())
    assert pipe.generate("a red circle", seed=0, num_timesteps=3, size=(64, 64)).size == (64, 64)


def test_parts_are_put_together_again(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_session, "PART", 1000)
    file = tmp_path / "file.pt"
    file.write_bytes(bytes(range(256)) * 12)
    (tmp_path / "out").mkdir()
    (tmp_path / "joined").mkdir()
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "log.jsonl").write_text("{}\n")
    gpu_session.in_parts(file, tmp_path / "out" / "file.pt")
    gpu_session.pack_results([tmp_path / "work"], tmp_path / "out" / "results.tar.gz")
    assert len(list((tmp_path / "out").glob("file.pt.*"))) == 4
    gpu_session.join(tmp_path / "out", tmp_path / "joined")
    assert (tmp_path / "joined" / "file.pt").read_bytes() == file.read_bytes()
    assert (tmp_path / "joined" / "work" / "log.jsonl").read_text() == "{}\n"


def test_the_programs_need_pytorch_numpy_and_pillow_alone():
    program = """
import sys
for name in ("transformers", "diffusers", "datasets", "tokenizers", "safetensors", "easy_vqa", "tqdm", "peft"):
    sys.modules[name] = None
from uniedit_hf.small_world.base import gpu_base, gpu_recipes, gpu_session
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
