"""Counts of a set, and a few of its records to look at."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from uniedit_hf.schema import TASK_CATEGORIES
from uniedit_hf.synthesis.records import STAGES, variant_choices


# Choices with few values; the others, such as the phrasing, say nothing when they are counted.
COUNTED_CHOICES = ("variant", "depth", "condition", "changed", "edit", "medium", "font", "distractor", "resize")
MOST_EXAMPLES = 200


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
        category = row["task_category"]
        named = {
            "category": TASK_CATEGORIES[category] if isinstance(category, int) else category,
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
            self.examples.append(row)
        elif (place := self.draw.randrange(self.records)) < MOST_EXAMPLES:
            self.examples[place] = row

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
