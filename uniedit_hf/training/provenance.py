"""Where training data came from, as far as the data set itself knows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


ON_HUB = re.compile(r"^hf://datasets/(?P<id>[^/]+/[^/@]+)@(?P<revision>[^/]+)/")


@dataclass(frozen=True)
class DataSource:
    """A data set on the Hub, at the revision that was read if that is known."""

    id: str
    revision: str | None = None

    @property
    def link(self) -> str:
        """Its page at that revision."""
        page = f"https://huggingface.co/datasets/{self.id}"
        return page if self.revision is None else f"{page}/tree/{self.revision}"


def data_sources(datasets: Sequence, names: Sequence[str] = ()) -> list[DataSource]:
    """The sources of some data sets: what the files were that `load_dataset` read, and then the names that were given
    and are not among them. Data of this machine has no source."""
    found: dict[str, DataSource] = {}
    for dataset in datasets:
        for file in dataset.info.download_checksums or {}:
            if match := ON_HUB.match(file):
                found.setdefault(match["id"], DataSource(match["id"], match["revision"]))
    for name in names:
        found.setdefault(name, DataSource(name))
    return list(found.values())
