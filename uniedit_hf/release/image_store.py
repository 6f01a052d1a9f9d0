"""Reads the images of a raw release by name, from folders or from tar and zip shards.

Archives are not trusted, so they are never extracted to disk: members are read into memory, up to a limit, by safe
names. Links, names with "..", duplicate names and members that decompress beyond the limit are errors of the rows that
name them. The index of the archives is an
SQLite file, so that memory does not grow with their size.
"""

from __future__ import annotations

import atexit
import lzma
import os
import re
import sqlite3
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path

from uniedit_hf.row_error import RowError


# An image of 89 million pixels, the largest that is opened, is rarely larger as PNG.
MAX_IMAGE_BYTES = 256 * 2**20

FILE, LINK, SECRET = "file", "link", "encrypted"

# The end of a C string, the separator of another system, and bytes that are not UTF-8.
UNSAFE = re.compile("[\0\\\\\ud800-\udfff]")

SCHEMA = "CREATE TABLE member (name TEXT, archive TEXT, inner TEXT, kind TEXT, start INTEGER, size INTEGER)"


class ImageStore:
    """Reads images by the names that a manifest gives them.

    A file below `root` comes first. Otherwise a member of an archive matches if the name is the member's, with or
    without the archive's folder or the archive's name in front: `images/part-0.tar` with a member `a.png` matches
    `a.png`, `images/a.png`, `part-0/a.png` and `images/part-0/a.png`.

    Args:
        root: The folder that names are relative to.
        archives: Tar and zip files.
        base: The folder that the archives' paths are relative to; `root` by default.
    """

    def __init__(self, root: Path, archives: Sequence[Path] = (), base: Path | None = None):
        self.root = Path(os.path.realpath(root))
        self.allowed = [self.root]
        if self.root.parent.name == "snapshots":
            # A snapshot in the Hub's cache: every file is a link to one of the repository's blobs.
            self.allowed.append(self.root.parent.parent / "blobs")
        self.damaged: dict[str, str] = {}
        self.ignored_members = 0
        self.index = self._indexed(archives, base or root) if archives else None

    def read(self, name: str) -> bytes:
        """The encoded image of that name.

        Raises:
            RowError: If the name is not safe or not unique, or the image is missing, too large or damaged.
        """
        parts = safe_parts(name)
        path = self.root.joinpath(*parts)
        if os.path.lexists(path):
            return self._read_file(path, name)
        member = self._find(parts)
        if member is None:
            raise RowError(
                "image not found", f"there is no {name!r} below {self.root.name}/{self._searched()}; check image_root."
            )
        return self._read_member(name, *member)

    def _read_file(self, path: Path, name: str) -> bytes:
        real = Path(os.path.realpath(path))
        if not any(real.is_relative_to(folder) for folder in self.allowed):
            raise RowError(
                "link out of the folder", f"{name!r} is or follows a link that leads out of the image root."
            )
        if not real.exists():
            raise RowError("link out of the folder", f"{name!r} is a link to nothing.")
        status = real.stat()
        if not stat.S_ISREG(status.st_mode):
            raise RowError("no file", f"{name!r} is a folder or a device: expected an image.")
        _check_size(name, status.st_size)
        return real.read_bytes()

    def _find(self, parts: list[str]) -> tuple | None:
        if self.index is None:
            return None
        for start in range(len(parts)):
            found = self._rows(
                "SELECT archive, inner, kind, start, size FROM member JOIN prefixes USING (archive) "
                "WHERE name = ? AND prefix = ?",
                "/".join(parts[start:]),
                "/".join(parts[:start]),
            )
            if len(found) > 1:
                archives = ", ".join(sorted({os.path.basename(row[0]) for row in found}))
                raise RowError(
                    "ambiguous name", f"{'/'.join(parts)!r} occurs {len(found)} times in {archives}: expected once."
                )
            if found:
                return found[0]
        return None

    def _read_member(self, name: str, archive: str, inner: str, kind: str, start: int, size: int) -> bytes:
        place = f"{name!r} in {os.path.basename(archive)}"
        if kind == LINK:
            raise RowError("link in an archive", f"{place} is a link or a device; links are never followed.")
        if kind == SECRET:
            raise RowError("encrypted", f"{place} needs a password.")
        _check_size(place, size)
        try:
            if archive.lower().endswith(".zip"):
                with _zip(archive, os.getpid()).open(inner) as file:
                    data = file.read(MAX_IMAGE_BYTES + 1)
            else:
                # Opened anew: forked processes would share a position in the file.
                data = os.pread(_descriptor(archive, os.getpid()), size, start)
        except (OSError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError) as error:
            raise RowError("damaged archive member", f"{place} cannot be unpacked ({error}).") from error
        _check_size(place, len(data))
        if len(data) < size:
            raise RowError("damaged archive member", f"{place} ends after {len(data):,} of {size:,} bytes.")
        return data

    def _searched(self) -> str:
        if self.index is None:
            return ", and there are no tar or zip files"
        examples = self._rows("SELECT name FROM member LIMIT 1")
        return " nor in its archives" + (f", whose members are named like {examples[0][0]!r}" if examples else "")

    def _rows(self, query: str, *values: str) -> list[tuple]:
        return _connection(self.index, os.getpid()).execute(query, values).fetchall()

    def _indexed(self, archives: Sequence[Path], base: Path) -> str:
        handle, index = tempfile.mkstemp(prefix="uniedit-archives-", suffix=".sqlite")
        os.close(handle)
        atexit.register(_remove, index, os.getpid())
        connection = sqlite3.connect(index)
        connection.executescript(f"{SCHEMA}; CREATE TABLE prefixes (archive TEXT, prefix TEXT)")
        for archive in archives:
            connection.executemany(
                "INSERT INTO prefixes VALUES (?, ?)", [(str(archive), prefix) for prefix in _prefixes(archive, base)]
            )
            connection.executemany("INSERT INTO member VALUES (?, ?, ?, ?, ?, ?)", self._members(archive))
        connection.executescript(
            "CREATE INDEX by_name ON member (name); CREATE INDEX by_archive ON prefixes (archive)"
        )
        connection.commit()
        connection.close()
        return index

    def _members(self, archive: Path) -> Iterator[tuple]:
        listed = _zip_members if archive.suffix.lower() == ".zip" else _tar_members
        try:
            for inner, kind, start, size in listed(archive):
                try:
                    yield "/".join(safe_parts(inner)), str(archive), inner, kind, start, size
                except RowError:
                    self.ignored_members += 1  # no row can refer to it: the same name is an error in the manifest
        except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError) as error:
            self.damaged[str(archive)] = str(error)


def safe_parts(name: str) -> list[str]:
    """The parts of a relative path with `/`, without `.`.

    Raises:
        RowError: If the path is empty, absolute, contains `..`, or has special characters.
    """
    if name.startswith(("/", "\\")) or name[1:2] == ":":
        raise RowError("absolute path", f"{name[:200]!r}: expected a path relative to the image root.")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise RowError("path with '..'", f"{name[:200]!r} may lead out of the image root: expected no '..'.")
    if not parts or UNSAFE.search(name) or any(len(part.encode()) > 255 for part in parts):
        raise RowError("no path", f"{name[:200]!r}: expected names of at most 255 bytes with '/' between them.")
    return parts


def _prefixes(archive: Path, base: Path) -> list[str]:
    folder = os.path.relpath(archive.parent, base).replace(os.sep, "/")
    folder = "" if folder == "." else f"{folder}/"
    return sorted({"", folder.rstrip("/"), archive.stem, f"{folder}{archive.stem}"})


def _tar_members(archive: Path) -> Iterator[tuple[str, str, int, int]]:
    with tarfile.open(archive, "r:") as file:
        while (member := file.next()) is not None:
            file.members.clear()  # otherwise it keeps every header in memory
            if not 0 <= member.size < 2**62:
                raise tarfile.ReadError(f"{member.name!r} claims {member.size} bytes")
            if not member.isdir():
                kind = FILE if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) else LINK
                yield member.name, kind, member.offset_data, member.size


def _zip_members(archive: Path) -> Iterator[tuple[str, str, int, int]]:
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            if not member.is_dir():
                mode = member.external_attr >> 16
                link = stat.S_IFMT(mode) not in (0, stat.S_IFREG)
                kind = SECRET if member.flag_bits & 1 else LINK if link else FILE
                yield member.filename, kind, member.header_offset, member.file_size


def _check_size(place: str, size: int) -> None:
    if size > MAX_IMAGE_BYTES:
        raise RowError(
            "too many bytes", f"{place} is or unpacks to {size:,} bytes, more than the limit of {MAX_IMAGE_BYTES:,}."
        )


# One handle per process, because forked processes must not share them.
@lru_cache(maxsize=4)
def _connection(index: str, process: int) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{index}?mode=ro&immutable=1", uri=True, check_same_thread=False)


@lru_cache(maxsize=4)
def _zip(archive: str, process: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(archive)


@cache
def _descriptor(archive: str, process: int) -> int:
    return os.open(archive, os.O_RDONLY)


def _remove(index: str, process: int) -> None:
    if os.getpid() == process and os.path.exists(index):
        os.remove(index)
