"""The small world: questions, drawings and edits of easy-VQA's test images, scored from the pixels without a judge.

The quickstart and `benchmarks/small_world.py` measure with the same items, settings and scores.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm.auto import tqdm

from uniedit_hf.evaluation.items import Outcome
from uniedit_hf.evaluation.running import picture_path
from uniedit_hf.evaluation.scorers.marks import mean
from uniedit_hf.files import written_file
from uniedit_hf.images import open_image
from uniedit_hf.pipeline import UniEditPipeline
from uniedit_hf.segments import DRAWING, UNDERSTANDING
from uniedit_hf.small_world.reader import read_all
from uniedit_hf.small_world.scoring import Score, score_answer, score_drawing, score_edit
from uniedit_hf.small_world.suite_items import Ability, SmallWorldItem, test_items


EDITS = True
HEADLINE = "intelligent"
COMPATS = ()
SETTINGS = {}  # its own settings below, for any preset
ABILITIES: tuple[Ability, ...] = ("understanding", "generation", "editing")
NUM_EACH = 100
PLAN = "plan"  # the text of an image that holds what the model wrote before it drew
PLAN_TOKENS = 100  # the longest plan of 40,000 has 86
DRAWING_SETTINGS = {
    "bagel": {"num_timesteps": 12, "text_guidance_scale": 2.5, "guidance_interval": (0.0, 1.0), "size": (64, 64)},
    "janus": {"text_guidance_scale": 1.5, "temperature": 0.5},
}
EDIT_SETTINGS = {
    "bagel": {
        "num_timesteps": 12,
        "text_guidance_scale": 2.5,
        "image_guidance_scale": 1.0,
        "guidance_renorm": "global",
    },
    "janus": {"text_guidance_scale": 1.5, "image_guidance_scale": 1.0, "temperature": 0.5},
}

Output = str | Image.Image


# ---- the suite


def read(prompts: str | None = None, images: str | None = None) -> list[SmallWorldItem]:
    """The test items, alternating between kinds, so that the first ones are a smaller set of the same composition.

    Raises:
        ValueError: If a prompt file was given.
    """
    if prompts is not None or images is not None:
        raise ValueError("The small world makes its items and images itself: leave prompts and images out.")
    items = test_items(NUM_EACH)
    return [item for turn in zip(*(items[i : i + NUM_EACH] for i in range(0, len(items), NUM_EACH))) for item in turn]


def output_path(folder: Path, item: SmallWorldItem, seed: int) -> Path:
    """The path of an output in a run: an image, or an answer as text."""
    path = picture_path(folder, item, seed)
    return path.with_suffix(".txt") if item.ability == "understanding" else path


def draw(
    pipeline: UniEditPipeline, items: Sequence[SmallWorldItem], seeds: Sequence[int], folder: Path, drawing: dict,
    rank: int = 0, ranks: int = 1, tell: Callable[[int], None] | None = None,
) -> int:  # fmt: skip
    """Makes the missing answers and images, one batch of the pipeline at a time, and returns their number; `drawing`
    overrides single settings. `tell`, if given, is called after every batch with the number done, instead of a
    progress bar.
    """
    # shares are of all items: the missing ones change while other processes draw
    share = [(item, seed) for item in items for seed in seeds][rank::ranks]
    missing = [(item, seed) for item, seed in share if not output_path(folder, item, seed).exists()]
    done = 0
    with tqdm(total=len(missing), desc="drawing", disable=rank > 0 or tell is not None) as bar:
        for batch in batches([item for item, _ in missing], pipeline.batch_size):
            requests = [missing[index] for index in batch]
            for (item, seed), output in zip(requests, ask(pipeline, *zip(*requests), drawing)):
                _store(output_path(folder, item, seed), output)
            bar.update(len(batch))
            done += len(batch)
            if tell is not None:
                tell(done)
    return len(missing)


def _store(path: Path, output: Output) -> None:
    with written_file(path) as unfinished:
        if isinstance(output, str):
            unfinished.write_text(output, encoding="utf-8")
            return
        texts = PngInfo()
        if PLAN in output.info:
            texts.add_text(PLAN, output.info[PLAN])
        output.save(unfinished, "PNG", pnginfo=texts)


def stored(item: SmallWorldItem, path: Path) -> Output:
    """The output of an item that `draw` stored: an answer, or an image, with the plan before it in `info["plan"]`."""
    if item.ability == "understanding":
        return path.read_text(encoding="utf-8")
    image = open_image(path)
    if item.ability == "planned editing":
        with Image.open(path) as file:
            image.info[PLAN] = file.info[PLAN]
    return image


def outcomes(items: Sequence[SmallWorldItem], seeds: Sequence[int], folder: Path) -> dict[tuple[str, int], Outcome]:
    """The scores of a run's answers and images, by item and seed.

    Raises:
        ValueError: If some are missing.
    """
    paths = {(item.name, seed): output_path(folder, item, seed) for item in items for seed in seeds}
    if missing := [path for path in paths.values() if not path.exists()]:
        raise ValueError(
            f"{len(missing)} of {len(paths)} answers and images are missing, {missing[0]} first: run the same "
            "command again to make them."
        )
    found = {}
    for item in items:
        for seed in seeds:
            path = paths[item.name, seed]
            scored = score(item, stored(item, path))
            found[item.name, seed] = Outcome("ok", float(scored.right), scored.parts)
    return found


def summary(rows: list[tuple[SmallWorldItem, Outcome]], compat: str | None = None) -> dict[str, float | None]:
    """The share of right items in every group."""
    found = groups([item for item, _ in rows])
    return {name: mean(rows[index][1].value for index in indices) for name, indices in found.items()}


def groups(items: Sequence[SmallWorldItem]) -> dict[str, list[int]]:
    """Where the items of every ability stand, those of plain, intelligent and planned edits, these by view, and the
    last two by whether anything is to change."""
    parts = ("vit", "both", "to change", "to leave")
    kinds = {"plain": parts[:2], "intelligent": parts, "planned": parts}
    names = [*ABILITIES, *(name for kind, parts in kinds.items() for name in (kind, *(f"{kind}, {p}" for p in parts)))]
    found: dict[str, list[int]] = {name: [] for name in names}
    for index, item in enumerate(items):
        if item.ability in ABILITIES:
            found[item.ability].append(index)
        if item.view is not None:
            found[item.kind].append(index)
            found[f"{item.kind}, {item.view}"].append(index)
        if item.kind in ("intelligent", "planned"):
            found[f"{item.kind}, {'to leave' if item.source == item.expected else 'to change'}"].append(index)
    return {name: indices for name, indices in found.items() if indices}


# ---- asking and scoring


def outputs_of(pipeline: UniEditPipeline, items: Sequence[SmallWorldItem], name: str | None = None) -> list[Output]:
    """A model's outputs for all items, in order, with a progress bar if it has a name."""
    outputs: list[Output | None] = [None] * len(items)
    with tqdm(total=len(items), desc=f"Measuring {name}", unit="item", disable=name is None) as bar:
        for batch in batches(items, pipeline.batch_size):
            for index, output in zip(batch, ask(pipeline, [items[i] for i in batch], [0] * len(batch))):
                outputs[index] = output
            bar.update(len(batch))
    return outputs


def batches(items: Sequence[SmallWorldItem], size: int) -> Iterator[list[int]]:
    """Indices of items that can be asked in one batch: of one ability and view, at most `size`."""
    alike: dict[tuple, list[int]] = {}
    for index, item in enumerate(items):
        alike.setdefault((item.ability, item.view), []).append(index)
    for indices in alike.values():
        for start in range(0, len(indices), size):
            yield indices[start : start + size]


def ask(
    pipeline: UniEditPipeline, items: Sequence[SmallWorldItem], seeds: Sequence[int], settings: Mapping = {}
) -> list[Output]:
    """A model's outputs for items of one ability and view."""
    prompts, sources = [item.prompt for item in items], [item.source for item in items]
    noise = [item.noise_seed(seed) for item, seed in zip(items, seeds)]
    family, (ability, view) = pipeline.model.config.model_type, (items[0].ability, items[0].view)
    if ability == "understanding":
        return pipeline.answer(sources, prompts, max_new_tokens=6)
    if ability == "generation":
        return pipeline.generate(prompts, seed=noise, **(DRAWING_SETTINGS[family] | settings))
    if ability == "planned editing":
        plans = pipeline.answer(sources, prompts, max_new_tokens=PLAN_TOKENS)
        prompts = [joined_marks(plan) or prompt for plan, prompt in zip(plans, prompts)]
    views = {"vit": [UNDERSTANDING], "both": [UNDERSTANDING, DRAWING]}[view]
    images = pipeline.edit(sources, prompts, seed=noise, source_views=views, **(EDIT_SETTINGS[family] | settings))
    if ability == "planned editing":
        for image, plan in zip(images, prompts):
            image.info[PLAN] = plan
    return images


def joined_marks(text: str) -> str:
    """A text of the word tokenizer without the blanks in front of its marks."""
    return text.replace(" ,", ",").replace(" .", ".").replace(" ?", "?").replace(" ;", ";").strip()


def score(item: SmallWorldItem, output: Output) -> Score:
    """Scores one output according to its item's ability."""
    if item.ability == "understanding":
        return score_answer(output, item.expected)
    if item.ability == "generation":
        return score_drawing(output, item.expected)
    return score_edit(output, item.source, item.expected)


def bounds(pipeline: UniEditPipeline, items: Sequence[SmallWorldItem]) -> dict[str, list[Score]]:
    """Floor and ceiling of the edits: the unchanged source, and the target after the model's autoencoder."""
    edits = [item for item in items if item.ability == "editing"]
    return {
        "copy of the source": [score_edit(item.source, item.source, item.expected) for item in edits],
        "target through the autoencoder": [
            score_edit(image, item.source, item.expected)
            for item, image in zip(edits, pipeline_round_trip(pipeline, [item.expected for item in edits]))
        ],
    }


def pipeline_round_trip(pipeline: UniEditPipeline, images: Sequence[Image.Image]) -> list[Image.Image]:
    """Encodes and decodes images."""
    pixels = [pipeline.processor.prepare_target(image) for image in images]
    return [pipeline.processor.to_pil(each) for each in pipeline.model.round_trip(pixels)]


def write_items(path: Path, items: Sequence[SmallWorldItem], outputs: Mapping[str, Sequence[Output]], scores) -> None:
    """Writes one line of JSON per item: the question, the output of every model, and its score."""
    with open(path, "w") as file:
        for index, item in enumerate(items):
            line = {
                "ability": item.ability,
                "kind": item.kind,
                "view": item.view,
                "id": item.name,
                "asked": item.prompt,
                "expected": item.expected if isinstance(item.expected, str) else None,
                **{column: scores[column][index].right for column in outputs},
                "parts": {column: dict(scores[column][index].parts) for column in outputs},
                "came_out": {column: _described(outputs[column][index]) for column in outputs},
            }
            file.write(json.dumps(line) + "\n")


def _described(output: Output) -> Any:
    """An answer unchanged, an image as the scenes that the reader finds in it."""
    if isinstance(output, str):
        return output
    return [
        f"{scene.color} {scene.shape}, middle {scene.center[0]:.1f} {scene.center[1]:.1f}, size {scene.size:.1f}"
        for scene in read_all(np.asarray(output))
    ]
