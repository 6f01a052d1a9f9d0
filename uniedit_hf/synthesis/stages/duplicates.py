"""Drops questions and instructions that the same data set already has. The indices are on disk, so memory does not
grow with the data set."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import numpy as np

from uniedit_hf.release.decontamination import MAX_DISTANCE, normalised
from uniedit_hf.schema import stable_id
from uniedit_hf.synthesis.records import Draft, Rejection, record_id


STAGE = "duplicates"
# Two hashes of 256 bits that differ in at most 12 bits agree in at least one of 13 pieces.
PIECES = MAX_DISTANCE + 1
PIECE_OF_BIT = np.arange(256) * PIECES // 256

TABLES = """
CREATE TABLE edit (id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE question (id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE image (number INTEGER PRIMARY KEY, hash BLOB, id TEXT);
CREATE TABLE piece (key BLOB, number INTEGER, PRIMARY KEY (key, number)) WITHOUT ROWID;
CREATE TABLE instruction (image BLOB, text TEXT);
CREATE INDEX instruction_of_image ON instruction (image);
"""

# Bounds the time per row for an image with thousands of questions.
LATEST = "SELECT text FROM instruction WHERE image = ? ORDER BY rowid DESC LIMIT 200"


class SeenBefore:
    """Remembers drafts and drops duplicates. It starts empty; a resumed run fills it again in the same order.

    Args:
        file: The file of the index; replaced if it exists.
        similarity: Two instructions for one image with at least this share of common words are near duplicates; with
            None they are not compared.
    """

    def __init__(self, file: Path, similarity: float | None):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        self.file, self.similarity = file, similarity
        self.connection = sqlite3.connect(file, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = OFF")
        self.connection.execute("PRAGMA synchronous = OFF")
        self.connection.executescript(TABLES)
        self.connection.execute("BEGIN")  # never committed: another run does not use it

    def question(self, draft: Draft) -> Draft | Rejection:
        """The draft, unless the same question was asked about the same image, or about a similar image with the same
        answer. (If the answers differ, the images differ in what is asked.)
        """
        key = stable_id(draft.hashes[0], normalised(draft.question))
        if self._run("SELECT 1 FROM question WHERE id = ?", key):
            return draft.rejected(
                STAGE, "duplicate question", "the same question was asked about the same image before."
            )
        if draft.hashes[1] is not None and (like := self._looks_like(draft)):
            return draft.rejected(
                STAGE, "near-duplicate image", f"the same question was asked about the image of {like}."
            )
        self._run("INSERT INTO question VALUES (?)", key)
        return draft

    def instruction(self, draft: Draft) -> Draft | Rejection:
        """The draft, unless the identical edit exists, or one of the latest instructions for its image has nearly the
        same words.
        """
        edit = record_id(draft)
        if self._run("SELECT 1 FROM edit WHERE id = ?", edit):
            return draft.rejected("screen", "duplicate edit", "the same edit was drawn before.")
        self._run("INSERT INTO edit VALUES (?)", edit)
        if self.similarity is None:
            return draft
        words = set(re.findall(r"\w+", draft.instruction.lower()))
        image = draft.hashes[0]
        for (text,) in self._run(LATEST, image):
            others = set(text.split())
            common = len(words & others)
            if common >= self.similarity * (len(words) + len(others) - common):
                return draft.rejected("screen", "near-duplicate instruction", f"it is like {text[:200]!r}.")
        self._run("INSERT INTO instruction VALUES (?, ?)", image, " ".join(sorted(words)))
        return draft

    def close(self) -> None:
        self.connection.close()
        self.file.unlink(missing_ok=True)

    def _looks_like(self, draft: Draft) -> str | None:
        """The id of an earlier draft with the same question and a similar image; if there is none, the draft is
        remembered.
        """
        hashed = np.frombuffer(draft.hashes[1], np.uint64)
        keys = _pieces(draft.hashes[1], f"{normalised(draft.question)}\n{normalised(draft.answer or '')}")
        marks = ",".join("?" * len(keys))
        query = f"SELECT hash, id FROM image WHERE number IN (SELECT number FROM piece WHERE key IN ({marks}))"
        for other, draft_id in self._run(query, *keys):
            if int(np.bitwise_count(hashed ^ np.frombuffer(other, np.uint64)).sum()) <= MAX_DISTANCE:
                return draft_id
        number = self.connection.execute(
            "INSERT INTO image (hash, id) VALUES (?, ?)", (draft.hashes[1], draft.id)
        ).lastrowid
        self.connection.executemany("INSERT OR IGNORE INTO piece VALUES (?, ?)", [(key, number) for key in keys])
        return None

    def _run(self, query: str, *values) -> list[tuple]:
        return self.connection.execute(query, values).fetchall()


def _pieces(hashed: bytes, question: str) -> list[bytes]:
    """A key for every piece of a hash, of the same question and answer."""
    bits = np.unpackbits(np.frombuffer(hashed, np.uint8))
    return [
        bytes.fromhex(stable_id(question, str(piece), np.packbits(bits[PIECE_OF_BIT == piece]).tobytes()))
        for piece in range(PIECES)
    ]
