"""What the Hub of the tests keeps: repositories with their commits, and files by their contents."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hub import Fault


@dataclass(frozen=True)
class StoredFile:
    """A file of a commit: its contents are a blob with the name `sha256`."""

    sha256: str
    size: int
    large: bool
    git_id: str

    @property
    def tag(self) -> str:
        return self.sha256 if self.large else self.git_id


@dataclass(frozen=True)
class Commit:
    id: str
    parent: str | None
    files: dict[str, StoredFile]
    title: str
    date: str


@dataclass
class Repository:
    kind: str
    id: str
    private: bool
    gated: bool = False
    hardware: str | None = None
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def add_commit(self, branch: str, files: dict[str, StoredFile], title: str) -> Commit:
        parent = self.branches.get(branch)
        number = hashlib.sha1(f"{self.kind}{self.id}{parent}{title}{len(self.commits)}".encode()).hexdigest()
        commit = Commit(number, parent, files, title, now())
        self.commits[number] = commit
        self.branches[branch] = number
        return commit

    def commit(self, revision: str) -> Commit:
        number = self.branches.get(revision) or self.tags.get(revision) or revision
        if number not in self.commits:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[number]


class HubError(Exception):
    def __init__(self, status: int, code: str = "", message: str = ""):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class HubState:
    """Repositories, blobs on disk, faults and the log of requests."""

    def __init__(self, folder: Path):
        self.blobs = folder / "blobs"
        self.blobs.mkdir(parents=True, exist_ok=True)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.faults: list[Fault] = []
        self.requests: list[dict[str, Any]] = []
        self.lock = threading.RLock()
        self.released = threading.Event()

    def store(self, data: bytes, large: bool) -> StoredFile:
        digest = hashlib.sha256(data).hexdigest()
        unfinished = self.blobs / f"{digest}.{threading.get_ident()}"
        unfinished.write_bytes(data)
        unfinished.replace(self.blobs / digest)
        return StoredFile(digest, len(data), large, hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest())

    def create(self, kind: str, name: str, private: bool) -> Repository:
        repository = self.repositories[kind, name] = Repository(kind, name, private)
        repository.add_commit(
            "main", {".gitattributes": self.store(b"*.parquet filter=lfs\n", False)}, "initial commit"
        )
        return repository


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
