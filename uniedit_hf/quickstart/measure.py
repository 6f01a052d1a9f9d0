"""Runs a model over the test items and scores what comes out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from uniedit_hf.evaluation.intervals import mean_interval, paired_difference
from uniedit_hf.evaluation.small_world import Score, score_answer, score_drawing, score_edit
from uniedit_hf.pipeline import UniEditPipeline

from .items import Ability, Item


COLUMNS = ("base", "tuned", "control")
ABILITIES: tuple[Ability, ...] = ("understanding", "generation", "editing")
BATCH = 50
DRAWING_SETTINGS = {
    "bagel": {"num_timesteps": 12, "text_guidance_scale": 2.5, "guidance_interval": (0.0, 1.0), "size": (64, 64)},
    "janus": {"text_guidance_scale": 2.5, "temperature": 0.5},
}
EDIT_SETTINGS = {
    "bagel": {
        "num_timesteps": 12,
        "text_guidance_scale": 2.5,
        "image_guidance_scale": 1.0,
        "guidance_renorm": "global",
    },
    "janus": {"text_guidance_scale": 2.5, "image_guidance_scale": 1.0, "temperature": 0.5},
}

Output = str | Image.Image


def outputs_of(pipeline: UniEditPipeline, items: Sequence[Item], name: str) -> list[Output]:
    """What a model makes of every item, in order, with a progress bar."""
    groups: dict[tuple, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault((item.ability, item.view), []).append(index)
    outputs: list[Output | None] = [None] * len(items)
    with tqdm(total=len(items), desc=f"Measuring {name}", unit="item") as bar:
        for (ability, view), indices in groups.items():
            for start in range(0, len(indices), BATCH):
                batch = indices[start : start + BATCH]
                for index, output in zip(batch, _run(pipeline, ability, view, [items[i] for i in batch])):
                    outputs[index] = output
                bar.update(len(batch))
    return outputs


def _run(pipeline: UniEditPipeline, ability: Ability, view: str | None, items: Sequence[Item]) -> list[Output]:
    asked, sources, seeds = [i.asked for i in items], [i.source for i in items], [i.seed for i in items]
    family = pipeline.model.config.model_type
    if ability == "understanding":
        return pipeline.answer(sources, asked, max_new_tokens=6)
    if ability == "generation":
        return pipeline.generate(asked, seed=seeds, **DRAWING_SETTINGS[family])
    views = {"vit": (pipeline.processor.reading_view,), "both": pipeline.processor.source_views}[view]
    return pipeline.edit(sources, asked, seed=seeds, source_views=views, **EDIT_SETTINGS[family])


def score(item: Item, output: Output) -> Score:
    """Scores one output after its item's ability."""
    if item.ability == "understanding":
        return score_answer(output, item.expected)
    if item.ability == "generation":
        return score_drawing(output, item.expected)
    return score_edit(output, item.source, item.expected)


def bounds(pipeline: UniEditPipeline, items: Sequence[Item]) -> dict[str, list[Score]]:
    """Floor and ceiling of the edits: the source itself, and the target through the model's autoencoder."""
    edits = [item for item in items if item.ability == "editing"]
    return {
        "copy of the source": [score_edit(item.source, item.source, item.expected) for item in edits],
        "target through the autoencoder": [
            score_edit(picture, item.source, item.expected)
            for item, picture in zip(edits, pipeline_round_trip(pipeline, [item.expected for item in edits]))
        ],
    }


def pipeline_round_trip(pipeline: UniEditPipeline, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures through the autoencoder and back."""
    pixels = [pipeline.processor.drawn(picture) for picture in pictures]
    return [pipeline.processor.to_pil(each) for each in pipeline.model.round_trip(pixels)]


def write_items(path: Path, items: Sequence[Item], outputs: Mapping[str, Sequence[Output]], scores) -> None:
    """One line of JSON per item: what was asked, what came out of every model, and its score."""
    with open(path, "w") as file:
        for index, item in enumerate(items):
            line = {
                "ability": item.ability,
                "kind": item.kind,
                "view": item.view,
                "id": item.id,
                "asked": item.asked,
                "expected": item.expected if isinstance(item.expected, str) else None,
                **{column: scores[column][index].right for column in outputs},
                "parts": {column: dict(scores[column][index].parts) for column in outputs},
                "came_out": {column: _described(outputs[column][index]) for column in outputs},
            }
            file.write(json.dumps(line) + "\n")


def _described(output: Output) -> Any:
    """An answer as it is, a picture as what the reader finds in it."""
    if isinstance(output, str):
        return output
    from uniedit_hf.synthesis.reader import read_all

    return [
        f"{scene.color} {scene.shape}, middle {scene.center[0]:.1f} {scene.center[1]:.1f}, size {scene.size:.1f}"
        for scene in read_all(np.asarray(output))
    ]


def mean_scores(runs: Sequence[Sequence[Score]]) -> list[Score]:
    """The mean score of every item over the seeds of a column, as a whole and in each part."""
    return [
        Score(
            _mean([score.right for score in each]),
            {part: _mean([score.parts[part] for score in each]) for part in each[0].parts},
        )
        for each in zip(*runs)
    ]


def _mean(values: Sequence[float]) -> float:
    """The mean; of equal values their own value, so that one seed's scores stay 0 and 1."""
    return values[0] if len(set(values)) == 1 else sum(values) / len(values)


def summary(
    items: Sequence[Item],
    scores: Mapping[str, Sequence[Score]],
    of_seeds: Mapping[str, Sequence[Sequence[Score]]],
) -> dict[str, Any]:
    """Per ability and per finer row the mean of every column, and the difference tuned - base with its 95 % paired
    bootstrap interval (4,000 resamplings of the items, seed 0); per ability also the mean of every seed."""
    rows = {ability: [i for i, item in enumerate(items) if item.ability == ability] for ability in ABILITIES}
    finer: dict[str, dict[str, list[int]]] = {ability: {} for ability in ABILITIES}
    for index, item in enumerate(items):
        name = item.kind if item.view is None else f"{item.kind}, {item.view}"
        finer[item.ability].setdefault(name, []).append(index)
    result = {}
    for ability in ABILITIES:
        result[ability] = _row(rows[ability], scores) | {
            "rows": {name: _row(indices, scores) for name, indices in sorted(finer[ability].items())},
            "parts": _parts(rows[ability], scores),
            "seeds": {
                column: [float(np.mean([run[i].right for i in rows[ability]])) for run in runs]
                for column, runs in of_seeds.items()
            },
        }
    return result


def _row(indices: Sequence[int], scores: Mapping[str, Sequence[Score]]) -> dict[str, Any]:
    columns = {name: [scores[name][i].right for i in indices] for name in scores}
    difference, low, high = paired_difference(columns["tuned"], columns["base"])
    row: dict[str, Any] = {name: float(np.mean(values)) for name, values in columns.items()}
    row |= {"interval": {name: list(mean_interval(values)) for name, values in columns.items()}}
    row |= {"difference": difference, "ci95": [low, high], "n": len(indices)}
    if "control" in columns:
        against, low, high = paired_difference(columns["tuned"], columns["control"])
        row["against_control"] = {"difference": against, "ci95": [low, high]}
    return row


def _parts(indices: Sequence[int], scores: Mapping[str, Sequence[Score]]) -> dict[str, dict[str, float]]:
    names = scores["base"][indices[0]].parts
    return {name: {c: float(np.mean([scores[c][i].parts[name] for i in indices])) for c in scores} for name in names}
