"""`uniedit synthesize`: from questions about pictures to intelligent edits."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from uniedit_hf.synthesis.writer import Merged


@dataclass
class SynthesizeOptions:
    output_dir: str = field(
        metadata={"help": "where everything goes; a run that was stopped there goes on", "metavar": "FOLDER"}
    )
    source: dict = field(metadata={"help": "where questions come from; in the file"})
    instruct: dict = field(metadata={"help": "who writes instructions; in the file"})
    edit: dict = field(metadata={"help": "who draws; in the file"})
    backends: dict = field(default_factory=dict, metadata={"help": "chat models and editors by name; in the file"})
    decontaminate: dict = field(default_factory=dict, metadata={"help": "benchmarks and duplicates; in the file"})
    classify: dict | None = field(default=None, metadata={"help": "who classifies questions; in the file"})
    balance: dict = field(default_factory=dict, metadata={"help": "size and shares; in the file"})
    screen: dict = field(default_factory=dict, metadata={"help": "what instructions must be like; in the file"})
    verify: dict = field(default_factory=dict, metadata={"help": "who judges, and thresholds; in the file"})
    budget: dict = field(default_factory=dict, metadata={"help": "limits of calls, tokens, money; in the file"})
    engine: dict = field(default_factory=dict, metadata={"help": "local or datatrove; in the file"})
    export: dict = field(default_factory=dict, metadata={"help": "what else is written; in the file"})
    seed: int = field(default=0, metadata={"help": "decides every choice that is drawn"})
    shards: int = field(default=1, metadata={"help": "parts that are made independently"})
    window: int = field(default=64, metadata={"help": "rows of a shard that are under way at most"})
    dry_run: bool = field(default=False, metadata={"help": "say what the run may cost, and make nothing"})


def run(options: SynthesizeOptions) -> None:
    from uniedit_hf.synthesis.pricing import estimate
    from uniedit_hf.synthesis.run import run as run_synthesis
    from uniedit_hf.synthesis.settings import settings_from

    given = asdict(options)
    dry_run = given.pop("dry_run")
    settings = settings_from(given, "the settings")
    if dry_run:
        print(estimate(settings))
        return
    merged = run_synthesis(settings)
    if merged is None:
        print("Slurm has the shards now, and merges them when they are there.")
        return
    _tell(merged, settings.balance.size, settings.output_dir / "report.html")


def _tell(merged: Merged, wanted: int | None, report: Path) -> None:
    """What came of a run, and what can be done about the rest. Raises ValueError if nothing came of it."""
    counts, (made, rejected) = merged.counts, (merged.counts.records, merged.counts.rejects)
    most = ", ".join(f"{number:,} {stage}: {reason}" for (stage, reason), number in counts.by_reason.most_common(3))
    again = f"{merged.failed:,} rows failed at calls that may succeed another time: start again to try them."
    if not made and not merged.stopped:
        found = f"No edit came of {rejected:,} rows ({most or 'the source is empty'}): see {report}."
        raise ValueError(f"{found} {again}" if merged.failed else found)
    print(f"{made:,} edits in {merged.dataset}, {rejected:,} rows rejected{f' ({most})' if most else ''}.")
    if merged.stopped:
        print(f"Not whole: {merged.stopped}. Start again with a larger one to go on.")
    elif wanted is not None and made < wanted:
        print(f"{wanted:,} edits were asked for; the source ended before there were enough for the shares of balance.")
    if merged.failed:
        print(again)
    print(f"Finished: open {report}")
