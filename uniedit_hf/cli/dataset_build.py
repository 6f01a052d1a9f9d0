"""`uniedit dataset build`: Parquet from a raw release."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class DatasetBuildOptions:
    source: str = field(
        metadata={
            "help": "the raw release: JSONL manifests with images, or Parquet in our schema",
            "metavar": "FOLDER",
        }
    )
    output_dir: str = field(
        metadata={"help": "where the Parquet goes; goes on with a build there", "metavar": "FOLDER"}
    )
    strict: bool = field(default=False, metadata={"help": "stop at a faulty row instead of leaving it out"})
    redo_faulty: bool = field(
        default=False, metadata={"help": "read rows again that were left out, after mending them"}
    )
    manifest_148k: list[str] | None = field(
        default=None,
        metadata={"help": "manifests of 148k in the source, if not named *148k*.jsonl", "metavar": "FILE"},
    )
    manifest_40k: list[str] | None = field(
        default=None, metadata={"help": "manifests of 40k in the source, if not named *40k*.jsonl", "metavar": "FILE"}
    )
    image_root: str | None = field(
        default=None, metadata={"help": "what image paths are relative to, if not the source", "metavar": "FOLDER"}
    )
    rows_per_file: int = field(default=512, metadata={"help": "lines that make one Parquet file"})
    num_proc: int = field(default=1, metadata={"help": "processes at work"})

    def __post_init__(self):
        for name in ("rows_per_file", "num_proc"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}: expected at least 1.")


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
    )
    print(report)
