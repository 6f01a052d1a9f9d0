"""Counts of a set, and a few of its records to look at."""

from __future__ import annotations

import base64
import io
import random
from collections import Counter
from typing import Any

from PIL import Image

from uniedit_hf.schema import TASK_CATEGORIES
from uniedit_hf.synthesis.calls.messages import Picture
from uniedit_hf.synthesis.records import STAGES, variant_choices


# Choices with few values; the others, such as the phrasing, say nothing when they are counted.
COUNTED_CHOICES = ("variant", "depth", "condition", "changed", "edit", "medium", "font", "distractor", "resize")
MOST_EXAMPLES = 200
THUMBNAIL = 256


class Counts:
    """Records by category, by source, by editor and by each choice; rejections by stage and reason.

    `examples` is an even sample of the records, `rejected_examples` holds the first rejection of each reason.
    """

    def __init__(self):
        self.records = self.rejects = 0
        self.by_column: dict[str, Counter[str]] = {}
        self.by_reason: Counter[tuple[str, str]] = Counter()
        self.by_stage: Counter[str] = Counter()
        self.examples: list[dict[str, Any]] = []
        self.rejected_examples: dict[tuple[str, str], dict[str, Any]] = {}
        self.draw = random.Random(0)

    def record(self, row: dict[str, Any]) -> None:
        named = {
            "category": _category(row),
            "source": row["source"],
            "editor": row["editor"],
            "judge": row["judge"],
        }
        choices = variant_choices(row["variant"] or "")
        named |= {name: choices[name] for name in COUNTED_CHOICES if name in choices}
        for name, value in named.items():
            self.by_column.setdefault(name, Counter())[str(value)] += 1
        self.records += 1
        # Reservoir sampling: every record has the same chance to be an example.
        if len(self.examples) < MOST_EXAMPLES:
            self.examples.append(example(row))
        elif (place := self.draw.randrange(self.records)) < MOST_EXAMPLES:
            self.examples[place] = example(row)

    def reject(self, row: dict[str, Any]) -> None:
        key = (row["stage"], row["reason"])
        self.rejects += 1
        self.by_reason[key] += 1
        self.by_stage[row["stage"]] += 1
        self.rejected_examples.setdefault(key, row)

    def stages(self) -> list[dict[str, Any]]:
        """How many rows each stage took, rejected and gave."""
        left, table = self.records + self.rejects, []
        for stage in STAGES:
            rejected = self.by_stage[stage]
            table.append({"stage": stage, "taken": left, "rejected": rejected, "given": left - rejected})
            left -= rejected
        return table


def example(row: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of a row: as little that many can be kept in memory."""
    return {
        "category": _category(row),
        "choices": variant_choices(row["variant"] or ""),
        "scores": {name: score for name, score in row["scores"].items() if score is not None},
        **{name: row[name] for name in ("instruction", "question", "answer", "source_size", "target_size")},
        "source": _thumbnail(row["source_image"]["bytes"]),
        "target": _thumbnail(row["target_image"]["bytes"]),
    }


def _thumbnail(data: bytes) -> str:
    """A small picture as text that a page can hold."""
    image = Picture(data).pixels()
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _category(row: dict[str, Any]) -> str | None:
    category = row["task_category"]
    return TASK_CATEGORIES[category] if isinstance(category, int) else category
