"""Data sets of the Hub or of a folder, a row at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from datasets import IterableDataset


def stream(dataset: str, config: str | None, split: str, where: str) -> IterableDataset:
    """The rows of a split.

    Args:
        dataset: A repository or a folder.
        config: Its configuration.
        split: Its split.
        where: The settings that name it, for errors.

    Raises:
        ValueError: It cannot be loaded.
    """
    from datasets import load_dataset

    try:
        return load_dataset(dataset, config, split=split, streaming=True)
    except (OSError, ValueError) as error:
        found = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"The data set {dataset!r} ({split}) cannot be loaded ({found}): check {where}, and the network if it is "
            "on the Hub."
        ) from error
