"""Runs one model on one suite: images are drawn, then judged; existing results are kept.

A run is a folder: `settings.json`, `images/ITEM/SEED.png` with a `.txt` of the reasoning if there is any,
`replies.jsonl` or `detections.jsonl`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from types import ModuleType

from tqdm.auto import tqdm

from uniedit_hf.evaluation.items import Item, Outcome
from uniedit_hf.evaluation.journal import Journal
from uniedit_hf.evaluation.judge import Judge, entry_key, stamp
from uniedit_hf.files import write_text, written_file
from uniedit_hf.images import open_image


OWN = ("model",)  # settings in which two compared runs may differ


def settings_of(suite: str, items: Sequence[Item], model: str, seeds: Sequence[int], drawing: dict) -> dict:
    """The settings that determine a run's images, as stored in `settings.json`."""
    asked = json.dumps([[item.name, item.prompt, item.row] for item in items], sort_keys=True, default=str)
    return {
        "suite": suite, "model": model, "seeds": sorted(seeds), "drawing": json.loads(json.dumps(drawing)),
        "items": len(items), "prompts": hashlib.sha256(asked.encode()).hexdigest()[:16],
    }  # fmt: skip


def differing(one: dict, other: dict, ignored: Sequence[str] = ()) -> str:
    """The first setting in which two runs differ, in words, or ""."""
    one, other = ({**each, "seeds": sorted(each.get("seeds") or [])} for each in (one, other))  # in any order
    for name in sorted({*one, *other} - {*ignored}):
        if one.get(name) != other.get(name):
            return f"{name} is {one.get(name)!r} in one and {other.get(name)!r} in the other"
    return ""


def open_run(folder: Path, settings: dict) -> None:
    """Begins a run, or checks that the folder contains the same run; a run without images may be replaced.

    Raises:
        ValueError: If the folder contains a run with other settings, or is a file.
    """
    file = folder / "settings.json"
    if file.exists() and any(folder.glob("images/*/*")):
        if difference := differing(json.loads(file.read_text(encoding="utf-8")), settings):
            raise ValueError(f"{folder} contains a run with other settings ({difference}): choose another output_dir.")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(
            f"{error.filename} is a file or is below one, but images need a folder: choose another output_dir."
        ) from error
    write_text(file, json.dumps(settings, indent=2))


def picture_path(folder: Path, item: Item, seed: int) -> Path:
    """The path of an image in a run. Folder names have no blanks or question marks; those of older runs are kept."""
    images, plain = folder / "images", item.name.replace("/", "_")
    safe = re.sub(r"[^\w.-]+", "_", plain).strip("_")
    name = plain if safe != plain and (images / plain).is_dir() else safe
    return images / name / f"{seed}.png"


def draw(
    pipeline, items: Sequence[Item], seeds: Sequence[int], folder: Path, drawing: dict, rank: int = 0, ranks: int = 1
) -> int:
    """Draws the missing images, one batch of the pipeline at a time, and returns their number.

    Args:
        rank: The number of this process among `ranks`; each draws its share.
    """
    # shares are of all images: the missing ones change while other processes draw
    share = [(item, seed) for item in items for seed in seeds][rank::ranks]
    pending = [(item, seed) for item, seed in share if not picture_path(folder, item, seed).exists()]
    # the pipeline reads a list as one value per image
    drawing = {name: tuple(value) if isinstance(value, list) else value for name, value in drawing.items()}
    starts = range(0, len(pending), pipeline.batch_size)
    for start in tqdm(starts, desc="drawing", disable=rank > 0):
        batch = pending[start : start + pipeline.batch_size]
        for (item, seed), thought, image in zip(batch, *_drawn(pipeline, batch, drawing)):
            path = picture_path(folder, item, seed)
            if thought is not None:
                write_text(path.with_suffix(".txt"), thought)
            with written_file(path) as part:
                image.save(part, "PNG")
    return len(pending)


def _drawn(pipeline, batch: Sequence[tuple[Item, int]], drawing: dict) -> tuple[list, list]:
    """The reasoning and the images of a batch; the reasoning is `None` if the model does not think."""
    prompts, seeds = [item.prompt for item, _ in batch], [seed for _, seed in batch]
    sources = [item.sources[0]() if item.sources else None for item, _ in batch]
    drawing, thoughts = dict(drawing), [None] * len(batch)
    if budget := drawing.pop("thinking_budget", 0):
        views = drawing.get("source_views")
        thoughts = drawing["thoughts"] = pipeline.think(sources, prompts, max_new_tokens=budget, source_views=views)
    if batch[0][0].sources:
        return thoughts, pipeline.edit(sources, prompts, seed=seeds, **drawing)
    return thoughts, pipeline.generate(prompts, seed=seeds, **drawing)


def check_pictures(items: Sequence[Item], seeds: Sequence[int], folder: Path) -> None:
    """Raises: ValueError: If images are missing."""
    paths = [picture_path(folder, item, seed) for item in items for seed in seeds]
    if missing := [path for path in paths if not path.exists()]:
        raise ValueError(
            f"{len(missing)} of {len(paths)} images are missing, {missing[0]} first: run the same command again to "
            "draw them."
        )


def judge(
    suite: ModuleType, judge: Judge, items: Sequence[Item], seeds: Sequence[int], folder: Path,
    texts: dict[str, str], compat: str | None = None, retry: bool = False,
) -> dict[tuple[str, int], Outcome]:  # fmt: skip
    """Asks the judge the remaining questions, and returns the outcome of every image by item and seed.

    Args:
        retry: Whether to ask once more where a reply was refused, empty or unreadable.

    Raises:
        ValueError: If images are missing, or no call to the judge can succeed.
    """
    check_pictures(items, seeds, folder)
    journal = Journal(folder / "replies.jsonl")
    by_name = {item.name: item for item in items}
    asked = {}
    for item, seed in product(items, seeds):
        opened = partial(open_image, picture_path(folder, item, seed))
        asked[item.name, seed] = suite.questions(item, opened, texts, compat)
    questions = (
        (f"{item.name}/{seed}", each, stamp(picture_path(folder, item, seed)))
        for item, seed in product(items, seeds)
        for each in asked[item.name, seed]
    )

    def outcomes() -> dict[tuple[str, int], Outcome]:
        found = {}
        for (name, seed), each in asked.items():
            entries = {question.name: judge.entry(f"{name}/{seed}", question, journal) for question in each}
            found[name, seed] = outcome(suite, by_name[name], entries, compat)
        return found

    first = outcomes() if retry else {}
    again = {entry_key(f"{name}/{seed}", each.question) for (name, seed), each in first.items() if each.question}
    try:
        judge.ask_all(questions, sum(map(len, asked.values())), journal, again)
    finally:
        journal.close()
    return outcomes()


def outcome(suite: ModuleType, item: Item, entries: dict[str, dict], compat: str | None = None) -> Outcome:
    """Converts the journal's entries of one image to its outcome; a missing reply takes precedence."""
    failed = {name: entry for name, entry in entries.items() if entry["status"] != "ok"}
    for name, entry in sorted(failed.items(), key=lambda each: each[1]["status"] != "no_reply"):
        return Outcome(entry["status"], reason=f"{name}: {entry['reason']}", question=name)
    found = suite.score(item, {name: entry["reply"] for name, entry in entries.items()}, compat)
    if found.question and (reason := entries[found.question].get("reason")):  # such as: cut at max_tokens
        return replace(found, reason=f"{found.reason} ({reason})")
    return found


def detect(
    suite: ModuleType, detector: Callable, colors: Callable, items: Sequence[Item], seeds: Sequence[int], folder: Path
) -> dict[tuple[str, int], Outcome]:
    """GenEval: runs the detector on every image without detections, one at a time.

    Raises:
        ValueError: If images are missing."""
    check_pictures(items, seeds, folder)
    journal = Journal(folder / "detections.jsonl")
    for item in tqdm(items, desc="detecting"):
        for seed in seeds:
            key = f"{item.name}/{seed}"
            if key in journal.entries:
                continue
            image = open_image(picture_path(folder, item, seed))
            journal.append({"key": key} | detected(detector, colors, image, item.row))
    journal.close()
    return {
        (item.name, seed): suite.score(item, {"detector": journal.entries[f"{item.name}/{seed}"]["found"]})
        for item in items
        for seed in seeds
    }


def detected(detector: Callable, colors: Callable, image, row: Mapping) -> dict:
    """The result of GenEval's detector for an image: `found`, "right" or what is wrong, and the boxes of its
    `objects`.
    """
    from uniedit_hf.evaluation.scorers import geneval_scores

    found = {name: geneval_scores.kept(each, row["tag"]) for name, each in detector(image).items()}
    right, wrong = geneval_scores.evaluate(found, row, partial(colors, image))
    boxes = {name: [[*each.box, round(each.score, 4)] for each in kept] for name, kept in found.items() if kept}
    return {"found": "right" if right else "; ".join(wrong), "objects": boxes}
