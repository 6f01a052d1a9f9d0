"""The call cache: every reply is on disk before it is used, so a killed run repeats no call.

Replies are rows of an SQLite file, images are files next to it, named by the hash of their content. One process at a
time can open it; the write-ahead log without shared memory also works on network file systems.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from uniedit_hf.calls.messages import EncodedImage, Reply
from uniedit_hf.files import written_file


# The column and folder names of the first release are kept, so that paid replies stay readable.
SCHEMA = """
CREATE TABLE IF NOT EXISTS reply (
    key BLOB PRIMARY KEY, backend TEXT, model TEXT, text TEXT, picture TEXT, refusal TEXT,
    tokens_in INTEGER, tokens_out INTEGER, money REAL
) WITHOUT ROWID
"""
# Replies that could not be used; one that is set aside keeps its cost and is requested again.
MARKS = "CREATE TABLE IF NOT EXISTS unusable (key BLOB PRIMARY KEY) WITHOUT ROWID"
SET_ASIDE = "UPDATE reply SET key = randomblob(32) WHERE key = ?"
FAILED = "SELECT key FROM reply WHERE backend = ? AND (refusal IS NOT NULL OR key IN (SELECT key FROM unusable))"
READ = "SELECT model, text, picture, refusal, tokens_in, tokens_out FROM reply WHERE key = ?"
WRITE = "INSERT OR IGNORE INTO reply VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
SPENT = "SELECT COUNT(*), COALESCE(SUM(tokens_in + tokens_out), 0), COALESCE(SUM(money), 0) FROM reply"


@dataclass(frozen=True)
class Spent:
    """The cost of replies: calls, tokens and money."""

    calls: int = 0
    tokens: int = 0
    money: float = 0.0


class CallCache:
    """Replies by the hash of the request.

    Args:
        file: The SQLite file; created if missing.
        images: The folder of images, which several caches may share.

    Raises:
        ValueError: If another process has the file open, or it is not a cache.
    """

    def __init__(self, file: Path, images: Path):
        file.parent.mkdir(parents=True, exist_ok=True)
        self.images = images
        self.connection = sqlite3.connect(file, isolation_level=None, timeout=1)
        try:
            self.connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            self.connection.execute("PRAGMA journal_mode = WAL")
            self.connection.execute("PRAGMA synchronous = NORMAL")
            self.connection.execute(SCHEMA)
            self.connection.execute(MARKS)
        except sqlite3.OperationalError as error:
            raise ValueError(
                f"{file} is in use ({error}): expected to be the only run in this folder; wait for the other one or "
                "choose another output_dir."
            ) from error
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{file} is not a call cache ({error}): move it away to start again.") from error

    def get(self, key: bytes) -> Reply | None:
        row = self.connection.execute(READ, (key,)).fetchone()
        if row is None:
            return None
        model, text, image, refusal, tokens_in, tokens_out = row
        if image is not None:
            path = self._path(image)
            if not path.is_file():
                return None  # the image file was deleted: the call is made again
            image = EncodedImage(path.read_bytes())
        return Reply(model, text, image, refusal, tokens_in, tokens_out)

    def put(self, key: bytes, backend: str, reply: Reply, money: float) -> None:
        """Stores a reply; the image first, so that no row refers to a missing file."""
        name = None if reply.image is None else self._keep(reply.image)
        row = (key, backend, reply.model, reply.text, name, reply.refusal, reply.tokens_in, reply.tokens_out, money)
        self.connection.execute(WRITE, row)

    def read_at_last(self, key: bytes, image: EncodedImage) -> None:
        """Adds the image to a reply that could not be read at first."""
        self.connection.execute("UPDATE reply SET picture = ?, text = NULL WHERE key = ?", (self._keep(image), key))

    def mark(self, keys: Iterable[bytes]) -> None:
        """Marks replies as unusable."""
        self.connection.executemany("INSERT OR IGNORE INTO unusable VALUES (?)", [(key,) for key in keys])

    def set_aside(self, keys: Iterable[bytes]) -> None:
        """Forgets replies, so that they are requested again; they stay in the file with their cost."""
        keys = [(key,) for key in keys]
        self.connection.executemany(SET_ASIDE, keys)
        self.connection.executemany("DELETE FROM unusable WHERE key = ?", keys)

    def failed(self, backends: Iterable[str]) -> list[bytes]:
        """Keys of refusals and of replies that could not be used."""
        return [key for name in backends for (key,) in self.connection.execute(FAILED, (name,))]

    def spent(self) -> dict[str, Spent]:
        """The cost of all replies, by backend."""
        rows = self.connection.execute(SPENT.replace("SELECT", "SELECT backend,") + " GROUP BY backend ORDER BY 1")
        return {backend: Spent(*rest) for backend, *rest in rows}

    def close(self) -> None:
        self.connection.close()

    def _keep(self, image: EncodedImage) -> str:
        """Writes the file of an image, and returns its name."""
        path = self._path(image.sha256)
        if not path.exists():
            with written_file(path) as part:
                part.write_bytes(image.data)
        return path.name

    def _path(self, name: str) -> Path:
        return self.images / name[:2] / name
