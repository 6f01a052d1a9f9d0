"""The loading script of `uniedit-148k`: one `datasets` builder for every way in.

It reads a raw release (`uniedit_hf.release.raw` says which layouts): to build the Parquet that is published, behind
`load_dataset("uniedit-148k", data_dir=...)` after `import uniedit_hf`, and as a true script on datasets 3, whose
parser wants one import a line and no relative ones:

    load_dataset("dataset_builder/uniedit_148k.py", data_dir="raw", trust_remote_code=True)

Everyone else reads the published Parquet and needs neither this file nor our package.
"""

import logging
import os
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from uniedit_hf.images import ImageError, open_image
from uniedit_hf.release.image_store import ImageStore
from uniedit_hf.release.official_release import OfficialRelease
from uniedit_hf.release.raw import CONFIGS, find_release, read_lines, read_table
from uniedit_hf.row_error import RowError
from uniedit_hf.schema import TASK_CATEGORIES, row_features, stable_id


logger = logging.getLogger(__name__)

# Counts as a change of the data in caches: raise it whenever rows come out differently.
VERSION = "1.0.0"

# One part is what a process or a data loader's worker takes, and one file of the Parquet release.
ROWS_PER_PART = 512
# Also the rows of a Parquet row group: two images of 1024 pixels a row make some 50 MB.
ROWS_PER_TABLE = 32

DESCRIPTION = "Intelligent image edits: instructions that have to be understood before anything can be drawn."
CITATION = """@article{uniedit2026,
  title   = {Uni-Edit: Intelligent Editing Is A General Task For Unified Model Tuning},
  journal = {arXiv preprint arXiv:2605.21487},
  year    = {2026}
}"""
HOMEPAGE = "https://arxiv.org/abs/2605.21487"

# The official pipeline writes this where its model gave no instruction.
NO_INSTRUCTION = "no_instr"
# The columns of Parquet that every row needs.
NEEDED = ("id", "source_image", "instruction", "target_image")


@dataclass
class UniEdit148kConfig(datasets.BuilderConfig):
    """Options of the builder.

    Args:
        manifests: Names of the JSONL manifests below `data_dir`; by default those with the configuration's name in it.
        image_root: The folder that image paths are relative to; `data_dir` by default.
        columns: The columns to keep, all by default.
        filters: Rows to keep, in the form of `pyarrow.parquet.filters_to_expression`.
        strict: Raise at the first invalid row; by default it is skipped and logged.
        official_commit: Commit of the authors' repository to download to `data_dir` first.
    """

    manifests: list[str] | None = None
    image_root: str | None = None
    columns: list[str] | None = None
    filters: list | None = None
    strict: bool = False
    official_commit: str | None = None


class UniEdit148k(datasets.ArrowBasedBuilder):
    """Rows of a raw release in the row schema."""

    VERSION = datasets.Version(VERSION)
    BUILDER_CONFIG_CLASS = UniEdit148kConfig
    BUILDER_CONFIGS = [
        UniEdit148kConfig(name="148k", version=VERSION, description="All edits of the paper."),
        UniEdit148kConfig(name="40k", version=VERSION, description="The selection that the paper tunes BAGEL on."),
    ]
    DEFAULT_CONFIG_NAME = "148k"

    def _info(self):
        features = row_features()
        unknown = [name for name in self.config.columns or () if name not in features]
        if unknown:
            raise ValueError(f"There is no column {unknown[0]!r}: the columns are {', '.join(features)}.")
        if self.config.columns is not None:
            features = datasets.Features({name: features[name] for name in features if name in self.config.columns})
        return datasets.DatasetInfo(
            description=DESCRIPTION, features=features, homepage=HOMEPAGE, citation=CITATION, version=VERSION
        )

    def _split_generators(self, dl_manager):
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"parts": self.parts(split)})
            for split in self.release.splits(self.config.name)
        ]

    def _generate_tables(self, parts):
        schema = row_features()
        keep = None if self.config.filters is None else pq.filters_to_expression(self.config.filters)
        number = 0
        for part in parts:
            rows = self.rows(part)
            while batch := list(islice(rows, ROWS_PER_TABLE)):
                table = pa.Table.from_pylist([schema.encode_example(row) for row in batch], schema.arrow_schema)
                table = table if keep is None else table.filter(keep)
                yield number, table if self.config.columns is None else table.select(list(self.info.features))
                number += 1

    @cached_property
    def release(self):
        """The release found in `data_dir`."""
        if self.config.data_dir is None:
            raise ValueError(
                "The loading script reads a raw release: pass its folder as data_dir, or load the published Parquet "
                "by the name of its repository."
            )
        if self.config.official_commit is not None:
            OfficialRelease(self.config.official_commit, Path(self.config.data_dir)).download()
        names = self.config.manifests
        name = self.config.name
        own = CONFIGS[0] if name in CONFIGS else name
        return find_release(self.config.data_dir, None if names is None else {name: names}, own)

    @cached_property
    def images(self):
        """The images of the release."""
        root = self.release.source if self.config.image_root is None else Path(self.config.image_root)
        return ImageStore(root, self.release.archives, base=self.release.source)

    def parts(self, split):
        """The parts of a split, in order."""
        return self.release.parts(self.config.name, split, ROWS_PER_PART)

    def rows(self, part):
        """The good rows of a part; the others are logged, or raised if `strict`."""
        for line, row in read_part(part, self.images):
            if not isinstance(row, RowError):
                yield row
            elif self.config.strict:
                raise ValueError(f"{row.at(part.file, line)} Correct the row, or leave out strict to skip it.")
            else:
                logger.warning("Left out %s", row.at(part.file, line))


def read_part(part, images):
    """The rows of a part: number of the line from 1, and the row in the row schema or the `RowError`.

    Args:
        part: A `uniedit_hf.release.raw.Part`.
        images: The `ImageStore` of the release.
    """
    for line, entry in read_table(part) if part.is_table else read_lines(part):
        try:
            if isinstance(entry, RowError):
                raise entry
            row = checked_row(entry) if part.is_table else official_row(entry, images)
        except RowError as fault:
            row = fault
        yield line, row


def official_row(entry, images):
    """A line of an official manifest as a row. Missing values are null.

    Raises:
        RowError: If a required value is missing, or an image cannot be used.
    """
    instruction = _text(entry, "edit_instruction", required=True)
    if instruction.strip() == NO_INSTRUCTION:
        raise RowError("no instruction", f"edit_instruction is the official pipeline's placeholder {instruction!r}.")
    names = [_text(entry, key, required=True) for key in ("image_path", "output_image_path")]
    source, target = (images.read(name) for name in names)
    source_size, target_size = (_size(data, name) for data, name in zip((source, target), names))
    return {
        # Of contents, not of names: the same in folders and archives, and in both configurations.
        "id": stable_id(source, instruction, target),
        "source_image": {"bytes": source, "path": os.path.basename(names[0])},
        "instruction": instruction,
        "target_image": {"bytes": target, "path": os.path.basename(names[1])},
        "task_category": _category(_text(entry, "task_category")),
        "question": _text(entry, "original_question"),
        "answer": _text(entry, "process_answer") or _text(entry, "original_answer"),
        "variant": None,
        "source": _text(entry, "subject"),
        "editor": None,
        "judge": None,
        "scores": {"quality": _number(entry, "score"), "instruction": None, "preservation": None},
        "license": None,
        "source_size": source_size,
        "target_size": target_size,
    }


def checked_row(row):
    """A row of Parquet, as it is, if its images can be opened and have the sizes it says. Columns that it does not
    have are null but for `id`, `instruction` and the images, which every row needs.

    Raises:
        RowError: If a needed column is missing, or an image cannot be used.
    """
    lacking = [name for name in NEEDED if name not in row]
    if lacking:
        raise RowError("missing column", f"there is no column {lacking[0]!r}: a row needs {', '.join(NEEDED)}.")
    row = dict.fromkeys(row_features()) | row
    for side in ("source", "target"):
        image = row[f"{side}_image"]
        if image is None or image["bytes"] is None:
            raise RowError("image not found", f"{side}_image holds no bytes: expected the image itself.")
        size = _size(image["bytes"], f"{side}_image")
        if row[f"{side}_size"] is not None and list(row[f"{side}_size"]) != size:
            raise RowError("wrong size", f"{side}_size is {row[f'{side}_size']}, but the image is {size}.")
        row[f"{side}_size"] = size
    return row


def _size(data, name):
    """`[width, height]` of an image that can be decoded to its end."""
    try:
        return list(open_image(data, name=name).size)
    except ImageError as error:
        raise RowError("unusable image", str(error)) from error


def _text(entry, key, required=False):
    value = entry.get(key)
    if value is None and not required:
        return None
    if not isinstance(value, str) or (required and not value.strip()):
        found = "nothing" if value is None else f"{value!r:.80}"
        raise RowError(
            "wrong value", f"{key} is {found}: expected {'a text that is not empty' if required else 'text'}."
        )
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise RowError("not UTF-8", f"{key} holds half of a surrogate pair: expected whole characters.")
    return value


def _category(name):
    if name is not None and name.strip().lower() not in TASK_CATEGORIES:
        raise RowError("unknown category", f"task_category is {name!r:.80}: expected {', '.join(TASK_CATEGORIES)}.")
    return name and name.strip().lower()


def _number(entry, key):
    value = entry.get(key)
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        raise RowError("wrong value", f"{key} is {value!r:.80}: expected a number.") from None
