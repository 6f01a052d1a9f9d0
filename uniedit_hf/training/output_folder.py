"""One run per folder: refuses a folder with an earlier run, and two runs at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


LOCK = ".uniedit-train.lock"
RESULTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")


@contextmanager
def claimed(folder: str | os.PathLike) -> Iterator[None]:
    """Locks the folder for this run; only the first process of a run takes the lock.

    Raises:
        ValueError: If another run writes there.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    lock = FileLock(Path(folder, LOCK), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"Another run is writing to {folder}: wait until it ends, or name another output_dir."
        ) from None
    try:
        yield
    finally:
        lock.release()


def check_unused(folder: str | os.PathLike) -> None:
    """Checks that a new run can begin in the folder.

    Raises:
        ValueError: If it contains checkpoints or a model of an earlier run.
    """
    found = [*sorted(Path(folder).glob("checkpoint-*")), *(Path(folder, name) for name in RESULTS)]
    there = next((path.name for path in found if path.exists()), None)
    if there is not None:
        raise ValueError(
            f"output_dir {folder} holds {there} of an earlier run: resume it with --resume_from_checkpoint true, "
            "name another output_dir, or remove the folder."
        )
