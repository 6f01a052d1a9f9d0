"""Reads the images that rows refer to: by path, as bytes, or as members of archives. Nothing is downloaded, except for
files of a requested data set on the Hub.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfFileSystem

from uniedit_hf.calls.messages import EncodedImage
from uniedit_hf.images import URL
from uniedit_hf.randomness import derive_seed
from uniedit_hf.release.image_store import ImageStore
from uniedit_hf.row_error import RowError
from uniedit_hf.schema import stable_id


class SourceImages:
    """Reads images.

    Args:
        root: The folder that paths are relative to.
        archives: Tar and zip files.
        of_dataset: Whether rows come from a data set, which refers to its own files by absolute paths, or on the Hub.
    """

    def __init__(self, root: Path, archives: Sequence[Path] = (), *, of_dataset: bool = False):
        for archive in archives:
            if not archive.is_file():
                raise ValueError(f"There is no archive {archive}: check source.archives.")
        self.store = ImageStore(root, archives, base=root)
        for archive, fault in self.store.damaged.items():
            raise ValueError(
                f"{archive} cannot be read as {'zip' if archive.lower().endswith('.zip') else 'tar'} ({fault}): "
                "expected a zip file or a tar file without compression; check source.archives."
            )
        self.of_dataset = of_dataset

    def read(self, image: Any) -> EncodedImage:
        """Reads the image that a value of a row refers to. Raises `RowError`."""
        if isinstance(image, dict) and image.get("bytes") is not None:
            image = image["bytes"]
        if isinstance(image, bytes):
            return EncodedImage(image)
        path = image.get("path") if isinstance(image, dict) else image
        if not isinstance(path, str) or not path:
            raise RowError("no image", f"the image is {str(path)[:40]!r}: expected a path or encoded bytes.")
        try:
            if self.of_dataset and path.startswith("hf://"):
                return EncodedImage(HfFileSystem().read_bytes(path))
            if self.of_dataset and Path(path).is_absolute():
                return EncodedImage(Path(path).read_bytes())
        except OSError as error:
            raise RowError("image not found", f"{path!r} cannot be read: {error.strerror or error}.") from error
        if URL.match(path):
            raise RowError(
                "image is a URL",
                f"{path[:80]!r}: nothing is fetched here; download the image and give its path.",
            )
        try:
            return EncodedImage(self.store.read(path))
        except OSError as error:
            raise RowError("image not found", f"{path!r} cannot be read: {error.strerror}.") from error


def shard_of(image: Any, shards: int) -> int:
    """The shard of a row: all rows about one image are in the same shard."""
    if shards == 1:
        return 0
    if isinstance(image, dict):
        image = image["bytes"] if image.get("bytes") is not None else image.get("path")
    name = stable_id(image) if isinstance(image, (bytes, str)) else repr(image)
    return derive_seed("shard", name) % shards
