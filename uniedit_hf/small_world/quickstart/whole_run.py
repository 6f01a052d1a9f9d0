"""Runs the parts in order; a stopped run is resumed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from uniedit_hf.arithmetic import Arithmetic, best_arithmetic
from uniedit_hf.files import DiskFullError, write_text
from uniedit_hf.small_world.scoring import Score

from . import QuickstartResult, QuickstartRun
from .columns import Column, items_of, make_column, scores_of
from .edit_data import make_edits
from .estimate import PAGE, Speed, in_words, measured_speed
from .page import write_report
from .remaining import RemainingTime
from .side_by_side import run_side_by_side
from .summary import COLUMNS, TUNED
from .tuning import LONG_EDITS, LONG_STEPS, base_folder, long_folder, replay_settings, replay_shares, small_world


SETTINGS, DATA, PAGE_NAME = "settings.json", "data.json", "report.html"


def whole_run(options: QuickstartRun, started: float, say: Callable[[str], None]) -> QuickstartResult:
    """Makes the missing parts and writes the page.

    Args:
        options: The settings.
        started: When the process began to work, by `time.perf_counter`.
        say: Called with messages along the way.
    """
    arithmetic = best_arithmetic()
    jobs = options.jobs or arithmetic.jobs
    folder, start = Path(options.output_dir), base_folder(options.base, options.model)
    resumed = open_folder(folder, decisive(options, arithmetic))
    columns = columns_of(options, start, folder)
    speed = measured_speed(start, arithmetic, time.perf_counter() - started)
    items = items_of(options.items)
    progress = RemainingTime(columns, items, speed, jobs)
    if resumed:
        say(f"Resuming the run that was stopped in {folder}.")
    say(_expected(options, arithmetic, jobs, speed, progress))
    seconds = {}
    begun = time.perf_counter()
    data = _data(options, folder)
    seconds["data"] = time.perf_counter() - begun
    run_side_by_side([partial(make_column, column) for column in columns], jobs, progress)
    progress.close()
    seconds["tuning and measuring"] = time.perf_counter() - begun - seconds["data"]
    names = [name for name in COLUMNS if any(each.name == name for each in columns)]
    by_name = {name: [each for each in columns if each.name == name] for name in names}
    bounds = by_name["base"][0].read_side_figures()
    page, verdict = write_report(
        folder,
        settings=_settings(options, arithmetic, start),
        data=data,
        losses={name: by_name[name][0].curve() for name in TUNED},
        items=items,
        outputs={name: each[0].read_outputs(items) for name, each in by_name.items()},
        scores={name: [scores_of(column, items) for column in each] for name, each in by_name.items()},
        bounds={name: [Score(**each) for each in scores] for name, scores in bounds.items()},
        followed=by_name["tuned"][0].read_side_figures(),
        seconds={name: round(each, 1) for name, each in seconds.items()},
        resumed=resumed,
    )
    return QuickstartResult(page, verdict)


def decisive(options: QuickstartRun, arithmetic: Arithmetic) -> dict[str, Any]:
    """The settings that affect results."""
    settings = {name: value for name, value in asdict(options).items() if name not in ("output_dir", "jobs")}
    return settings | {"device": arithmetic.device, "dtype": arithmetic.dtype_name}


def open_folder(folder: Path, settings: dict[str, Any]) -> bool:
    """Prepares the folder and returns whether it contains a stopped run with these settings.

    Raises:
        OSError: If the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = json.loads((folder / SETTINGS).read_text()) if (folder / SETTINGS).is_file() else None
        if found == settings and not (folder / PAGE_NAME).is_file():
            return True
        for old in (folder / "data", folder / "outputs", *folder.glob("model*"), *folder.glob("paper*")):
            shutil.rmtree(old, ignore_errors=True)
        for name in (PAGE_NAME, "report.json", "items.jsonl", DATA):
            (folder / name).unlink(missing_ok=True)
        write_text(folder / SETTINGS, json.dumps(settings, indent=1) + "\n")
    except DiskFullError:
        raise
    except OSError as error:
        raise OSError(f"Cannot write to {folder}: {error.strerror}. Pass another --output_dir.") from error
    return False


def columns_of(options: QuickstartRun, start: Path, folder: Path) -> list[Column]:
    """All models, longest first."""
    rest = {"start": start, "folder": folder, "steps": options.steps, "items": options.items}
    tuned = [
        Column(name, options.seed + number, number=number, **rest) for number in range(options.seeds) for name in TUNED
    ]
    long = long_folder(options.base, options.model)
    given = {"base": start} | ({} if long is None else {"long": long})
    return [*tuned, *(Column(name, options.seed, number=0, **rest | {"start": at}) for name, at in given.items())]


def _data(options: QuickstartRun, folder: Path) -> dict[str, Any]:
    """Makes the edits unless they exist; returns their counts."""
    if not (folder / DATA).is_file():
        shutil.rmtree(folder / "data", ignore_errors=True)
        _, counts = make_edits(folder / "data", seed=options.seed, size=options.edits)
        write_text(folder / DATA, json.dumps(counts) + "\n")
    return json.loads((folder / DATA).read_text())


def _expected(options: QuickstartRun, arithmetic: Arithmetic, jobs: int, speed: Speed, progress: RemainingTime) -> str:
    data = 0.0 if (Path(options.output_dir) / DATA).is_file() else speed.edit * options.edits
    return (
        f"{arithmetic.dtype_name} on {arithmetic.device}, {jobs} at a time ({arithmetic.reason}). Expected: "
        f"{in_words(data + progress.expected + PAGE)} from here, {in_words(data)} of it for the data."
    )


def _settings(options: QuickstartRun, arithmetic: Arithmetic, start: Path) -> dict[str, Any]:
    return {
        "model": options.model,
        "base": options.base or "assets",
        "steps": options.steps,
        "seed": options.seed,
        "seeds": options.seeds,
        "device": arithmetic.device,
        "dtype": arithmetic.dtype_name,
        **small_world(start),
        "long_steps": LONG_STEPS,
        "long_edits": LONG_EDITS,
        "replay": replay_settings(start),
        "replay_shares": replay_shares(start),
    }
