"""Settings of the sources of questions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from uniedit_hf.calls.section import Section


class Conversations(Section):
    """JSONL in the style of LLaVA-OneVision: `images`, `messages`, `subject`; every turn is a question.

    Args:
        files: JSONL files.
        image_root: The folder, or with `archives` the place of the archives, that image paths are relative to; by
            default the folder of the first file.
        archives: Tar and zip files with images.
        license: The license of the images.
        limit: Maximum number of lines to read.
    """

    kind: Literal["conversations"]
    files: list[Path] = Field(min_length=1)
    image_root: Path | None = None
    archives: list[Path] = []
    license: str | None = None
    limit: PositiveInt | None = None


class Rows(Section):
    """Rows with a question, an answer and an image: JSONL or Parquet files, or a data set for `load_dataset`.

    Args:
        files: JSONL or Parquet files; give either these or `dataset`.
        dataset: A repository or folder; a repository is downloaded from the Hub.
        config: Configuration of the data set.
        split: Split of the data set.
        columns: Our name -> name of the column, for `image`, `question`, `answer` and optionally `category`, `source`
            and `license`.
        image_root: The folder that image paths are relative to; by default that of the first file.
        archives: Tar and zip files with images.
        license: The license of the images, if no column gives it.
        limit: Maximum number of rows to read.
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
        limit: Maximum number of questions to read.
    """

    kind: Literal["easy_vqa"]
    limit: PositiveInt | None = None


class PlannedEdits(Section):
    """`balance.size` edits of easy-VQA's training images: category, depth and truth of the condition of each are drawn
    first, by `balance.shares` and `instruct`; then questions are tried in turn until one becomes such an edit.

    Args:
        asking: How edits are asked for: by a question that has to be answered ("question"), by the resulting edit with
            its reasons ("answer"), by the edit alone ("plain"), or by a plan that says which conditions hold and what
            to do: by facts ("plan"), or by questions and answers ("thinking"). Everything except the instruction
            stays the same.
        limit: Maximum number of questions to use.
    """

    kind: Literal["planned_edits"]
    asking: Literal["question", "answer", "plain", "plan", "thinking"] = "question"
    limit: PositiveInt | None = None


class PlainEdits(Section):
    """One plain edit ("make it green.") of the source of every row of a data set of planned edits: a control with the
    same images.

    Args:
        of: The folder of its Parquet files, such as the `dataset` of a run.
    """

    kind: Literal["plain_edits"]
    of: Path

    @property
    def files(self) -> list[Path]:
        return sorted(self.of.glob("*.parquet"))

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows with the columns that an edit starts from.

        Raises:
            ValueError: If there is no data set.
        """
        from uniedit_hf.synthesis.sources.rows import rows_of_files

        if not self.files:
            raise ValueError(f"There are no Parquet files in {self.of}: check source.of.")
        yield from rows_of_files(self.files, ["id", "source_image", "license"])


SMALL_WORLD_SOURCES = (EasyVqa, PlannedEdits, PlainEdits)
Source = Annotated[Conversations | Rows | EasyVqa | PlannedEdits | PlainEdits, Field(discriminator="kind")]
