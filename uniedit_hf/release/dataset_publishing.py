"""Publishes a built data set on the Hub: repository, card, files, tag."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HTTPError

from uniedit_hf.dataset_builder.uniedit_148k import VERSION
from uniedit_hf.release.dataset_card import Terms, write_card
from uniedit_hf.release.statistics import missing_files


# No other files are uploaded: lists of faults and reports name local files.
PUBLISHED = ["README.md", "LICENSE.md", "assets/*", "*/*.parquet"]


def publish(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    tag: str = f"v{VERSION}",
    terms: Terms | None = None,
    api: HfApi | None = None,
) -> str:
    """Creates the repository if it does not exist, writes the card, uploads and tags the revision.

    The Hub identifies files by their contents, so an upload that was stopped resumes with the missing files, and
    publishing twice changes nothing. Parquet files of an earlier release that are no longer in the
    folder are deleted from the newest revision; its tag keeps them.

    Args:
        folder: Folder made by `build`. repo_id: `ORG/NAME`.
        private: Whether a new repository is private.
        tag: Tag of the revision.
        terms: License terms for the card.
        api: Client of the Hub; configured by the environment by default.

    Returns:
        The commit of the tag.

    Raises:
        ValueError: If there is no built data set, or the tag already names another revision.
        OSError: If the Hub could not be reached, or refused it.
    """
    folder = Path(folder)
    missing = missing_files(folder)
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise ValueError(
            f"{folder} is incomplete: {missing[0]} is missing{more}. Run `uniedit dataset build` again; it resumes."
        )
    try:
        return _upload(api or HfApi(), folder, repo_id, private, tag, terms)
    except HTTPError as error:
        if isinstance(error, OSError):
            raise  # the Hub answered with the reason
        raise OSError(
            f"The Hub at {constants.ENDPOINT} could not be reached to publish {repo_id}: connect to the network and "
            "run the same command again, which resumes with the missing files."
        ) from error


def _upload(api: HfApi, folder: Path, repo_id: str, private: bool, tag: str, terms: Terms | None) -> str:
    api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    write_card(folder, repo_id, terms)
    api.upload_folder(
        repo_id=repo_id,
        repo_type="dataset",
        folder_path=folder,
        allow_patterns=PUBLISHED,
        delete_patterns=["*/*.parquet"],
        commit_message=f"Data set {tag}",
    )
    refs = api.list_repo_refs(repo_id, repo_type="dataset")
    commit = next(branch.target_commit for branch in refs.branches if branch.name == "main")
    tagged = next((each.target_commit for each in refs.tags if each.name == tag), None)
    if tagged is None:
        api.create_tag(repo_id, tag=tag, revision=commit, repo_type="dataset")
    elif tagged != commit:
        raise ValueError(
            f"Uploaded to {repo_id}, but its tag {tag} names an earlier revision and tags do not move: run the same "
            "command again with another --tag."
        )
    return commit
