"""`uniedit dataset build`: Parquet from a raw release."""

from __future__ import annotations

from dataclasses import dataclass, field

from uniedit_hf.cli.option_types import Count, OutputDir


@dataclass
class DatasetBuildOptions:
    source: str = field(
        metadata={
            "help": "the raw release: JSONL manifests with images, or Parquet in our schema",
            "metavar": "FOLDER",
        }
    )
    output_dir: OutputDir = field(
        metadata={"help": "folder for the Parquet files; resumes a build there", "metavar": "FOLDER"}
    )
    strict: bool = field(default=False, metadata={"help": "stop at an invalid row instead of skipping it"})
    redo_faulty: bool = field(
        default=False, metadata={"help": "read skipped rows again, after you have corrected them"}
    )
    manifest_148k: list[str] | None = field(
        default=None,
        metadata={"help": "manifests of 148k in the source; *148k*.jsonl by default", "metavar": "FILE"},
    )
    manifest_40k: list[str] | None = field(
        default=None, metadata={"help": "manifests of 40k in the source; *40k*.jsonl by default", "metavar": "FILE"}
    )
    image_root: str | None = field(
        default=None, metadata={"help": "folder of the image paths; the source by default", "metavar": "FOLDER"}
    )
    config_name: str | None = field(
        default=None, metadata={"help": "configuration of rows of your own, as in my-edits", "metavar": "NAME"}
    )
    rows_per_file: Count = field(default=512, metadata={"help": "manifest lines per Parquet file"})
    num_proc: Count = field(default=1, metadata={"help": "number of worker processes"})


def run(options: DatasetBuildOptions) -> None:
    from uniedit_hf.release.build import build

    named = {"148k": options.manifest_148k, "40k": options.manifest_40k}
    report = build(
        options.source,
        options.output_dir,
        strict=options.strict,
        redo_faulty=options.redo_faulty,
        manifests={config: names for config, names in named.items() if names},
        image_root=options.image_root,
        rows_per_file=options.rows_per_file,
        num_proc=options.num_proc,
        config_name=options.config_name,
    )
    print(report)
