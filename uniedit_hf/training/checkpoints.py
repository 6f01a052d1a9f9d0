"""Complete checkpoints: a list of the files is written last, atomically, and marks the checkpoint as complete."""

from __future__ import annotations

import json
import os
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from uniedit_hf.files import write_text


COMPLETE = "complete.json"


def mark_complete(folder: str | os.PathLike) -> None:
    """Writes the list of a checkpoint's files with their sizes, atomically."""
    folder = Path(folder)
    files = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != COMPLETE
    }
    write_text(folder / COMPLETE, json.dumps(files, indent=1))


def what_is_missing(folder: str | os.PathLike) -> str | None:
    """The reason why a checkpoint cannot be used, or `None` if it is complete."""
    folder = Path(folder)
    if not folder.is_dir():
        return "there is no such folder"
    if not (folder / COMPLETE).is_file():
        return f"{COMPLETE} is missing, so it was not written to its end"
    for name, size in json.loads((folder / COMPLETE).read_text()).items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, {size} were written"
    return None


def checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """The checkpoint folders of a run, newest first."""
    found = [path for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir()]
    numbered = [(int(path.name.rsplit("-", 1)[1]), path) for path in found if path.name.rsplit("-", 1)[1].isdigit()]
    return [path for _, path in sorted(numbered, reverse=True)]


def last_whole_checkpoint(output_dir: str | os.PathLike) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint of a run, if any, and a sentence for every newer one that is incomplete."""
    torn = []
    for path in checkpoints(output_dir):
        reason = what_is_missing(path)
        if reason is None:
            return path, torn
        torn.append(f"{path} is torn ({reason}).")
    return None, torn
