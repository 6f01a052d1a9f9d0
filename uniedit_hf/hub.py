"""Downloads from the Hub, and one-sentence errors when a download fails."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


KINDS = {"model": "model", "data set": "dataset"}  # our word -> the Hub's word
DOWNLOAD_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision")


def hub_file(name: str, file: str, kind: str = "model") -> Path | None:
    """A copy of a file of a repository on the Hub, or `None` if the repository has no such file.

    Args:
        name: Id of the repository.
        file: Path in the repository.
        kind: `"model"` or `"data set"`.

    Raises:
        OSError: If the repository does not exist, or cannot be seen or reached.
    """
    try:
        return Path(hf_hub_download(name, file, repo_type=KINDS[kind]))
    except (EntryNotFoundError, HTTPError, HFValidationError) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise hub_error(name, kind, error) from error


def hub_error(name: str, kind: str, error: Exception) -> OSError:
    """The error to raise for a failed request to the Hub, with the remedy.

    Args:
        name: Id of the repository.
        kind: `"model"` or `"data set"`.
        error: The error that a client of the Hub raised; its causes are inspected as well.
    """
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    there = f"{name} is not a local folder"
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return OSError(
            f"{name} is a gated {kind}: ask for access at {_page(name, kind)}, then log in with `hf auth login` or "
            "set HF_TOKEN."
        )
    if any(isinstance(cause, RevisionNotFoundError) for cause in causes):
        return OSError(f"The {kind} {name} has no such revision on the Hub: see {_page(name, kind)} for those it has.")
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return OSError(
            f"{there} and no {kind} that can be seen on the Hub: check the name, or if it is private log in with "
            "`hf auth login` or set HF_TOKEN."
        )
    if any(isinstance(cause, HFValidationError) for cause in causes):
        return OSError(f"{there} and cannot be the name of a {kind} on the Hub: check the path.")
    if constants.is_offline_mode():
        return OSError(
            f"{there}, and HF_HUB_OFFLINE is set but the cache holds no copy of it: unset HF_HUB_OFFLINE to download "
            "it, or name a local folder."
        )
    return OSError(
        f"{there}, and the Hub at {constants.ENDPOINT} could not be reached: connect to the network, name a local "
        "folder, or set HF_HUB_OFFLINE=1 to use a copy in the cache."
    )


def _page(name: str, kind: str) -> str:
    return f"{constants.ENDPOINT}/{'' if kind == 'model' else 'datasets/'}{name}"


# Extension of a file of rows -> the loader of datasets that reads it.
ROW_FILES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def load_split(
    name: str,
    config: str | None = None,
    split: str = "train",
    streaming: bool = False,
    columns: Sequence[str] | None = None,
):
    """A split of a data set, from a folder, a file of rows or the Hub.

    Args:
        name: Folder, Hub id, or a JSON Lines, CSV or Parquet file. Image paths in a file are relative to its folder.
        config: Configuration of a folder or a repository.
        split: A file has the split `train`, or a part of it such as `train[:100]`.
        streaming: Whether rows are read as they are needed.
        columns: Columns to read from a stream of Parquet, as far as it has them; files may differ in other columns.

    Raises:
        OSError: If it does not exist or the Hub cannot be reached.
        ValueError: If its files cannot be read.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    path = Path(name).expanduser()
    loader = ROW_FILES.get(path.suffix.lower())
    if not path.exists() and (loader or path.is_absolute() or name.startswith((".", "~"))):
        raise OSError(f"There is no file or folder {name}: check the path of the data.")
    try:
        if loader is None or not path.is_file():
            rows = load_dataset(name, config, split=split, streaming=streaming)
            if not streaming or columns is None or not _holds_parquet(rows):
                return rows
            kept = [column for column in rows.features if column in columns]
            return load_dataset(name, config, split=split, streaming=True, columns=kept)
        if config is not None:
            raise ValueError(f"{name} is a file, which has no configuration {config!r}: leave out dataset_config.")
        rows = load_dataset(loader, data_files=str(path), split=split, streaming=streaming)
        return _with_image_paths(rows, path.parent)
    except DatasetNotFoundError:
        raise  # already one sentence of ours
    except ConnectionError as error:
        raise hub_error(name, "data set", error) from error
    except DatasetGenerationError as error:
        raise ValueError(f"The data set {name} cannot be read: {error.__cause__ or error}") from error


def _holds_parquet(rows) -> bool:
    """Whether a stream reads Parquet, where columns can be selected before reading."""
    return rows.features is not None and rows.info.builder_name == "parquet"


def _with_image_paths(rows, folder: Path):
    """Makes image paths absolute, and ids that CSV reads as numbers text."""
    first = next(iter(rows), {})
    images = [name for name, value in first.items() if name.endswith("image") and isinstance(value, str)]
    numbered = isinstance(first.get("id"), int)

    def readable(row: dict) -> dict:
        paths = {name: row[name] and str(folder.absolute() / row[name]) for name in images}
        return paths | ({"id": str(row["id"])} if numbered else {})

    if numbered and rows.features is not None:  # a map would turn the text into a number again
        from datasets import Value

        rows = rows.cast_column("id", Value("string"))
    return rows.map(readable) if images or numbered else rows
