"""`uniedit edit`: edits one image, or every image in a folder, by an instruction."""

from __future__ import annotations

from dataclasses import dataclass, field

from uniedit_hf.cli.inference import DrawingOptions, in_batches, input_images, load_pipeline, output_files, save_image
from uniedit_hf.cli.option_types import OutputFile


@dataclass(kw_only=True)
class EditOptions(DrawingOptions):
    image: str = field(metadata={"help": "an image, or a folder of images", "metavar": "PATH"})
    instruction: str = field(metadata={"help": "the instruction: what to change", "metavar": "TEXT"})
    output: OutputFile = field(
        metadata={"help": "file of the result; for a folder of images, a folder", "metavar": "PATH"}
    )


def run(options: EditOptions) -> None:
    sources = input_images(options.image)
    many = len(sources) > 1 or not options.image.endswith(sources[0].name)
    targets = output_files(options.output, [path.stem for path in sources], many, options.overwrite)
    pipe = load_pipeline(options)
    for numbers, batch in in_batches(sources, options.batch_size):
        images = pipe.edit([str(path) for path in batch], options.instruction, **options.drawing(numbers))
        for number, image in zip(numbers, images):
            save_image(image, targets[number])
    print("\n".join(f"Wrote {path}" for path in targets))
