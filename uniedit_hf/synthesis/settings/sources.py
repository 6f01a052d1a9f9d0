"""Where questions come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from uniedit_hf.calls.section import Section


class Conversations(Section):
    """JSONL in the style of LLaVA-OneVision: `images`, `messages`, `subject`; every turn is a question.

    Args:
        files: JSONL files.
        image_root: The folder, or with `archives` the place of the archives, that image paths are relative to; by
            default the folder of the first file.
        archives: Tar and zip files with images.
        license: The licence of the images.
        limit: Read so many lines at most.
    """

    kind: Literal["conversations"]
    files: list[Path] = Field(min_length=1)
    image_root: Path | None = None
    archives: list[Path] = []
    license: str | None = None
    limit: PositiveInt | None = None


class Rows(Section):
    """Rows with a question, an answer and an image: JSONL or Parquet files, or a data set that `load_dataset` knows.

    Args:
        files: JSONL or Parquet files. Either these or `dataset`.
        dataset: A repository or folder; a repository is fetched from the Hub.
        config: Configuration of the data set.
        split: Split of the data set.
        columns: Our name -> name of the column; of `image`, `question`, `answer` and, if any, `category`, `source`
            and `license`.
        image_root: What image paths are relative to; by default the folder of the first file.
        archives: Tar and zip files with images.
        license: The licence of the images, where no column says it.
        limit: Read so many rows at most.
    """

    kind: Literal["rows"]
    files: list[Path] = []
    dataset: str | None = None
    config: str | None = None
    split: str = "train"
    columns: dict[Literal["image", "question", "answer", "category", "source", "license"], str] = {}
    image_root: Path | None = None
    archives: list[Path] = []
    license: str | None = None
    limit: PositiveInt | None = None

    @model_validator(mode="after")
    def _one_origin(self):
        if bool(self.files) == bool(self.dataset):
            raise ValueError("needs either files or dataset")
        return self


class EasyVqa(Section):
    """The training questions of easy-VQA.

    Args:
        limit: Read so many questions at most.
    """

    kind: Literal["easy_vqa"]
    limit: PositiveInt | None = None


Source = Annotated[Conversations | Rows | EasyVqa, Field(discriminator="kind")]
