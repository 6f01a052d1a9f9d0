"""`uniedit generate`: draws an image for a prompt, or one for every line of a file of prompts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from uniedit_hf.cli.inference import DrawingOptions, in_batches, load_pipeline, output_files, save_image
from uniedit_hf.cli.option_types import OutputFile


@dataclass(kw_only=True)
class GenerateOptions(DrawingOptions):
    prompt: str | None = field(default=None, metadata={"help": "the prompt: what to draw", "metavar": "TEXT"})
    prompts: str | None = field(
        default=None, metadata={"help": "a file with one prompt per line, instead of prompt", "metavar": "FILE"}
    )
    output: OutputFile = field(
        metadata={"help": "file of the result; for a file of prompts, a folder", "metavar": "PATH"}
    )


def run(options: GenerateOptions) -> None:
    prompts = _prompts(options)
    names = [f"{number:04d}" for number in range(len(prompts))]
    targets = output_files(options.output, names, options.prompts is not None, options.overwrite)
    pipe = load_pipeline(options)
    for numbers, batch in in_batches(prompts, options.batch_size):
        for number, image in zip(numbers, pipe.generate(batch, **options.drawing(numbers))):
            save_image(image, targets[number])
    print("\n".join(f"Wrote {path}" for path in targets))


def _prompts(options: GenerateOptions) -> list[str]:
    if (options.prompt is None) == (options.prompts is None):
        raise ValueError("Give one of prompt and prompts: a text, or a file with one prompt per line.")
    if options.prompt is not None:
        return [options.prompt]
    found = [line.strip() for line in Path(options.prompts).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not found:
        raise ValueError(f"{options.prompts} contains no prompt: write one per line.")
    return found
