"""Runs shards as tasks of datatrove, on this machine, on Slurm or on Ray. datatrove distributes ranks; the stages, the
cache and the files are those of the local engine.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from datatrove.data import DocumentsPipeline
from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from uniedit_hf.synthesis.run import finish
from uniedit_hf.synthesis.settings import BudgetSettings, Settings
from uniedit_hf.synthesis.shard import make_shard


class MakeShard(PipelineStep):
    """Makes the shard of a rank; all results are in its files, so nothing is passed on."""

    type, name = "uniedit", "make a shard"

    def __init__(self, settings: str):
        super().__init__()
        self.settings = settings

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        settings = Settings.model_validate_json(self.settings)
        summary = make_shard(settings, rank, budget_of_shard(settings))
        for name in ("records", "rejects"):
            self.stat_update(name, value=summary[name])
        yield from data or ()


class Finish(PipelineStep):
    """Merges the shards and writes the report."""

    type, name = "uniedit", "merge the shards"

    def __init__(self, settings: str):
        super().__init__()
        self.settings = settings

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        finish(Settings.model_validate_json(self.settings))
        yield from data or ()


def budget_of_shard(settings: Settings) -> BudgetSettings:
    """An equal share of the budget, because workers on different machines cannot see each other's spending."""
    budget, shards = settings.budget, settings.shards
    return BudgetSettings(
        calls=None if budget.calls is None else max(1, budget.calls // shards),
        tokens=None if budget.tokens is None else max(1, budget.tokens // shards),
        money=None if budget.money is None else budget.money / shards,
    )


def run_on_datatrove(settings: Settings) -> bool:
    """Makes every shard.

    Returns:
        Whether the shards are complete; with Slurm they are made later, and a job merges them.

    Raises:
        ValueError: If Slurm's scripts cannot name the folder, or Slurm accepts no jobs.
    """
    engine, text = settings.engine, settings.model_dump_json()
    logs = settings.output_dir.absolute() / "work" / "datatrove"
    # Our own files mark finished shards, so a rank whose files are gone is made again.
    options: dict[str, Any] = {
        "tasks": settings.shards,
        "workers": engine.workers,
        "logging_dir": str(logs),
        "skip_completed": False,
        **engine.arguments,
    }
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    if engine.executor == "local":
        LocalPipelineExecutor([MakeShard(text)], start_method="spawn", **options).run()
        return True
    if engine.executor == "ray":
        from datatrove.executor import RayPipelineExecutor

        RayPipelineExecutor([MakeShard(text)], **options).run()
        return True
    _submit(text, logs, options)
    return False


def _submit(settings: str, logs: Path, options: dict[str, Any]) -> None:
    """Submits an array job for the shards, and a job that waits for it and merges them."""
    if any(letter.isspace() for letter in str(logs)):
        raise ValueError(f"Slurm's scripts cannot name a folder with blanks: choose another output_dir than {logs}.")
    # Jobs run the programs of this environment, whether or not it was activated where they were submitted.
    programs = shlex.quote(str(Path(sys.executable).parent))
    options = {"env_command": f"export PATH={programs}:$PATH", "job_name": "uniedit_shards", **options}
    shards = SlurmPipelineExecutor([MakeShard(settings)], **options)
    last = {"tasks": 1, "workers": 1, "logging_dir": str(logs / "finish"), "job_name": "uniedit_merge"}
    try:
        SlurmPipelineExecutor([Finish(settings)], depends=shards, **(options | last)).run()
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise ValueError(
            f"Slurm accepted no job ({error}): start on a machine that has sbatch, and check its message."
        ) from error
