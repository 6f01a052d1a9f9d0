"""Rows with columns for image, question and answer, from JSONL, Parquet or a data set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from uniedit_hf.row_error import RowError
from uniedit_hf.schema import TASK_CATEGORIES
from uniedit_hf.synthesis.settings import Rows
from uniedit_hf.synthesis.sources.rows import stream


REQUIRED = ("image", "question", "answer")
OPTIONAL = ("category", "source", "license")


class QuestionRows:
    """Parses a row. Its methods raise `RowError`."""

    def __init__(self, settings: Rows):
        self.settings = settings
        self.columns = {name: settings.columns.get(name, name) for name in (*REQUIRED, *OPTIONAL)}
        self.named = [self.columns[name] for name in (*REQUIRED, *OPTIONAL) if name in {*REQUIRED, *settings.columns}]

    def image(self, row: dict[str, Any]) -> Any:
        """The row's reference to its image."""
        image = row.get(self.columns["image"])
        if image is None:
            raise RowError("no image", f"{self.columns['image']} is empty: expected a path or encoded bytes.")
        return image

    def questions(self, row: dict[str, Any]) -> list[tuple[str, str]]:
        """Question and answer."""
        return [(self._text(row, "question"), self._text(row, "answer"))]

    def origin(self, row: dict[str, Any]) -> dict[str, Any]:
        """The fields of a draft that describe its origin and, if there is a column for it, its category."""
        category = row.get(self.columns["category"])
        if category is not None and category not in TASK_CATEGORIES:
            raise RowError("unknown category", f"{category!r:.40}: expected one of {', '.join(TASK_CATEGORIES)}.")
        name = self.settings.dataset or self.settings.files[0].stem
        return {
            "source": str(row.get(self.columns["source"]) or name),
            "license": row.get(self.columns["license"]) or self.settings.license,
            "category": category,
        }

    def rows_of_dataset(self) -> Iterator[dict[str, Any]]:
        """The rows of `settings.dataset`, streamed, with images as they are stored.

        Raises:
            ValueError: If there is no such data set, or it has no such column.
        """
        from datasets import ClassLabel

        settings = self.settings
        rows = stream(settings.dataset, settings.config, settings.split, "source")
        features = rows.features or {}
        for name in self.named:
            if features and name not in features:
                raise ValueError(
                    f"{settings.dataset} has no column {name!r} but {', '.join(features)}: name the right ones under "
                    "source.columns."
                )
        labels, category = features.get(self.columns["category"]), self.columns["category"]
        for row in rows.decode(False):  # images as they are stored
            if isinstance(labels, ClassLabel) and row[category] is not None:
                row[category] = labels.int2str(row[category])
            yield row

    def _text(self, row: dict[str, Any], name: str) -> str:
        value = row.get(self.columns[name])
        if isinstance(value, list) and value:
            value = value[0]  # a list of several annotators' answers: use the first
        if value is not None and not isinstance(value, (str, int, float)):
            raise RowError(f"no {name}", f"{self.columns[name]} is {value!r:.40}: expected text.")
        return "" if value is None else str(value).strip()
