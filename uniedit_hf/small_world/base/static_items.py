"""Asks a stack of models all test items of a world's file; `item_scores.py` scores the outputs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from .static_model import EOS, PAD, RowLayout, Rows, StaticModel, Weights, draw, write
from .static_world import World


LONGEST = {"understanding": 32, "generation": 16, "editing": 60}
MOST_ANSWER = 6
IMAGE_PAIRS = 20_000  # number of models times items drawn at once


@torch.no_grad()
def outputs_of(model: StaticModel, weights: Weights, features: torch.Tensor, world: World, items: Sequence[dict]):
    """The output of each model for every item.

    Args:
        model: The forward pass.
        weights: Weights of M models, in the dtype of the arithmetic.
        features: ViT features by image number.
        world: The tables.
        items: Items of `world_tables.described`.

    Returns:
        For each model a list with a text or an image uint8 (64, 64, 3) for every item.
    """
    count = len(next(iter(weights.values())))
    results: list[list] = [[None] * len(items) for _ in range(count)]
    groups = defaultdict(list)
    for index, item in enumerate(items):
        groups[item["ability"], item["view"]].append(index)
    for (ability, view), indices in groups.items():
        size = max(1, IMAGE_PAIRS // count)
        for part in (indices[start : start + size] for start in range(0, len(indices), size)):
            rows = _rows(world, features, [items[i] for i in part], count, ability, view)
            if ability == "understanding":
                made = _texts(world, write(model, weights, rows, _layout(ability, 0), MOST_ANSWER))
            else:
                noise = torch.stack([_noise(items[i]["noise_seed"]) for i in part]).to(world.device)
                latents = draw(model, weights, rows, _layout(ability, 1), noise[None].expand(count, -1, -1, -1))
                images = world.decoded(latents.flatten(0, 1)).unflatten(0, (count, len(part)))
                made = [list(each) for each in images]
            for number in range(count):
                for place, output in zip(part, made[number]):
                    results[number][place] = output
    return results


def _layout(ability: str, copies: int) -> RowLayout:
    room = LONGEST[ability] + (MOST_ANSWER + 2 if ability == "understanding" else 0)
    return RowLayout(ability == "editing", ability != "generation", room, copies)


def _rows(
    world: World, features: torch.Tensor, items: list[dict], models: int, ability: str, view: str | None
) -> Rows:
    room, device = _layout(ability, 0).text, world.device
    text = torch.full((len(items), room), PAD)
    for index, item in enumerate(items):
        text[index, : len(item["text"])] = torch.tensor(item["text"])
    length = torch.tensor([len(item["text"]) for item in items])
    source = torch.tensor([max(item["source"], 0) for item in items], device=device)
    yes = torch.ones(models, len(items), dtype=torch.bool, device=device)
    rows = Rows(text.to(device).expand(models, -1, -1), length.to(device).expand(models, -1))
    if ability != "generation":
        rows.has_vit, rows.vit = yes, features[source].expand(models, -1, -1, -1)
    if ability == "editing":
        rows.has_vae, rows.vae = yes & (view == "both"), world.latents[source].expand(models, -1, -1, -1)
    return rows


def _noise(seed: int) -> torch.Tensor:
    """The noise that the pipeline draws."""
    return torch.randn(16, 32, generator=torch.Generator().manual_seed(seed))


def _texts(world: World, ids: torch.Tensor) -> list[list[str]]:
    words = ["", "", "", "", "", "?", *world.words]
    return [
        [" ".join(words[token] for token in answer[: (answer + [EOS]).index(EOS)]) for answer in of_model]
        for of_model in ids.tolist()
    ]


def groups_of(items: Sequence[dict], world: World) -> dict[str, list[int]]:
    """Indices of the items of each ability, of plain and intelligent edits by view, and of intelligent edits by
    whether anything should change.
    """
    found: dict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        found[item["ability"]].append(index)
        if item["ability"] == "editing":
            found[item["kind"]].append(index)
            found[f"{item['kind']}, {item['view']}"].append(index)
        if item["kind"] == "intelligent":
            same = torch.equal(world.images[item["source"]], world.images[item["expected"]])
            found[f"intelligent, {'to leave' if same else 'to change'}"].append(index)
    return dict(found)
