"""What was read from a judge's reply."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Marks:
    """Marks by name, or why there are none. A reply that cannot be read has no marks; it never counts as a number.

    Args:
        marks: By name, e.g. `{"consistency": 2}`.
        problem: What is wrong with the reply, or "".
    """

    marks: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""

    @property
    def status(self) -> str:
        """`"ok"` or `"parse_error"`."""
        return "parse_error" if self.problem else "ok"


def mean(values: Iterable[float]) -> float | None:
    """The mean, or `None` of nothing."""
    values = list(values)
    return sum(values) / len(values) if values else None
