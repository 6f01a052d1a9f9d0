"""Builds a folder of Parquet, which `load_dataset` reads and the Hub shows, from a raw release.

    OUT/148k/train-00000-of-00290.parquet ...    rows with embedded images
    OUT/40k/...
    OUT/README.md, LICENSE.md, assets/           the card, with the configurations
    OUT/faults.jsonl                             rows that were left out: file, line, reason, detail
    OUT/.build/                                  finished files, so that a stopped build resumes

Every file is made from a fixed range of lines, by one process, independently of other files. So a build can stop
anywhere, resume with the missing files, and use any number of processes: the result is the same, byte for byte.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Features
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from uniedit_hf.dataset_builder.uniedit_148k import ROWS_PER_PART, VERSION, read_part
from uniedit_hf.files import disk_errors_name, write_text
from uniedit_hf.release.dataset_card import write_card
from uniedit_hf.release.image_store import ImageStore
from uniedit_hf.release.parquet import features_of, write_rows
from uniedit_hf.release.raw import Part, RawRelease, find_release
from uniedit_hf.row_error import RowError


@dataclass(frozen=True)
class Output:
    """A Parquet file and its rows."""

    config: str
    split: str
    number: int
    total: int
    part: Part

    @property
    def name(self) -> str:
        return f"{self.config}/{self.split}-{self.number:05d}-of-{self.total:05d}.parquet"


@dataclass
class BuildReport:
    """The result of a build.

    Args:
        found: Files that were found in the source, and files that were not used.
        rows: Number of rows written, by configuration and split.
        faults: The rows that were left out.
    """

    found: str
    rows: dict[str, int] = field(default_factory=dict)
    faults: list[RowError] = field(default_factory=list)

    def __str__(self) -> str:
        counts = "\n".join(f"{name}: {count:,} rows" for name, count in self.rows.items())
        return f"{self.found}\n{counts}\n{fault_table(self.faults)}"


def fault_table(faults: Iterable[RowError], limit: int = 20) -> str:
    """The faults as text: the number for each reason, then the first `limit` with file, line and reason."""
    faults = list(faults)
    if not faults:
        return "No invalid rows."
    counts = Counter(fault.reason for fault in faults)
    lines = ["rows  reason", *(f"{count:4}  {reason}" for reason, count in counts.most_common()), ""]
    lines += ["file:line  reason: what was found", *map(str, faults[:limit])]
    if len(faults) > limit:
        lines.append(f"... and {len(faults) - limit} more")
    return "\n".join(lines)


def build(
    source: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    strict: bool = False,
    redo_faulty: bool = False,
    manifests: Mapping[str, Sequence[str]] | None = None,
    image_root: str | os.PathLike | None = None,
    rows_per_file: int = ROWS_PER_PART,
    num_proc: int = 1,
    config_name: str | None = None,
) -> BuildReport:
    """Builds every configuration of a raw release. Files that an earlier build of the same source finished are kept.

    Args:
        source: The folder of the raw release, see `uniedit_hf.release.raw`.
        output_dir: Folder for the Parquet files.
        strict: Stop at the first file with an invalid row instead of skipping the row.
        redo_faulty: Rebuild the files with skipped rows, after the rows have been corrected.
        manifests: Manifests of each configuration, relative to `source`; by default found by name.
        image_root: The folder that image paths are relative to; `source` by default.
        rows_per_file: Manifest lines per Parquet file.
        num_proc: Number of worker processes.
        config_name: Configuration of rows of your own, see `find_release`.

    Raises:
        ValueError: If nothing was found, no row can be used, a row is invalid with `strict`, or the folder contains
            the build of another source.
    """
    output_dir = Path(output_dir)
    if config_name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", config_name):
        raise ValueError(f"config_name is {config_name!r}: use letters, digits, '.', '_' and '-', as in my-edits.")
    if Path(os.path.realpath(output_dir)).is_relative_to(os.path.realpath(source)):
        raise ValueError(
            f"{output_dir} is in the source {source}, where its files would be read as rows the next time: choose a "
            "folder outside."
        )
    release = find_release(source, manifests, config_name)
    outputs = _outputs(release, rows_per_file)
    if not outputs:
        raise ValueError(
            f"There are no rows to build: expected manifests named *148k*.jsonl or *40k*.jsonl, or Parquet in the row "
            f"schema. {release.report()}"
        )
    with _alone(output_dir):
        return _build(release, outputs, output_dir, strict, redo_faulty, image_root, num_proc)


@contextmanager
def _alone(output_dir: Path) -> Iterator[None]:
    """Locks the folder against other builds; the system releases the lock of a killed process."""
    try:
        (output_dir / ".build").mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{output_dir} is a file or lies below one: choose a folder.") from None
    try:
        with FileLock(output_dir / ".build" / "lock", timeout=0), disk_errors_name(output_dir):
            yield
    except Timeout:
        raise ValueError(
            f"Another build is writing to {output_dir}: wait for its end, or choose another folder."
        ) from None


def _build(
    release: RawRelease,
    outputs: Sequence[Output],
    output_dir: Path,
    strict: bool,
    redo_faulty: bool,
    image_root: str | os.PathLike | None,
    num_proc: int,
) -> BuildReport:
    _check_plan(output_dir, release, outputs, image_root)
    images = ImageStore(Path(image_root or release.source), release.archives, base=release.source)
    report = BuildReport(release.report() + _archive_notes(images))
    results = {}
    with tqdm(total=sum(output.part.num_rows for output in outputs), unit=" rows", desc="Building") as progress:
        for output, result in _finished(outputs, images, output_dir, num_proc, redo_faulty):
            results[output.name] = result
            progress.update(output.part.num_rows)
            if strict and result["faults"]:
                raise ValueError(
                    f"{RowError(**result['faults'][0])} Correct the row, or leave out --strict to skip it."
                )
    for output in outputs:
        name = f"{output.config}/{output.split}"
        report.rows[name] = report.rows.get(name, 0) + results[output.name]["rows"]
        report.faults += [RowError(**fault) for fault in results[output.name]["faults"]]
    lines = [json.dumps(fault.record(), ensure_ascii=False) + "\n" for fault in report.faults]
    write_text(output_dir / "faults.jsonl", "".join(lines))
    if not any(report.rows.values()):
        raise ValueError(
            f"None of the {len(report.faults):,} rows can be used: {report.faults[0]} {report.found} Delete "
            f"{output_dir} before building with other options."
        )
    write_card(output_dir)
    return report


def _outputs(release: RawRelease, rows_per_file: int) -> list[Output]:
    return [
        Output(config, split, number, len(parts), part)
        for config in release.configs
        for split in release.splits(config)
        for parts in [release.parts(config, split, rows_per_file)]
        for number, part in enumerate(parts)
    ]


def _check_plan(
    output_dir: Path, release: RawRelease, outputs: Sequence[Output], image_root: str | os.PathLike | None
) -> None:
    """Stores the plan in the folder, or compares it with the stored one."""
    files = sorted({output.part.file for output in outputs} | {str(archive) for archive in release.archives})
    plan = {
        "version": VERSION,
        "files": [[os.path.relpath(file, release.source), os.path.getsize(file)] for file in files],
        "image_root": None if image_root is None else os.path.realpath(image_root),
        "outputs": [output.name for output in outputs],
    }
    path = output_dir / ".build" / "plan.json"
    if not path.exists() and any(output_dir.glob("*/*.parquet")):
        raise ValueError(f"{output_dir} contains Parquet files from elsewhere: choose an empty folder.")
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != plan:
        raise ValueError(
            f"{output_dir} contains the build of another source, or with other settings: choose an empty folder, or "
            "delete it to start over."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_json(path, plan)
    for unfinished in output_dir.glob("*/.*.parquet.*"):
        unfinished.unlink()  # left by a killed build


def _finished(
    outputs: Sequence[Output], images: ImageStore, output_dir: Path, num_proc: int, redo_faulty: bool
) -> Iterator[tuple[Output, dict[str, Any]]]:
    """Yields every file with its result when it is finished, first those of earlier builds."""
    missing = []
    for output in outputs:
        journal = _journal(output, output_dir)
        result = json.loads(journal.read_text(encoding="utf-8")) if journal.exists() else None
        if result is None or not (output_dir / output.name).exists() or (redo_faulty and result["faults"]):
            missing.append(output)
        else:
            yield output, result
    tables = {output.part.file for output in outputs if output.part.is_table}
    features = {
        config: features_of(sorted({each.part.file for each in outputs if each.config == config} & tables))
        for config in {output.config for output in outputs}
    }
    write = partial(_write, images=images, output_dir=output_dir, features=features)
    if num_proc == 1:
        yield from ((output, write(output)) for output in missing)
        return
    # Ctrl-C goes to every process: the workers leave the message to this one.
    quiet = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_DFL)}
    with ProcessPoolExecutor(num_proc, mp_context=multiprocessing.get_context("spawn"), **quiet) as pool:
        futures = {pool.submit(write, output): output for output in missing}
        try:
            yield from ((futures[future], future.result()) for future in as_completed(futures))
        except BrokenProcessPool:
            raise OSError(
                "A process of the build was killed, perhaps out of memory: run the same command again with a "
                "smaller num_proc; it resumes."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _write(output: Output, images: ImageStore, output_dir: Path, features: Mapping[str, Features]) -> dict[str, Any]:
    faults: list[RowError] = []
    path = output_dir / output.name
    path.parent.mkdir(parents=True, exist_ok=True)
    count = write_rows(_good_rows(output.part, images, faults), path, features[output.config])
    result = {"rows": count, "faults": [fault.record() for fault in faults]}
    _write_json(_journal(output, output_dir), result)
    return result


def _good_rows(part: Part, images: ImageStore, faults: list[RowError]) -> Iterator[dict[str, Any]]:
    for line, row in read_part(part, images):
        if isinstance(row, RowError):
            faults.append(row.at(part.file, line))
        else:
            yield row


def _archive_notes(images: ImageStore) -> str:
    notes = [f" {os.path.basename(name)} is damaged ({error})." for name, error in images.damaged.items()]
    if images.ignored_members:
        notes.append(f" {images.ignored_members} members of archives have unsafe names and were ignored.")
    return "".join(notes)


def _journal(output: Output, output_dir: Path) -> Path:
    return output_dir / ".build" / f"{output.name.replace('/', '-').removesuffix('.parquet')}.json"


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content))
