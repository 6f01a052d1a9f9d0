"""The report of a run, as an HTML page and as JSON. The page is one file with embedded images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from uniedit_hf.files import write_text
from uniedit_hf.pages import render
from uniedit_hf.synthesis.settings import Settings
from uniedit_hf.synthesis.writer import Merged


MOST_REJECTED_EXAMPLES = 30
SPENT = ("calls", "tokens", "money", "made", "kept")


def write_report(merged: Merged, settings: Settings) -> Path:
    """Writes `report.json` and `report.html` and returns the path of the page."""
    counts = merged.counts
    facts = {
        "records": counts.records,
        "rejects": counts.rejects,
        "not_reached": sum(summary["not_reached"] for summary in merged.summaries),
        "rows_read": max((summary["read"] for summary in merged.summaries), default=0),
        "stopped": merged.stopped,
        "stages": counts.stages(),
        "counts": {name: dict(counter.most_common()) for name, counter in counts.by_column.items()},
        "rejections": [
            {"stage": stage, "reason": reason, "rows": number}
            for (stage, reason), number in counts.by_reason.most_common()
        ],
        "backends": _backends(merged, settings),
        "settings": json.loads(settings.model_dump_json()),
    }
    output_dir = settings.output_dir
    write_text(output_dir / "report.json", json.dumps(facts, indent=2) + "\n")
    page = render(
        "uniedit_hf.synthesis",
        "report.html.j2",
        **facts,
        examples=_spread(counts.examples, settings.export.examples),
        rejected=list(counts.rejected_examples.values())[:MOST_REJECTED_EXAMPLES],
    )
    path = output_dir / "report.html"
    write_text(path, page)
    return path


def _backends(merged: Merged, settings: Settings) -> list[dict[str, Any]]:
    """Calls, tokens and money of each backend over all shards and all runs, and those made and reused by this run."""
    names = list(dict.fromkeys(name for summary in merged.summaries for name in summary["backends"]))
    table = []
    for name in names:
        parts = [summary["backends"][name] for summary in merged.summaries if name in summary["backends"]]
        sums = {column: sum(part[column] for part in parts) for column in SPENT}
        table.append({"name": name, "model": settings.backends[name].model, **sums})
    return table


def _spread(examples: list[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    """`number` of the examples, alternating between categories."""
    by_category: dict[Any, list[dict[str, Any]]] = {}
    for each in examples:
        by_category.setdefault(each["category"], []).append(each)
    turns = [each for _, each in sorted(by_category.items())]
    deep = max(map(len, turns), default=0)
    return [each[depth] for depth in range(deep) for each in turns if depth < len(each)][:number]
