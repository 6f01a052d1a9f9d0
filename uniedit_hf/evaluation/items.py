"""Items and outcomes of a suite, and reading prompt files from a path or the Hub."""

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
    """One item that a model is asked.

    Args:
        name: Name of its folder; unique in the suite.
        prompt: The prompt for the model.
        row: The benchmark's own row.
        sources: Functions that open the images to edit; none for text-to-image.
        extras: Functions that open further images for the judge, by name.
    """

    name: str
    prompt: str
    row: Mapping
    sources: Sequence[Callable[[], Image.Image]] = ()
    extras: Mapping[str, Callable[[], Image.Image]] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The outcome for one image: a value, or a status that says why there is none.

    Args:
        status: `"ok"`, or why there are no marks: `"parse_error"`, `"refused"` by the judge, an `"empty"` reply, or
            `"no_reply"`.
        value: The value by which runs are compared.
        parts: Values for the suite's summary.
        reason: The reason for a status other than ok.
        question: The question whose reply is the reason.
    """

    status: str
    value: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    question: str = ""


def local_file(path: str) -> Path:
    """A local file: the path itself, or a downloaded copy of `hf://datasets/OWNER/NAME/FILE`.

    Raises:
        ValueError: If there is no such file.
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
        ValueError: If the file has another form, is empty, or a row has no such field.
    """
    file = local_file(path)
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        rows = json.loads(text) if file.suffix == ".json" else [json.loads(line) for line in text.splitlines() if line]
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): expected the prompt file of {what}.") from error
    if isinstance(rows, dict) and all(isinstance(row, dict) for row in rows.values()):
        rows = [{"key": key} | row for key, row in rows.items()]
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} contains no list of rows: expected the prompt file of {what}.")
    for number, row in enumerate(rows, 1):
        if missing := [name for name in needed if not isinstance(row, dict) or name not in row]:
            raise ValueError(
                f"Row {number} of {path} has no {', '.join(missing)}: expected the prompt file of {what}."
            )
    return rows


def picture(folder: str | None, name: str) -> Callable[[], Image.Image]:
    """A function that opens an image of the benchmark.

    Raises:
        ValueError: If no folder was given, or the image is not in it.
    """
    if folder is None:
        raise ValueError(
            "This suite edits images: give the folder that contains the files named in its prompt file as images."
        )
    path = Path(folder) / name
    if not path.is_file():
        raise ValueError(f"The image {name} is not in {folder}: download all images of the benchmark.")
    return partial(open_image, path)
