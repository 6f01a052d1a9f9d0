"""Writes Parquet files in the row schema, suited to streaming and readable by every version of datasets since 3.6."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features

from uniedit_hf.files import written_file
from uniedit_hf.schema import row_features


ROWS_PER_GROUP = 32  # the unit of reading; a stream resumes within it by skipping rows
BYTES_PER_GROUP = 256 * 2**20  # with very large images a group has fewer rows
IMAGES = ("source_image", "target_image")

# As in datasets: page boundaries depend on the content, so unchanged data is not uploaded again.
CONTENT_DEFINED_CHUNKS = {"min_chunk_size": 256 * 1024, "max_chunk_size": 1024 * 1024, "norm_level": 0}


def arrow_schema(features: Features) -> pa.Schema:
    """The Arrow schema with the features in its metadata. A list of fixed length is called `Sequence` there: datasets
    3 has no other name, and later versions read it as `List`.
    """
    schema = features.arrow_schema
    described = schema.metadata[b"huggingface"].replace(b'"_type": "List"', b'"_type": "Sequence"')
    return schema.with_metadata({"huggingface": described})


def own_columns(schema: pa.Schema) -> list[str]:
    """The columns of a Parquet file beside those of the row schema."""
    return [name for name in schema.names if name not in row_features()]


def features_of(files: Iterable[str | Path]) -> Features:
    """The row schema, and after it the columns that Parquet files have of their own.

    Raises:
        ValueError: Files have a column of one name and different types.
    """
    features = row_features()
    for file in files:
        schema = pq.read_schema(file)
        found = Features.from_arrow_schema(schema)
        for name in own_columns(schema):
            if features.setdefault(name, found[name]) != found[name]:
                raise ValueError(
                    f"{file}: column {name} is {found[name]}, in another file it is {features[name]}: use one type."
                )
    return features


def write_rows(rows: Iterable[dict[str, Any]], path: Path, features: Features | None = None) -> int:
    """Writes rows with embedded images: small row groups, a page index, content-defined chunks. The file appears
    when it is complete.

    Args:
        rows: The rows; a column that a row does not have is null.
        path: The file.
        features: The row schema with columns of its own after it; the row schema alone if not given.

    Returns:
        The number of rows.
    """
    features = features or row_features()
    whole = ({name: row.get(name) for name in features} for row in rows)
    return write_encoded_rows((features.encode_example(row) for row in whole), path, features)


def write_encoded_rows(rows: Iterable[dict[str, Any]], path: Path, features: Features | None = None) -> int:
    """`write_rows` for rows as stored in Parquet: categories as numbers, images as bytes and path."""
    schema = arrow_schema(features or row_features())
    small = [field.name for field in schema if field.name not in IMAGES]
    options = {
        "use_dictionary": small,
        "write_statistics": small,
        "write_page_index": True,
        "use_content_defined_chunking": CONTENT_DEFINED_CHUNKS,
    }
    count = 0
    with written_file(path) as part, pq.ParquetWriter(part, schema, **options) as writer:
        for group in _groups(rows):
            writer.write_table(pa.Table.from_pylist(group, schema), row_group_size=ROWS_PER_GROUP)
            count += len(group)
    return count


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    rows = iter(rows)
    while group := list(islice(rows, 1)):
        size = _size(group[0])
        while size < BYTES_PER_GROUP and len(group) < ROWS_PER_GROUP and (more := list(islice(rows, 1))):
            group += more
            size += _size(more[0])
        yield group


def _size(row: dict[str, Any]) -> int:
    return sum(len(row[name]["bytes"]) for name in IMAGES)
