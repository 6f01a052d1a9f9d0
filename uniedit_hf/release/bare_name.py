"""`load_dataset("uniedit-148k")`: what the bare name loads after `import uniedit_hf`.

A name without an organization is a repository of Hugging Face's own, and since datasets 4 no repository holds a
script. So the function of datasets that turns a name into a builder is wrapped, for this one name:

    a folder of that name in the working directory    has priority, as for any name
    data_dir=..., or UNIEDIT_DATA_DIR                 our loading script reads the raw release there
    UNIEDIT_HUB_REPO                                  the Parquet repository of that name on the Hub
    else                                              the authors' release on the Hub, at `revision=...`

No other repository is ever contacted: anyone could register a default name that nobody owns.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType


NAME = "uniedit-148k"
LOADING_SCRIPT = "uniedit_hf.dataset_builder.uniedit_148k"
# Options that decide the rows, besides the script itself.
HELPERS = ("uniedit_hf.schema", "uniedit_hf.images", "uniedit_hf.release.raw", "uniedit_hf.release.image_store")


def add_name(load: ModuleType) -> None:
    """Teaches `datasets.load` the name, and every module of datasets that imported the function from there."""
    original = load.dataset_module_factory

    @functools.wraps(original)
    def dataset_module_factory(path, *args, **options):
        if path != NAME or os.path.isdir(path):
            return original(path, *args, **options)
        revision = options.get("revision")
        data_dir = options.get("data_dir") or os.environ.get("UNIEDIT_DATA_DIR")
        if data_dir and revision is not None:
            raise ValueError(
                f"revision={revision!r} chooses a revision on the Hub, but {NAME!r} is read from the folder "
                f"{data_dir}: leave out one of the two."
            )
        if data_dir:
            return _raw_module(load, data_dir)
        if os.environ.get("UNIEDIT_HUB_REPO"):
            return _hub_module(load, original, args, options)
        return _official_module(load, revision, options.get("cache_dir"))

    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "datasets" and vars(module).get("dataset_module_factory") is original:
            module.dataset_module_factory = dataset_module_factory


def _raw_module(load: ModuleType, data_dir: str):
    data_dir = os.path.abspath(data_dir)
    # data_dir goes into the builder's options, so that every folder has its own cache
    return load.DatasetModule(LOADING_SCRIPT, _fingerprint(data_dir), {"dataset_name": NAME, "data_dir": data_dir})


def _hub_module(load: ModuleType, original, args, options):
    repo = os.environ["UNIEDIT_HUB_REPO"]
    try:
        return original(repo, *args, **options)
    except load.DatasetNotFoundError as error:
        raise load.DatasetNotFoundError(
            f"{NAME!r} stands for the repository {repo!r} in UNIEDIT_HUB_REPO, which cannot be found on the Hub: name "
            "one that `uniedit dataset publish` made, unset the variable to use the authors' release, or pass "
            "data_dir with a folder of that release."
        ) from error


def _official_module(load: ModuleType, revision, cache_dir):
    """The download begins when rows are read, so that listing configurations and splits costs nothing."""
    from datasets import config

    from uniedit_hf.release.official_release import find_official_release

    revision = None if revision is None else str(revision)
    release = find_official_release(revision, cache_dir or config.HF_DATASETS_CACHE)
    options = {"dataset_name": NAME, "data_dir": str(release.folder), "official_commit": release.commit}
    return load.DatasetModule(LOADING_SCRIPT, _fingerprint(str(release.folder)), options)


def _fingerprint(data_dir: str) -> str:
    """A fingerprint of the code that makes rows and of the manifests, so that no cache of datasets is stale."""
    digest = hashlib.sha256()
    for module in (LOADING_SCRIPT, *HELPERS):
        digest.update(Path(find_spec(module).origin).read_bytes())
    for path in _row_files(Path(data_dir)):
        status = path.stat()
        digest.update(f"{path.name}:{status.st_size}:{status.st_mtime_ns};".encode())
    return digest.hexdigest()


def _row_files(folder: Path) -> Iterator[Path]:
    for pattern in ("*.jsonl", "*.parquet", "*/*.parquet"):
        yield from sorted(folder.glob(pattern))
