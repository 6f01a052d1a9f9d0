"""The whole method once, on a laptop: questions about images become intelligent edits, a small model is tuned on them,
and a page shows the effect on its three abilities.

    edit_data.py      easy-VQA -> Parquet -> `load_dataset`: intelligent edits, and plain ones of the same images
    columns.py        the models to compare: each is tuned, then tested
    tuning.py         the base model and `UniEditTrainer`
    side_by_side.py   several models at a time, in processes of one thread
    estimate.py       how long it takes; remaining.py: how long the rest takes
    dependence.py     whether edits follow their source and their instruction
    summary.py        what every model reaches, with intervals
    page.py           items.jsonl, report.json and report.html

The items and their scores are in `uniedit_hf/small_world/suite.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from uniedit_hf.files import disk_errors_name


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class QuickstartRun:
    """The settings of a run.

    Args:
        output_dir: Folder for data, models and report. A run that was stopped is resumed; files of a finished run, or
            of
            one with other settings, are replaced.
        model: Family of the small model.
        steps: Optimizer steps of each tuning.
        seed: Seed of data and tuning; the same seed gives the same files for the same dtype. The test items are always
            the
            same.
        seeds: Number of tuning runs on these data, with seeds from `seed` on; the report's figures are the mean.
        edits: Number of edits to make.
        items: Test items of each kind.
        base: Folder of the model to tune; the project's own small base by default.
        jobs: Number of models tuned in parallel; by default 2 on a CPU with two cores.

    Raises:
        ValueError: If a count is too small.
    """

    output_dir: str
    model: str = "bagel"
    steps: int = 400
    seed: int = 0
    seeds: int = 1
    edits: int = 3000
    items: int = 100
    base: str | None = None
    jobs: int | None = None

    def __post_init__(self):
        for name in ("steps", "seeds", "edits", "items", *(["jobs"] if self.jobs is not None else [])):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: use 1 or more.")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}: use 0 or more.")


@dataclass(frozen=True)
class QuickstartResult:
    """The result of a run: the path of its page, and a sentence."""

    page: Path
    verdict: str


def run(output_dir: str, say: Callable[[str], None] = logger.warning, **settings) -> QuickstartResult:
    """Runs it all, or the rest of it after it was stopped. Arguments are those of `QuickstartRun`.

    Args:
        output_dir: As in `QuickstartRun`.
        say: Called with messages along the way, such as the expected time.
        settings: As in `QuickstartRun`.

    Raises:
        OSError: If the base model is missing (the message says where to get it) or the folder cannot be written.
        ValueError: If a count is too small or a package of the extra `quickstart` is not installed.
        KeyboardInterrupt: After Ctrl-C; the same call resumes.
    """
    started = time.perf_counter()
    options = QuickstartRun(output_dir, **settings)
    _check_extra()
    from .whole_run import whole_run

    with disk_errors_name(options.output_dir):
        return whole_run(options, started, say)


def _check_extra() -> None:
    missing = [package for package in ("easy_vqa", "matplotlib") if find_spec(package) is None]
    if missing:
        raise ValueError(
            f"The quickstart needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
            'installed: pip install "uniedit_hf[quickstart]".'
        )
