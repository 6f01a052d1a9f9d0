"""Reads a raw release: the files found in its folder, their rows, and the files that were not used.

Two kinds are read. The official one: JSONL manifests at the top, `*148k*.jsonl` and `*40k*.jsonl`, and images in
folders, tar or zip shards. Our own: Parquet in the row schema, at the top or in a folder with the name of a
configuration, as synthesis and `uniedit dataset build` write it; rows that belong to neither published configuration
get a name of their own. The layout of the official repository
was not known when this was written, so nothing is guessed silently: `RawRelease.report` says what was found.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from uniedit_hf.row_error import RowError


CONFIGS = ("148k", "40k")
OWN_CONFIG = "default"  # of Parquet files that are not in a folder named 148k or 40k, if no name is given
SPLITS = ("train", "validation", "test")
ARCHIVES = (".tar", ".zip")
PACKED = (".gz", ".tgz", ".zst", ".xz", ".bz2", ".7z", ".rar")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".jp2")

# A line of the official manifests takes a few kilobytes.
MAX_LINE_BYTES = 16 * 2**20


class RawReleaseError(ValueError):
    """A folder that cannot be read as a raw release; the message says what is in it and what was expected."""


@dataclass(frozen=True)
class Part:
    """A range of rows of one file, read by one process.

    Args:
        file: The manifest or Parquet file.
        first_row: Number of the first row, from 0.
        num_rows: Number of lines or rows.
        position: Byte offset of the first line; 0 for Parquet.
    """

    file: str
    first_row: int
    num_rows: int
    position: int = 0

    @property
    def is_table(self) -> bool:
        """Whether the file is Parquet in the row schema."""
        return self.file.endswith(".parquet")


@dataclass
class RawRelease:
    """The files found in a folder.

    Args:
        source: The folder.
        manifests: JSONL files of each configuration.
        tables: Parquet files of each configuration and split.
        archives: Tar and zip files, at any depth.
        images: Number of image files outside archives.
        unplaced: Files that were not used, with the reason.
        own_config: The configuration of rows whose place names none.
    """

    source: Path
    manifests: dict[str, list[Path]] = field(default_factory=dict)
    tables: dict[str, dict[str, list[Path]]] = field(default_factory=dict)
    archives: list[Path] = field(default_factory=list)
    images: int = 0
    unplaced: list[tuple[str, str]] = field(default_factory=list)
    own_config: str | None = None

    @property
    def configs(self) -> list[str]:
        """The configurations that have rows."""
        return in_order({*self.manifests, *self.tables})

    def splits(self, config: str) -> list[str]:
        """The splits of a configuration; the official release has only `train`.

        Raises:
            RawReleaseError: If there is nothing for this configuration.
        """
        if config not in self.configs:
            raise RawReleaseError(
                f"Found nothing for the configuration {config!r} in {self.source}: expected a manifest named "
                f"*{config}*.jsonl at its top (or name it with the option manifest_{config}), or Parquet files in the "
                f"row schema. {self.report()}"
            )
        return ["train"] if config in self.manifests else sorted(self.tables[config])

    def parts(self, config: str, split: str, rows_per_part: int) -> list[Part]:
        """The rows of a split, cut into parts of at most `rows_per_part` lines of one file."""
        self.splits(config)
        if config in self.manifests:
            return [part for file in self.manifests[config] for part in _manifest_parts(file, rows_per_part)]
        return [
            Part(str(file), first, min(rows_per_part, count - first))
            for file in self.tables[config][split]
            for count in [pq.read_metadata(file).num_rows]
            for first in range(0, count, rows_per_part)
        ]

    def report(self) -> str:
        """The files that were found and those that were not used, in a few lines."""
        found = [f"{config}: {_names(files)}" for config, files in self.manifests.items()]
        found += [
            f"{config}/{split}: {_names(files)}"
            for config, splits in self.tables.items()
            for split, files in splits.items()
        ]
        found += [f"{len(self.archives)} archives, {self.images:,} image files"]
        lines = [f"Found in {self.source}: {'; '.join(found)}."]
        if self.unplaced:
            shown = "; ".join(f"{name} ({reason})" for name, reason in self.unplaced[:8])
            more = len(self.unplaced) - 8
            lines.append(f"Not used: {shown}{f'; and {more} more' if more > 0 else ''}.")
        return " ".join(lines)


def in_order(configs: Iterable[str]) -> list[str]:
    """Names of configurations, the published ones first."""
    return sorted(configs, key=lambda name: (CONFIGS.index(name) if name in CONFIGS else len(CONFIGS), name))


def find_release(
    source: str | os.PathLike,
    manifests: Mapping[str, Sequence[str]] | None = None,
    own_config: str | None = None,
) -> RawRelease:
    """Looks through a folder.

    Args:
        source: The folder.
        manifests: Names of the manifests of each configuration, relative to the folder; by default they are found by
            name.
        own_config: The configuration of Parquet files outside a folder named after one, and of manifests whose name
            says none; by default `default` for Parquet files.

    Raises:
        RawReleaseError: If there is no such folder, or a named manifest is missing.
    """
    source = Path(source)
    if not source.is_dir():
        raise RawReleaseError(f"There is no folder {source}: expected the folder of a raw release.")
    release = RawRelease(_rows_of_synthesis(source), own_config=own_config)
    source = release.source
    for config, names in (manifests or {}).items():
        for name in names:
            if not (source / name).is_file():
                raise RawReleaseError(f"There is no manifest {name!r} for {config} in {source}. {release.report()}")
        release.manifests[config] = [source / name for name in names]
    others: Counter[str] = Counter()
    for folder, folders, names in os.walk(source, onerror=_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            _place(release, Path(folder) / name, others)
    release.unplaced += [(f"{count:,} files *{ending}", "not used here") for ending, count in others.items()]
    for config in [config for config in release.tables if config in release.manifests]:
        files = [file for split in release.tables.pop(config).values() for file in split]
        release.unplaced.append((_names(files), f"{config} has manifests, which have priority"))
    return release


def read_lines(part: Part) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """The non-blank lines of a part of a manifest: number from 1, and the JSON object or the error."""
    with open(part.file, "rb") as file:
        file.seek(part.position)
        for number in range(part.first_row + 1, part.first_row + part.num_rows + 1):
            try:
                entry = _parsed(_line(file))
            except RowError as fault:
                entry = fault
            if entry is not None:
                yield number, entry


def read_table(part: Part) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a part of a Parquet file, with their numbers from 1."""
    number = 0
    with pq.ParquetFile(part.file) as file:
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if number + count <= part.first_row:
                number += count
                continue
            for batch in file.iter_batches(batch_size=16, row_groups=[group]):
                for row in batch.to_pylist():
                    number += 1
                    if number > part.first_row + part.num_rows:
                        return
                    if number > part.first_row:
                        yield number, row


def _rows_of_synthesis(source: Path) -> Path:
    """The data set's folder in the output folder of `uniedit synthesize`; any other folder unchanged.

    Raises:
        RawReleaseError: If the synthesis has not finished.
    """
    if not (source / "work" / "plan.json").is_file():
        return source
    rows = source / "dataset"
    if not rows.is_dir():
        raise RawReleaseError(
            f"{source} is an unfinished run of `uniedit synthesize`, without the folder dataset: run the same command "
            "again first; it resumes."
        )
    return rows


def _unreadable(error: OSError) -> None:
    raise RawReleaseError(
        f"The folder {error.filename} cannot be read ({error.strerror}): change its permissions, or move it away."
    ) from error


def _place(release: RawRelease, path: Path, others: Counter[str]) -> None:
    ending = path.suffix.lower()
    place = path.relative_to(release.source)
    if ending in ARCHIVES:
        release.archives.append(path)
    elif ending in IMAGE_SUFFIXES:
        release.images += 1
    elif ending == ".jsonl" and any(path in files for files in release.manifests.values()):
        return
    elif ending == ".jsonl" and len(place.parts) == 1:
        named = (each for each in CONFIGS if re.search(rf"(?<!\d){each}", path.name.lower()))
        config = next(named, release.own_config)
        if config is None:
            reason = "name has neither 148k nor 40k: use manifest_148k, manifest_40k or config_name"
            release.unplaced.append((str(place), reason))
        else:
            release.manifests.setdefault(config, []).append(path)
    elif ending == ".jsonl":
        release.unplaced.append((str(place), "manifests must be at the top of the folder"))
    elif ending == ".parquet":
        config = place.parts[0] if place.parts[0] in CONFIGS else release.own_config or OWN_CONFIG
        split = next((each for each in SPLITS if path.name.startswith(f"{each}-")), "train")
        release.tables.setdefault(config, {}).setdefault(split, []).append(path)
    elif ending in PACKED:
        release.unplaced.append((str(place), "compressed: unpack it to a .tar, .zip or folder first"))
    else:
        others[ending or path.name] += 1


def _manifest_parts(file: Path, rows_per_part: int) -> Iterator[Part]:
    first = count = start = position = 0
    inside = False  # a line longer than one read is still one line
    with open(file, "rb") as lines:
        while piece := lines.readline(MAX_LINE_BYTES):
            count += not inside
            inside = not piece.endswith(b"\n")
            position += len(piece)
            if count == rows_per_part and not inside:
                yield Part(str(file), first, count, start)
                first, count, start = first + count, 0, position
    if count:
        yield Part(str(file), first, count, start)


def _line(file) -> bytes:
    """The next line; the rest of a line that is too long is skipped."""
    line = file.readline(MAX_LINE_BYTES)
    if len(line) < MAX_LINE_BYTES or line.endswith(b"\n"):
        return line
    while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
        continue
    raise RowError("line too long", f"more than {MAX_LINE_BYTES:,} bytes: expected one JSON object per line.")


def _parsed(line: bytes) -> dict[str, Any] | None:
    if not line.strip():
        return None
    try:
        entry = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RowError("not UTF-8", f"byte {error.start} is {line[error.start : error.start + 1]!r}.") from error
    except (ValueError, RecursionError) as error:  # a plain ValueError: a number with thousands of digits
        raise RowError("not JSON", f"{error}; the line begins with {line[:60]!r}.") from error
    if not isinstance(entry, dict):
        raise RowError("not JSON", f"found a {type(entry).__name__}: expected an object.")
    return entry


def _names(files: Sequence[Path]) -> str:
    return ", ".join(file.name for file in files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
