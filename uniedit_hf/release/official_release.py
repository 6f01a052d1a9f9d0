"""The authors' release on the Hub, downloaded to a folder that our builder reads.

Every revision has its own folder under the cache of datasets. Files are real files there, not links into a cache
of blobs, because the reader refuses links that leave the folder. A download that was interrupted resumes.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import HfHubHTTPError

from uniedit_hf.files import write_text
from uniedit_hf.hub import hub_error


logger = logging.getLogger(__name__)

OFFICIAL_REPO = "Uni-Edit/Train-Data"
FAILURES = (HfHubHTTPError, HTTPError, HFValidationError, OfflineModeIsEnabled, ConnectionError)
OTHER_WAYS = (
    "Pass data_dir with a folder of that release, or set UNIEDIT_HUB_REPO to a repository that `uniedit dataset "
    "publish` made."
)


@dataclass(frozen=True)
class OfficialRelease:
    """One commit of the authors' repository and the folder it is downloaded to.

    Args:
        commit: Hash of the commit.
        folder: The folder of its files.
    """

    commit: str
    folder: Path

    @property
    def _marker(self) -> Path:
        return self.folder / ".cache" / "complete"

    def download(self) -> Path:
        """Downloads the missing files and returns the folder.

        Raises:
            OSError: If the Hub cannot be reached, or the disk is too small.
        """
        if self._marker.is_file():
            return self.folder
        try:
            info = HfApi().dataset_info(OFFICIAL_REPO, revision=self.commit, files_metadata=True)
            size = sum(file.size or 0 for file in info.siblings)
            self._check_disk(size)
            logger.warning(
                "Downloading %s: %d files, %.1f GB, to %s", OFFICIAL_REPO, len(info.siblings), size / 1e9, self.folder
            )
            snapshot_download(OFFICIAL_REPO, repo_type="dataset", revision=self.commit, local_dir=self.folder)
        except FAILURES as error:
            raise OSError(f"{hub_error(OFFICIAL_REPO, 'data set', error)} {OTHER_WAYS}") from error
        self._marker.touch()
        return self.folder

    def _check_disk(self, size: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        there = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        free = shutil.disk_usage(self.folder).free
        if size - there > free:
            raise OSError(
                f"{OFFICIAL_REPO} needs {size / 1e9:.1f} GB in {self.folder}, but {free / 1e9:.1f} GB are free: make "
                "room, or choose another disk with HF_HOME or cache_dir."
            )


def find_official_release(revision: str | None, cache_dir: str | Path) -> OfficialRelease:
    """The release at a revision. Without a network, the commit that this revision had when it was last looked up.

    Args:
        revision: Branch, tag or commit of the repository; `main` by default.
        cache_dir: Folder under which releases are kept.

    Raises:
        OSError: If the Hub cannot be reached, and the revision was never looked up before.
    """
    revision = revision or constants.DEFAULT_REVISION
    root = Path(cache_dir) / "uniedit-148k-official"
    seen = root / "revisions" / revision.replace("/", "--")
    try:
        commit = HfApi().dataset_info(OFFICIAL_REPO, revision=revision).sha
    except FAILURES as error:
        if not seen.is_file() or getattr(getattr(error, "response", None), "status_code", None) == 404:
            raise OSError(f"{hub_error(OFFICIAL_REPO, 'data set', error)} {OTHER_WAYS}") from error
        commit = seen.read_text().strip()
    write_text(seen, commit)
    return OfficialRelease(commit, root / commit)
