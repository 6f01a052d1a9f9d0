"""`uniedit evaluate`: a tuned model against its base on a benchmark, with intervals.

    uniedit evaluate --suite wise --prompts final_data.json --model runs/bagel \\
        --baseline ByteDance-Seed/BAGEL-7B-MoT --judge_model gpt-4o-2024-11-20 --output_dir runs/wise

The same command goes on where it was stopped. Under `accelerate launch` the pictures are shared out over the GPUs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass
class EvaluateOptions:
    suite: Literal["geneval", "wise", "imgedit", "gedit", "rise", "kris", "small_world"] = field(
        metadata={"help": "the benchmark"}
    )
    model: str = field(metadata={"help": "Hub id or folder of the tuned model", "metavar": "NAME"})
    output_dir: str = field(metadata={"help": "folder of pictures, replies and results", "metavar": "FOLDER"})
    prompts: str | None = field(
        default=None,
        metadata={
            "help": "prompt file or hf://datasets/OWNER/NAME/FILE; GEdit: data set; small_world: none",
            "metavar": "PATH",
        },
    )
    baseline: str | None = field(default=None, metadata={"help": "the model it is compared with", "metavar": "NAME"})
    images: str | None = field(
        default=None, metadata={"help": "folder of the benchmark's pictures", "metavar": "PATH"}
    )
    preset: Literal["bagel", "uniedit", "model"] = field(
        default="bagel", metadata={"help": "settings of BAGEL's release, of Uni-Edit's, or the model's own"}
    )
    drawing: dict | str | None = field(
        default=None, metadata={"help": "settings instead of those of the preset", "metavar": "JSON"}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0], metadata={"help": "of the noise; every prompt is drawn once with each"}
    )
    limit: int | None = field(default=None, metadata={"help": "take the first items only"})
    batch_size: int = field(default=8, metadata={"help": "pictures drawn side by side"})
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = field(
        default="auto", metadata={"help": "of the weights"}
    )
    compat: Literal["uniedit", "upstream", "lmms-eval"] | None = field(
        default=None, metadata={"help": "score as this official script does, faults included"}
    )
    push_to_hub: bool = field(default=False, metadata={"help": "write the table into the card on the Hub, too"})


@dataclass
class JudgeOptions:
    judge_model: str | None = field(
        default=None, metadata={"help": "the judge's id, best a dated one", "metavar": "NAME"}
    )
    judge_base_url: str = field(
        default="https://api.openai.com/v1", metadata={"help": "any OpenAI-compatible endpoint", "metavar": "URL"}
    )
    judge_api_key_env: str = field(
        default="OPENAI_API_KEY",
        metadata={"help": "environment variable of its key; none if the server needs none", "metavar": "NAME"},
    )
    judge_prompts: str | None = field(
        default=None, metadata={"help": "JSON file of texts for the judge instead of ours", "metavar": "PATH"}
    )
    judge_timeout: float = field(default=120.0, metadata={"help": "seconds"})
    judge_workers: int = field(default=8, metadata={"help": "calls at a time"})
    detector: str = field(
        default="facebook/mask2former-swin-small-coco-instance",
        metadata={"help": "GenEval's Mask2Former", "metavar": "NAME"},
    )
    detector_size: int = field(
        default=800, metadata={"help": "shortest edge in pixels to which it scales a picture; 800 is the benchmark's"}
    )
    class_names: str | None = field(
        default=None, metadata={"help": "GenEval's object_names.txt, which the detector needs", "metavar": "PATH"}
    )
    clip: str = field(
        default="openai/clip-vit-large-patch14", metadata={"help": "GenEval's CLIP for colours", "metavar": "NAME"}
    )


def run(options: EvaluateOptions, judging: JudgeOptions) -> None:
    from accelerate import PartialState

    from uniedit_hf.evaluation import running
    from uniedit_hf.evaluation.comparison import check_same, compare
    from uniedit_hf.evaluation.comparison_report import markdown, write
    from uniedit_hf.evaluation.suites import suite as suite_of

    suite, state, output = suite_of(options.suite), PartialState(), Path(options.output_dir)
    if options.prompts is None and options.suite != "small_world":
        raise ValueError(f"{options.suite} needs its prompt file: give it as prompts.")
    if options.push_to_hub and Path(options.model).is_dir():
        raise ValueError(f"{options.model} is a folder: push_to_hub is for a model on the Hub, so leave it out.")
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"limit is {options.limit}, but at least one item must be taken: use 1 or more.")
    items = suite.read(options.prompts, options.images)[: options.limit]
    drawing = _drawing(options, suite)
    # what is missing for judging is told before anything is drawn
    look, named = _eye(options, judging, str(state.device))
    models = {"tuned": options.model} | ({"baseline": options.baseline} if options.baseline else {})
    folders = {name: output / name for name in models}
    for name, model in models.items():
        settings = running.settings_of(options.suite, items, model, options.seeds, drawing)
        if state.is_main_process:
            running.open_run(folders[name], settings)
        state.wait_for_everyone()
        _draw(model, suite, items, options, folders[name], drawing, state)
    state.wait_for_everyone()
    if not state.is_main_process:
        return
    if options.baseline:
        check_same(*folders.values())
    outcomes = {name: look(suite, items, folder) for name, folder in folders.items()}
    preset = options.preset if suite.SETTINGS else "of the suite"
    result = {"suite": options.suite, "preset": preset, "drawing": drawing, "models": models}
    result |= {"compat": options.compat, **named}
    result |= compare(suite, items, options.seeds, outcomes["tuned"], outcomes.get("baseline"), options.compat)
    write(result, items, output, folders)
    print(markdown(result))
    print(f"The result, with the worst and best examples, is in {output / 'result.html'}.")
    _write_card(result, options)


def _write_card(result: dict, options: EvaluateOptions) -> None:
    from uniedit_hf.evaluation.result_card import push_into_card, write_into_card

    if Path(options.model).is_dir():
        print(f"The table is in {write_into_card(result, Path(options.model))}.")
    elif options.push_to_hub:
        print(f"The table is in the model's card: {push_into_card(result, options.model)}")
    else:
        print(f"The card of {options.model} on the Hub is as it was: --push_to_hub writes the table into it.")


def _drawing(options: EvaluateOptions, suite) -> dict:
    """The settings of the preset, but for those given."""
    if options.compat and options.compat not in suite.COMPATS:
        known = ", ".join(suite.COMPATS) or "none"
        raise ValueError(f"{options.suite} cannot be scored as {options.compat}: compat may be {known}, or left out.")
    try:
        given = json.loads(options.drawing) if isinstance(options.drawing, str) else options.drawing
    except ValueError as error:
        raise ValueError(
            f"drawing is {options.drawing!r}, but must be JSON such as '{{\"size\": [512, 512]}}'."
        ) from error
    return suite.SETTINGS.get(options.preset, {}) | (given or {})


def _draw(model: str, suite, items: list, options: EvaluateOptions, folder: Path, drawing: dict, state) -> None:
    from uniedit_hf import UniEditPipeline
    from uniedit_hf.evaluation import running

    draw = getattr(suite, "draw", running.draw)
    path_of = getattr(suite, "output_path", running.picture_path)
    paths = (path_of(folder, item, seed) for item in items for seed in options.seeds)
    if all(path.exists() for path in paths):
        return
    pipeline = UniEditPipeline.from_pretrained(model, batch_size=options.batch_size, dtype=options.dtype)
    pipeline.to(state.device)
    draw(pipeline, items, options.seeds, folder, drawing, state.process_index, state.num_processes)


def _eye(options: EvaluateOptions, judging: JudgeOptions, device: str) -> tuple[Callable, dict]:
    """What looks at the pictures of a run, a judge, a detector or the small world's reader, and its name."""
    from uniedit_hf.evaluation import judge_prompts, running

    if options.suite == "small_world":
        return (
            lambda suite, items, folder: suite.outcomes(items, options.seeds, folder),
            {"detector": "the small world's reader"},
        )
    if options.suite == "geneval":
        from uniedit_hf.evaluation.detector import ColorReader, Detector

        if judging.class_names is None:
            raise ValueError("The detector needs its classes: give GenEval's object_names.txt as class_names.")
        found = (
            Detector(judging.detector, judging.class_names, device, judging.detector_size),
            ColorReader(judging.clip, device),
        )
        return (
            lambda suite, items, folder: running.detect(suite, *found, items, options.seeds, folder),
            {"detector": judging.detector, "detector_size": judging.detector_size, "clip": judging.clip},
        )
    from uniedit_hf.evaluation.judge import Judge, JudgeSettings

    if judging.judge_model is None:
        raise ValueError(f"{options.suite} needs a judge: give its id as judge_model.")
    key = None if judging.judge_api_key_env.lower() == "none" else judging.judge_api_key_env
    settings = JudgeSettings(
        judging.judge_model,
        judging.judge_base_url,
        key,
        timeout=judging.judge_timeout,
        workers=judging.judge_workers,
    )
    texts, judge = judge_prompts.load(judging.judge_prompts), Judge(settings)
    return (
        lambda suite, items, folder: running.judge(suite, judge, items, options.seeds, folder, texts, options.compat),
        {"judge": settings.stored},
    )
