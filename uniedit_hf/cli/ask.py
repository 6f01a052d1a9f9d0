"""`uniedit ask`: a question about one image, or about every image in a folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from uniedit_hf.cli.inference import InferenceOptions, in_batches, input_images, load_pipeline
from uniedit_hf.cli.option_types import Count, OutputFile
from uniedit_hf.files import write_text


@dataclass(kw_only=True)
class AskOptions(InferenceOptions):
    image: str = field(metadata={"help": "an image, or a folder of images", "metavar": "PATH"})
    question: str = field(metadata={"help": "the question", "metavar": "TEXT"})
    output: OutputFile | None = field(
        default=None, metadata={"help": "JSON Lines with image and answer; printed if not given", "metavar": "FILE"}
    )
    max_new_tokens: Count = field(default=512, metadata={"help": "maximum number of tokens in an answer"})


def run(options: AskOptions) -> None:
    images = input_images(options.image)
    if options.output is not None and Path(options.output).exists():
        raise OSError(f"{options.output} exists: choose another output.")
    pipe = load_pipeline(options)
    rows = []
    for _, batch in in_batches(images, options.batch_size):
        texts = pipe.answer([str(path) for path in batch], options.question, max_new_tokens=options.max_new_tokens)
        rows += [{"image": str(path), "answer": text} for path, text in zip(batch, texts)]
    if options.output is not None:
        place = Path(options.output)
        write_text(place, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        print(f"Wrote {place}")
    elif len(rows) == 1:
        print(rows[0]["answer"])
    else:
        print("\n".join(f"{row['image']}: {row['answer']}" for row in rows))
