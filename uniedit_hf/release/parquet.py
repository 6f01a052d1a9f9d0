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


def write_rows(rows: Iterable[dict[str, Any]], path: Path) -> int:
    """Writes rows with embedded images: small row groups, a page index, content-defined chunks. The file appears
    when it is complete.

    Returns:
        The number of rows.
    """
    features = row_features()
    return write_encoded_rows((features.encode_example(row) for row in rows), path)


def write_encoded_rows(rows: Iterable[dict[str, Any]], path: Path) -> int:
    """`write_rows` for rows as stored in Parquet: categories as numbers, images as bytes and path."""
    schema = arrow_schema(row_features())
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
