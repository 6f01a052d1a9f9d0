"""`uniedit evaluate`: compares a tuned model with its base on a benchmark, with confidence intervals.

    uniedit evaluate --suite wise --prompts final_data.json --model runs/bagel \\
        --baseline ByteDance-Seed/BAGEL-7B-MoT --judge_model gpt-4o-2024-11-20 --output_dir runs/wise

The same command resumes a run that was stopped, and asks the judge again about images that have no reply yet. Under
`accelerate launch` the images are distributed over the GPUs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from uniedit_hf.cli.leaving import leave_processes
from uniedit_hf.cli.option_types import Count, OutputDir, Seconds, Seed
from uniedit_hf.evaluation.suites import SUITES


@dataclass
class EvaluateOptions:
    suite: Literal[SUITES] = field(metadata={"help": "the benchmark"})
    model: str = field(metadata={"help": "Hub id or folder of the tuned model", "metavar": "NAME"})
    output_dir: OutputDir = field(metadata={"help": "folder for images, replies and results", "metavar": "FOLDER"})
    prompts: str | None = field(
        default=None,
        metadata={
            "help": "prompt file, or hf://datasets/OWNER/NAME/FILE",
            "metavar": "PATH",
        },
    )
    baseline: str | None = field(default=None, metadata={"help": "the model to compare it with", "metavar": "NAME"})
    images: str | None = field(default=None, metadata={"help": "folder of the benchmark's images", "metavar": "PATH"})
    preset: Literal["bagel", "uniedit", "model"] = field(
        default="bagel", metadata={"help": "preset of generation settings"}
    )
    drawing: dict | str | None = field(
        default=None, metadata={"help": "settings that replace those of the preset", "metavar": "JSON"}
    )
    seeds: list[Seed] = field(default_factory=lambda: [0], metadata={"help": "seeds; one image per prompt for each"})
    limit: Count | None = field(default=None, metadata={"help": "use only the first items"})
    batch_size: Count = field(default=8, metadata={"help": "images drawn in one batch"})
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = field(
        default="auto", metadata={"help": "dtype of the weights"}
    )
    compat: Literal["uniedit", "upstream", "lmms-eval"] | None = field(
        default=None, metadata={"help": "score as this official script does, including its faults"}
    )
    write_card: bool = field(
        default=False,
        metadata={"help": "write the table into the model's card even with limit"},
    )
    push_to_hub: bool = field(default=False, metadata={"help": "write the table into the model's card on the Hub"})


@dataclass
class JudgeOptions:
    judge_model: str | None = field(
        default=None, metadata={"help": "model id of the judge; prefer a dated snapshot", "metavar": "NAME"}
    )
    judge_base_url: str = field(
        default="https://api.openai.com/v1", metadata={"help": "OpenAI-compatible endpoint", "metavar": "URL"}
    )
    judge_api_key_env: str = field(
        default="OPENAI_API_KEY",
        metadata={"help": "environment variable of its key, or none", "metavar": "NAME"},
    )
    judge_prompts: str | None = field(
        default=None, metadata={"help": "JSON file of prompts for the judge that replace ours", "metavar": "PATH"}
    )
    judge_arguments: dict | str | None = field(
        default=None,
        metadata={
            "help": "further arguments of a call; null omits one",
            "metavar": "JSON",
        },
    )
    judge_timeout: Seconds = field(default=120.0, metadata={"help": "timeout of a call in seconds"})
    judge_attempts: Count = field(default=8, metadata={"help": "attempts per call; 8 take two minutes"})
    judge_workers: Count = field(default=8, metadata={"help": "concurrent calls"})
    retry: Literal["failed"] | None = field(
        default=None, metadata={"help": "ask again where a reply was refused, empty or unreadable"}
    )
    detector: str = field(
        default="facebook/mask2former-swin-small-coco-instance",
        metadata={"help": "GenEval's Mask2Former checkpoint", "metavar": "NAME"},
    )
    detector_size: Count = field(
        default=800, metadata={"help": "shortest edge that the detector scales images to, in pixels"}
    )
    class_names: str | None = field(default=None, metadata={"help": "GenEval's object_names.txt", "metavar": "PATH"})
    clip: str = field(default="openai/clip-vit-large-patch14", metadata={"help": "GenEval's CLIP", "metavar": "NAME"})


def run(options: EvaluateOptions, judging: JudgeOptions) -> None:
    from accelerate import PartialState

    from uniedit_hf.evaluation import running
    from uniedit_hf.evaluation.comparison import check_same, compare
    from uniedit_hf.evaluation.suites import suite as suite_of

    suite, state, output = suite_of(options.suite), PartialState(), Path(options.output_dir)
    _check(options)
    items = suite.read(options.prompts, options.images)
    num_all, items = len(items), items[: options.limit]
    drawing, seeds = _drawing(options, suite), sorted(options.seeds)
    if options.compat and hasattr(suite, "check"):
        suite.check(items, options.compat)
    # anything missing for scoring is reported before anything is drawn
    scorer, named, ready = _scorer(options, judging, seeds, str(state.device))
    models = {"tuned": options.model} | ({"baseline": options.baseline} if options.baseline else {})
    folders = {name: output / name for name in models}
    if state.is_main_process and not all(_drawn(suite, items, seeds, folder) for folder in folders.values()):
        ready()
    for name, model in models.items():
        settings = running.settings_of(options.suite, items, model, seeds, drawing)
        if state.is_main_process:
            running.open_run(folders[name], settings)
        state.wait_for_everyone()
        _draw(model, suite, items, seeds, options, folders[name], drawing, state)
    state.wait_for_everyone()
    leave_processes()  # scoring is the first process's alone
    if options.baseline:
        check_same(*folders.values())
    outcomes = {name: scorer(suite, items, folder) for name, folder in folders.items()}
    preset = options.preset if suite.SETTINGS else "of the suite"
    result = {"suite": options.suite, "preset": preset, "drawing": drawing, "models": models, **named}
    result |= compare(suite, items, seeds, outcomes["tuned"], outcomes.get("baseline"), options.compat)
    result["notes"] = _notes(suite, seeds, len(items), num_all)
    _report(result, items, output, folders, options)


def _check(options: EvaluateOptions) -> None:
    """Raises: ValueError: The options contradict each other."""
    if options.prompts is None and options.suite != "small_world":
        raise ValueError(f"{options.suite} needs its prompt file: give it as prompts.")
    if options.push_to_hub and Path(options.model).is_dir():
        raise ValueError(f"{options.model} is a folder: push_to_hub is for a model on the Hub, so leave it out.")
    if twice := {seed for seed in options.seeds if options.seeds.count(seed) > 1}:
        raise ValueError(f"The seed {min(twice)} is given twice: every image is drawn once with each seed.")


def _notes(suite, seeds: list[int], taken: int, num_all: int) -> list[str]:
    """Notes for the reader of the table."""
    notes = []
    if taken < num_all:
        notes.append(f"Only the first {taken} of {num_all} items were used.")
    official = getattr(suite, "IMAGES_PER_PROMPT", 1)
    if len(seeds) < official:
        names = " ".join(map(str, range(official)))
        notes.append(
            f"The official protocol draws {official} images per prompt (--seeds {names}); this run draws {len(seeds)}."
        )
    return notes


def _report(result: dict, items: list, output: Path, folders: dict, options: EvaluateOptions) -> None:
    """Writes and prints the result, and the table into the card.

    Raises:
        ValueError: Replies are missing, or none could be read.
    """
    from uniedit_hf.evaluation.comparison import extremes, missing_replies, readable
    from uniedit_hf.evaluation.comparison_report import markdown, write

    page = write(result, items, output, folders)
    print(markdown(result))
    examples = ", with the worst and best examples," if any(extremes(result)) else ""
    print(f"The result{examples} is in {page}.")
    if page.stem != "result":
        print(f"{output / 'result.html'} is from an earlier run with more marks and is kept.")
    _write_card(result, options)
    if missing := missing_replies(result):
        raise ValueError(
            f"{missing} images have no reply of the judge yet ({_first_reason(result)}): run the same command again. "
            "What has been answered is kept."
        )
    for run in result["runs"].values():
        if run["problem"]:
            raise ValueError(run["problem"])
    if not readable(result):
        raise ValueError(f"No image has marks ({_first_reason(result)}): see the reasons in {page}.")


def _first_reason(result: dict) -> str:
    found = [each for run in result["runs"].values() for each in run["reasons"]]
    return max(found, key=lambda each: (each["status"] == "no_reply", each["count"]))["reason"]


def _write_card(result: dict, options: EvaluateOptions) -> None:
    from uniedit_hf.evaluation.result_card import push_into_card, why_not_written, write_into_card

    local = Path(options.model).is_dir()
    asked = options.write_card or options.push_to_hub
    if reason := why_not_written(result, options.model, asked, options.limit is not None):
        print(f"The model's card is unchanged: {reason}.")
    elif not local and not options.push_to_hub:
        print(f"The card of {options.model} on the Hub is as it was: --push_to_hub writes the table into it.")
    elif place := write_into_card(result, Path(options.model)) if local else push_into_card(result, options.model):
        print(f"The table is in {place}." if local else f"The table is in the model's card: {place}")
    else:
        print("The model's card is unchanged: its table covers more images.")


def _drawing(options: EvaluateOptions, suite) -> dict:
    """The settings of the preset, overridden by those given."""
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


def _drawn(suite, items: list, seeds: list[int], folder: Path) -> bool:
    """Whether a run has everything needed to score it."""
    from uniedit_hf.evaluation import running

    path_of = getattr(suite, "output_path", running.picture_path)
    return all(path_of(folder, item, seed).exists() for item in items for seed in seeds)


def _draw(
    model: str, suite, items: list, seeds: list[int], options: EvaluateOptions, folder: Path, drawing: dict, state
) -> None:
    from uniedit_hf import UniEditPipeline
    from uniedit_hf.evaluation import running

    if _drawn(suite, items, seeds, folder):
        return
    pipeline = UniEditPipeline.from_pretrained(model, batch_size=options.batch_size, dtype=options.dtype)
    pipeline.to(state.device)
    draw = getattr(suite, "draw", running.draw)
    draw(pipeline, items, seeds, folder, drawing, state.process_index, state.num_processes)


def _scorer(
    options: EvaluateOptions, judging: JudgeOptions, seeds: list[int], device: str
) -> tuple[Callable, dict, Callable]:
    """The function that scores a run, the metadata that identifies it, and a check to run before anything is drawn."""
    from uniedit_hf.evaluation import judge_prompts, running

    if options.suite == "small_world":
        name = {"detector": "the small world's reader"}
        return lambda suite, items, folder: suite.outcomes(items, seeds, folder), name, lambda: None
    if options.suite == "geneval":
        from uniedit_hf.evaluation.detector import ColorReader, Detector

        if judging.class_names is None:
            raise ValueError("The detector needs its classes: give GenEval's object_names.txt as class_names.")
        found = (
            Detector(judging.detector, judging.class_names, device, judging.detector_size),
            ColorReader(judging.clip, device),
        )
        return (
            lambda suite, items, folder: running.detect(suite, *found, items, seeds, folder),
            {"detector": judging.detector, "detector_size": judging.detector_size, "clip": judging.clip},
            lambda: None,
        )
    judge, texts = _judge(options, judging), judge_prompts.load(judging.judge_prompts)
    again = judging.retry == "failed"
    return (
        lambda suite, items, folder: running.judge(suite, judge, items, seeds, folder, texts, options.compat, again),
        {"judge": judge.settings.stored},
        judge.check,
    )


def _judge(options: EvaluateOptions, judging: JudgeOptions):
    from uniedit_hf.evaluation.judge import Judge, JudgeSettings

    if judging.judge_model is None:
        raise ValueError(f"{options.suite} needs a judge: give its id as judge_model.")
    return Judge(
        JudgeSettings(
            judging.judge_model,
            judging.judge_base_url,
            None if judging.judge_api_key_env.lower() == "none" else judging.judge_api_key_env,
            timeout=judging.judge_timeout,
            attempts=judging.judge_attempts,
            workers=judging.judge_workers,
            arguments=_json_object("judge_arguments", judging.judge_arguments),
        )
    )


def _json_object(name: str, given: dict | str | None) -> dict:
    """Raises: ValueError: An option is not a JSON object."""
    try:
        value = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        value = given
    if not isinstance(value, dict | None):
        raise ValueError(f"{name} is {given!r}, but must be JSON such as '{{\"temperature\": 0.5}}'.")
    return value or {}
