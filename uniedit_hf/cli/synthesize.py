"""`uniedit synthesize`: turns questions about images into intelligent edits."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from uniedit_hf.cli.option_types import Count, OutputDir, Seed


if TYPE_CHECKING:
    from uniedit_hf.synthesis.writer import Merged


MANY_ALIKE = 0.1  # share of rows dropped as near duplicates above which a message is printed


@dataclass
class SynthesizeOptions:
    output_dir: OutputDir = field(
        metadata={"help": "folder of the run; the same command resumes a run that was stopped", "metavar": "FOLDER"}
    )
    source: dict = field(metadata={"help": "where questions come from (set in the YAML file)"})
    instruct: dict = field(metadata={"help": "chat model that writes the instructions (set in the YAML file)"})
    edit: dict = field(metadata={"help": "image editor to use (set in the YAML file)"})
    backends: dict = field(
        default_factory=dict, metadata={"help": "chat models and image editors by name (set in the YAML file)"}
    )
    decontaminate: dict = field(
        default_factory=dict, metadata={"help": "benchmarks to keep out, and duplicates (set in the YAML file)"}
    )
    classify: dict | None = field(
        default=None, metadata={"help": "chat model that classifies questions (set in the YAML file)"}
    )
    balance: dict = field(
        default_factory=dict, metadata={"help": "number of edits and share of each category (set in the YAML file)"}
    )
    screen: dict = field(default_factory=dict, metadata={"help": "limits for instructions (set in the YAML file)"})
    verify: dict = field(default_factory=dict, metadata={"help": "judges and thresholds (set in the YAML file)"})
    budget: dict = field(
        default_factory=dict, metadata={"help": "limits for calls, tokens and money (set in the YAML file)"}
    )
    engine: dict = field(default_factory=dict, metadata={"help": "local or datatrove (set in the YAML file)"})
    export: dict = field(default_factory=dict, metadata={"help": "further output files (set in the YAML file)"})
    seed: Seed = field(default=0, metadata={"help": "seed of every random choice"})
    shards: Count = field(default=1, metadata={"help": "number of independent shards"})
    window: Count = field(default=64, metadata={"help": "rows of a shard in progress at once"})
    retry: Literal["failed"] | None = field(
        default=None, metadata={"help": "ask once more where a call was refused or its reply could not be used"}
    )
    dry_run: bool = field(default=False, metadata={"help": "print an upper bound of the cost and exit"})


def run(options: SynthesizeOptions) -> None:
    from uniedit_hf.synthesis.pricing import estimate
    from uniedit_hf.synthesis.run import run as run_synthesis
    from uniedit_hf.synthesis.settings import settings_from

    given = asdict(options)
    dry_run, retry = given.pop("dry_run"), given.pop("retry")
    settings = settings_from(given, "the settings")
    if dry_run:
        print(estimate(settings))
        return
    merged = run_synthesis(settings, retry=retry is not None)
    if merged is None:
        print("Submitted to Slurm. A final job merges the shards when all of them are done.")
        return
    _print_result(merged, settings.balance.size, settings.output_dir / "report.html")


def _print_result(merged: Merged, wanted: int | None, report: Path) -> None:
    """Prints how many edits were made and what to do about the rest. Raises ValueError if none was made."""
    counts, (made, rejected) = merged.counts, (merged.counts.records, merged.counts.rejects)
    most = ", ".join(f"{number:,} {stage}: {reason}" for (stage, reason), number in counts.by_reason.most_common(3))
    again = f"{merged.failed:,} rows failed but may succeed later: run the same command again to retry them."
    if not made and not merged.stopped:
        found = f"No edit was made from {rejected:,} rows ({most or 'the source is empty'}): see {report}."
        raise ValueError(f"{found} {again}" if merged.failed else found)
    print(f"{made:,} edits in {merged.dataset}, {rejected:,} rows rejected{f' ({most})' if most else ''}.")
    alike = counts.by_reason["duplicates", "near-duplicate image"]
    if alike > MANY_ALIKE * (made + rejected):
        print(
            f"{alike:,} of {made + rejected:,} rows were dropped because their image looks like that of a row with "
            "the same question and answer: for drawings and icons set decontaminate: {near_duplicates: false}."
        )
    if merged.stopped:
        print(f"Stopped early: {merged.stopped}. Raise it and run the same command to resume.")
    elif wanted is not None and made < wanted:
        print(
            f"Fewer than the {wanted:,} edits of balance.size: the source has too few rows for the shares of balance."
        )
    if merged.failed:
        print(again)
    print(f"Finished: open {report}")
