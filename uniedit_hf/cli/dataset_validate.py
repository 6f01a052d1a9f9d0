"""`uniedit dataset validate`: checks a built data set row by row."""

from __future__ import annotations

from dataclasses import dataclass, field

from uniedit_hf.cli.option_types import OutputFile, check_writable


@dataclass
class DatasetValidateOptions:
    input_dir: str = field(metadata={"help": 'folder that "uniedit dataset build" made', "metavar": "FOLDER"})
    benchmarks: str | None = field(
        default=None,
        metadata={"help": "benchmark images and questions that must not be in the data", "metavar": "FOLDER"},
    )
    report: OutputFile | None = field(
        default=None,
        metadata={"help": "HTML report; validation.html in the data set by default", "metavar": "FILE"},
    )


def run(options: DatasetValidateOptions) -> None:
    from pathlib import Path

    from uniedit_hf.release.validation import validate, write_report

    report = Path(options.report or Path(options.input_dir) / "validation.html")
    if options.report is None and report.parent.is_dir():  # before the work, which may take hours
        check_writable(report.parent, f"the report {report}")
    result = validate(options.input_dir, options.benchmarks)
    write_report(result, report)
    for note in result.notes:
        print(note)
    if not result.valid:
        first = f" First: {result.problems[0]}" if result.problems else ""
        raise ValueError(
            f"{len(result.problems)} problems, {result.contaminated} rows with images of a benchmark; see "
            f"{report}.{first}"
        )
    print(f"No problems found; see {report}")
