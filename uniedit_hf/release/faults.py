"""What is wrong with a row of a release, where, and how often."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


class RowFault(ValueError):
    """A row that no row of the data set can be made of.

    Args:
        reason: What is wrong in a few words that can be counted.
        detail: What was found here, what was expected and the remedy.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"

    def at(self, file: str | os.PathLike, line: int) -> FaultyRow:
        """The fault with its place."""
        return FaultyRow(os.path.basename(file), line, self.reason, self.detail)


@dataclass(frozen=True)
class FaultyRow:
    """Where a fault was found: file and line, counted from 1 (the row, in a Parquet file)."""

    file: str
    line: int
    reason: str
    detail: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}: {self.detail}"


def fault_table(faults: Iterable[FaultyRow], limit: int = 20) -> str:
    """The faults as text: how many of each reason, then the first `limit` with file, line and reason."""
    faults = list(faults)
    if not faults:
        return "No faulty rows."
    counts = Counter(fault.reason for fault in faults)
    lines = ["rows  reason", *(f"{count:4}  {reason}" for reason, count in counts.most_common()), ""]
    lines += ["file:line  reason: what was found", *map(str, faults[:limit])]
    if len(faults) > limit:
        lines.append(f"... and {len(faults) - limit} more")
    return "\n".join(lines)
