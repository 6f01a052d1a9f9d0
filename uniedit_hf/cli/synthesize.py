"""`uniedit synthesize`: from questions about pictures to intelligent edits."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field


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
    counts = merged.counts
    print(f"{counts.records:,} edits in {merged.dataset}, {counts.rejects:,} rows rejected.")
    if merged.stopped:
        print(f"Not whole: {merged.stopped}. Start again with a larger one to go on.")
    if merged.failed:
        print(f"{merged.failed:,} rows failed at calls that may succeed another time: start again to try them.")
    print(f"Finished: open {os.path.join(options.output_dir, 'report.html')}")
