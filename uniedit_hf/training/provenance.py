"""The sources of training data, as far as the data sets record them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from datasets import Dataset, IterableDataset

from uniedit_hf.compat import stream_steps


# The files of a stream, and the prepared copies that `load_dataset` keeps, both name repository and revision.
STREAMED = re.compile(r"^hf://datasets/(?P<owner>[^/]+)/(?P<name>[^/@]+)@(?P<revision>[^/]+)/")
PREPARED = re.compile(r"/(?P<owner>[^/]+)___(?P<name>[^/]+)/[^/]+/[^/]+/(?P<revision>[0-9a-f]{40})/[^/]+\.arrow$")


@dataclass(frozen=True)
class DataSource:
    """A data set on the Hub, with the revision that was read if known."""

    id: str
    revision: str | None = None

    @property
    def link(self) -> str:
        """The URL of its page at that revision."""
        page = f"https://huggingface.co/datasets/{self.id}"
        return page if self.revision is None else f"{page}/tree/{self.revision}"


def data_sources(datasets: Sequence[Dataset | IterableDataset], names: Sequence[str] = ()) -> list[DataSource]:
    """The sources of some data sets: first those of the files that `load_dataset` read, then given names that are not
    among them. Local data has no source.
    """
    found: dict[str, DataSource] = {}
    for dataset in datasets:
        for file in _files(dataset):
            if match := STREAMED.search(file) or PREPARED.search(file.replace("\\", "/")):
                name = f"{match['owner']}/{match['name']}"
                found.setdefault(name, DataSource(name, match["revision"]))
    for name in names:
        found.setdefault(name, DataSource(name))
    return list(found.values())


def _files(dataset: Dataset | IterableDataset) -> Iterator[str]:
    if isinstance(dataset, Dataset):
        yield from (each["filename"] for each in dataset.cache_files)
    else:
        for step in stream_steps(dataset):
            yield from (file for file in vars(step).get("kwargs", {}).get("files", ()) if isinstance(file, str))
