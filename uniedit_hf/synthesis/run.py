"""A complete run: makes every shard, merges them into one data set and writes the report."""

from __future__ import annotations

import json

from uniedit_hf.calls.cache import CallCache, Spent
from uniedit_hf.files import disk_errors_name, write_text
from uniedit_hf.synthesis.report import write_report
from uniedit_hf.synthesis.settings import Settings
from uniedit_hf.synthesis.shard import calls_of, make_shard
from uniedit_hf.synthesis.writer import Merged, ShardFiles, fingerprint, merge


def run(settings: Settings, retry: bool = False) -> Merged | None:
    """Makes the data set described by the settings, or resumes the run.

    Args:
        settings: Settings of the run.
        retry: Whether to ask once more where a call was refused or its reply could not be used.

    Returns:
        The result; None if Slurm makes it later.

    Raises:
        ValueError: If the source cannot be read, a backend cannot answer, or the folder contains another run.
    """
    with disk_errors_name(settings.output_dir):
        return _run(settings, retry)


def _run(settings: Settings, retry: bool) -> Merged | None:
    _check_folder(settings)
    if retry:
        _set_failed_aside(settings)
    if settings.engine.kind == "datatrove":
        try:
            from uniedit_hf.synthesis.datatrove_engine import run_on_datatrove
        except ModuleNotFoundError as error:
            raise ValueError(
                f'The engine datatrove needs the package {error.name}: run `pip install "uniedit_hf[datatrove]"`.'
            ) from error
        if not run_on_datatrove(settings):
            return None
        _check_shards(settings)
    else:
        for number in range(settings.shards):
            make_shard(settings, number, earlier=_spent_by_others(settings, number))
    return finish(settings)


def _check_folder(settings: Settings) -> None:
    """Stores the number of shards in the folder, or compares it with the stored one."""
    plan = settings.output_dir / "work" / "plan.json"
    if settings.output_dir.exists() and not settings.output_dir.is_dir():
        raise ValueError(f"{settings.output_dir} is a file: choose a folder as output_dir.")
    if not plan.exists():
        if settings.output_dir.exists() and any(settings.output_dir.iterdir()):
            raise ValueError(
                f"{settings.output_dir} contains files that do not belong to a run: choose an empty output_dir."
            )
        write_text(plan, json.dumps({"shards": settings.shards}))
        return
    shards = json.loads(plan.read_text(encoding="utf-8"))["shards"]
    if shards != settings.shards:
        raise ValueError(
            f"{settings.output_dir} contains a run with {shards} shards, the settings say {settings.shards}: choose "
            f"another output_dir, or set shards: {shards}."
        )


def _set_failed_aside(settings: Settings) -> None:
    """Forgets every shard's refusals and unusable replies, and marks the shard as unfinished."""
    work = settings.output_dir / "work"
    for number in range(settings.shards):
        files = ShardFiles(settings.output_dir, number)
        cache = CallCache(calls_of(settings.output_dir, number), work / "pictures")
        try:
            cache.set_aside(cache.failed(settings.backends))
        finally:
            cache.close()
        if (summary := files.read_summary()) is not None:
            write_text(files.summary, json.dumps(summary | {"complete": False}))


def _spent_by_others(settings: Settings, number: int) -> list[Spent]:
    """The cost of the calls of all other shards."""
    spent = []
    for other in range(settings.shards):
        summary = ShardFiles(settings.output_dir, other).read_summary() if other != number else None
        for each in (summary or {"backends": {}})["backends"].values():
            spent.append(Spent(each["calls"], each["tokens"], each["money"]))
    return spent


def _check_shards(settings: Settings) -> None:
    """Raises RuntimeError if a shard is missing although the engine reported success."""
    for number in range(settings.shards):
        summary = ShardFiles(settings.output_dir, number).read_summary()
        if summary is None or summary["fingerprint"] != fingerprint(settings):
            raise RuntimeError(
                f"Shard {number} was not made; see the logs in {settings.output_dir / 'work' / 'datatrove'} and start "
                "again: what has been answered is kept."
            )


def finish(settings: Settings) -> Merged:
    """Merges the shards and writes the report next to the data set."""
    merged = merge(settings)
    write_report(merged, settings)
    return merged
