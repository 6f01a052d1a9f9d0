"""The page as a Space on the Hub: its files, the package beside them, and the two models named in the card."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, metadata_load, metadata_save

import uniedit_hf
from uniedit_hf import dataset_builder


PACKAGE = Path(uniedit_hf.__file__).parent
DEMO = Path(__file__).parent
SPACE_FILES = ("app.py", "requirements.txt", "README.md")
NOT_NEEDED = shutil.ignore_patterns("__pycache__", "*.pyc", "*.pyi")


def deploy(
    repo_id: str,
    base: str,
    tuned: str,
    *,
    hardware: str | None = "zero-a10g",
    private: bool = False,
    api: HfApi | None = None,
) -> str:
    """Creates the Space if it does not exist, uploads it with the models set, and requests hardware.

    Args:
        repo_id: `USER/NAME` of the Space.
        base: Hub id of the base model.
        tuned: Hub id of the tuned model.
        hardware: The Hub's name of the hardware; `None` changes nothing.
        private: Whether a new Space is private.
        api: The Hub; that of the environment by default.

    Returns:
        The address of the Space.

    Raises:
        ValueError: If a model is a local folder, which a Space cannot read.
        OSError: If the Space's files are not there, as outside a clone of the repository.
    """
    for name in (base, tuned):
        if Path(name).exists() or name.count("/") != 1:
            raise ValueError(
                f"{name} is not a model on the Hub, and a Space cannot read local folders: push it first, "
                "with trainer.push_to_hub() or hf upload, and give its id."
            )
    api = api or HfApi()
    with tempfile.TemporaryDirectory() as folder:
        lay_out(Path(folder), base, tuned)
        address = str(api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True))
        api.upload_folder(
            repo_id=repo_id,
            repo_type="space",
            folder_path=folder,
            delete_patterns=["*.py", "uniedit_hf/*", "demo/*"],
            commit_message=f"uniedit_hf {uniedit_hf.__version__}: {base} and {tuned}",
        )
    if hardware is not None:
        api.request_space_hardware(repo_id, hardware)
    return address


def lay_out(folder: Path, base: str, tuned: str) -> None:
    """Writes the Space's files into an empty folder: its own, the demo, and the package as it is installed here."""
    for name in SPACE_FILES:
        source = DEMO.parent / name
        if not source.is_file():
            raise OSError(f"{source} is missing: deploy from a clone of the repository, which has the Space's files.")
        shutil.copy(source, folder)
    shutil.copytree(DEMO, folder / "demo", ignore=NOT_NEEDED)
    shutil.copytree(PACKAGE, folder / "uniedit_hf", ignore=shutil.ignore_patterns("__pycache__", "demo"))
    # in the wheel the data set's builder lies in the package, in a clone beside it
    builder = Path(dataset_builder.__file__).parent
    shutil.copytree(builder, folder / "uniedit_hf" / "dataset_builder", ignore=NOT_NEEDED, dirs_exist_ok=True)
    metadata_save(folder / "README.md", metadata_load(folder / "README.md") | {"models": [base, tuned]})
