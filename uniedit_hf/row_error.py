"""`RowError`: a row that cannot be used, while training or while a data set is built."""

from __future__ import annotations

import os
from typing import Any


class RowError(ValueError):
    """A row that cannot become a sample, or a row of a data set. Callers stop at it or set it aside.

    Args:
        reason: The error, in a sentence; or in a few words, to be counted, with a `detail`.
        detail: Found and expected value, and the remedy.
        row_id: The `id` of the row; empty if unknown.
        file: The name of the file it was read from.
        line: Its line from 1 (for Parquet, its row).
    """

    def __init__(self, reason: str, detail: str = "", row_id: str = "", file: str = "", line: int = 0):
        super().__init__(reason, detail, row_id, file, line)
        self.reason = reason
        self.detail = detail
        self.row_id = row_id
        self.file = file
        self.line = line

    def __str__(self) -> str:
        if not self.detail:
            return f"Row {self.row_id!r}: {self.reason}"
        place = f"{self.file}:{self.line}: " if self.file else ""
        return f"{place}{self.reason}: {self.detail}"

    def at(self, file: str | os.PathLike, line: int) -> RowError:
        """The same error with the place of the row."""
        return RowError(self.reason, self.detail, self.row_id, os.path.basename(file), line)

    def record(self) -> dict[str, Any]:
        """The error as JSON; `RowError(**record)` reads it."""
        return {"file": self.file, "line": self.line, "reason": self.reason, "detail": self.detail}
