"""The end of a run: one set of all shards, and the report beside it."""

from __future__ import annotations

from uniedit_hf.synthesis.merging import Merged, merge
from uniedit_hf.synthesis.report import write_report
from uniedit_hf.synthesis.settings import Settings


def finish(settings: Settings) -> Merged:
    """Merges the shards and writes the report beside the set."""
    merged = merge(settings)
    write_report(merged, settings)
    return merged
