"""What a suite asks and what came out: items, outcomes, and reading prompt files from a path or the Hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from PIL import Image

from uniedit_hf.images import open_image


HUB = "hf://datasets/"


@dataclass(frozen=True)
class Item:
    """One thing a model is asked.

    Args:
        name: Names its folder; unique in the suite.
        prompt: What the model is told.
        row: The benchmark's own row.
        sources: Open the pictures to be edited; none for a drawing.
        extras: Open further pictures that the judge sees, by name.
    """

    name: str
    prompt: str
    row: Mapping
    sources: Sequence[Callable[[], Image.Image]] = ()
    extras: Mapping[str, Callable[[], Image.Image]] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of one picture: a value, or the status that says why there is none.

    Args:
        status: `"ok"`, or why there are no marks: `"parse_error"`, `"refused"` by the judge, an `"empty"` reply, or
            `"no_reply"`.
        value: What runs are compared by.
        parts: What the suite's summary needs.
        reason: Of a status that is not ok.
        question: The question whose reply is the reason.
    """

    status: str
    value: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    question: str = ""


def local_file(path: str) -> Path:
    """A file on this machine: the path itself, or a copy of `hf://datasets/OWNER/NAME/FILE`.

    Raises:
        ValueError: There is no such file.
    """
    if path.startswith(HUB):
        from uniedit_hf.hub import hub_file

        parts = path.removeprefix(HUB).split("/", 2)
        if len(parts) < 3:
            raise ValueError(f"{path} names no file of a data set on the Hub: write {HUB}OWNER/NAME/FILE.")
        found = hub_file("/".join(parts[:2]), parts[2], "data set")
        if found is None:
            raise ValueError(f"The data set {'/'.join(parts[:2])} has no file {parts[2]}: see its files on the Hub.")
        return found
    if not Path(path).is_file():
        raise ValueError(f"There is no prompt file {path}: give a path, or {HUB}OWNER/NAME/FILE.")
    return Path(path)


def read_rows(path: str, needed: Sequence[str], what: str) -> list[dict]:
    """The rows of a prompt file: JSON lines, a JSON list, or a JSON object of rows, whose keys become `key`.

    Raises:
        ValueError: The file is not of that kind, is empty, or a row lacks a field.
    """
    file = local_file(path)
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        rows = json.loads(text) if file.suffix == ".json" else [json.loads(line) for line in text.splitlines() if line]
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): expected the prompt file of {what}.") from error
    if isinstance(rows, dict) and all(isinstance(row, dict) for row in rows.values()):
        rows = [{"key": key} | row for key, row in rows.items()]
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} holds no list of rows: expected the prompt file of {what}.")
    for number, row in enumerate(rows, 1):
        if missing := [name for name in needed if not isinstance(row, dict) or name not in row]:
            raise ValueError(f"Row {number} of {path} lacks {', '.join(missing)}: expected the prompt file of {what}.")
    return rows


def picture(folder: str | None, name: str) -> Callable[[], Image.Image]:
    """Opens a picture of the benchmark later.

    Raises:
        ValueError: No folder was given, or the picture is not in it.
    """
    if folder is None:
        raise ValueError("This suite edits pictures: give the folder that its prompt file names them from as images.")
    path = Path(folder) / name
    if not path.is_file():
        raise ValueError(f"The picture {name} is not in {folder}: download the benchmark's pictures completely.")
    return partial(open_image, path)
