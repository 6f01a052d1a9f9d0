"""Checks that stored tensors are those of the model that a configuration describes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence


def check_filled(
    found: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]], source: str | os.PathLike
) -> None:
    """Compares names and shapes.

    Args:
        found: Shapes of the stored tensors by name.
        expected: Those of the model.
        source: Name of the checkpoint in errors.

    Raises:
        ValueError: If a tensor is missing, unknown or of a wrong shape; names the first five.
    """
    names = sorted(found.keys() | expected.keys())
    wrong = [name for name in names if list(found.get(name, [None])) != list(expected.get(name, [None]))]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"{source} does not fill the model its configuration describes: {', '.join(wrong[:5])}{more} are missing, "
            "unknown or of a wrong shape."
        )
