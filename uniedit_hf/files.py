"""Files and folders that appear whole or not at all: they are written under a hidden name beside their place, and
renamed at the end. A full disk is told with the name of what could not be written."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room on the disk, in the quota, or for a file of this size
# What SQLite, safetensors and torch.save say of a full disk; they raise no OSError.
FULL_ELSEWHERE = re.compile(rf"database or disk is full|\(os error ({'|'.join(map(str, FULL))})\)|iostream error")


class DiskFullError(OSError):
    """There is no room for a file; the message names it."""


@contextmanager
def written_file(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a hidden path to write a file to, in the folder of `path`, which is made if it is missing. At the end the
    file gets the name `path`; after an error it is deleted.

    Raises:
        DiskFullError: There is no room for it.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")  # several processes may write the same
    with disk_errors_name(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


@contextmanager
def written_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a new hidden folder beside `path` to write files to. At the end it gets the name `path`, in place of a
    folder or file of that name; after an error it is deleted. One process at a time may write the same folder.

    Raises:
        DiskFullError: There is no room for it.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    with disk_errors_name(path):
        try:
            shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
            part.mkdir(parents=True)
            yield part
            if path.is_dir():
                shutil.rmtree(path)
            part.replace(path)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes text in UTF-8 with `written_file`, so that no reader finds half of it."""
    with written_file(path) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def disk_errors_name(path: str | os.PathLike) -> Iterator[None]:
    """Says of a full disk which file or folder could not be written.

    Raises:
        DiskFullError: In place of what Python or a library raised for want of room.
    """
    try:
        yield
    except DiskFullError:
        raise  # which names a file of this folder
    except Exception as error:
        reason = _full_disk(error)
        if reason is None:
            raise
        raise DiskFullError(
            f"{path} could not be written: {reason}. Free some space, or choose a folder on another disk."
        ) from error


def _full_disk(error: BaseException | None) -> str | None:
    """The system's error if a full disk caused an error, directly or through its causes."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return os.strerror(error.errno)
        if FULL_ELSEWHERE.search(str(error)):
            return os.strerror(errno.ENOSPC)
        error = error.__cause__ or error.__context__
    return None
