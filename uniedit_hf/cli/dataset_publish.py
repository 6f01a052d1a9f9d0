"""`uniedit dataset publish`: uploads a built data set to the Hub."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class DatasetPublishOptions:
    input_dir: str = field(metadata={"help": 'folder that "uniedit dataset build" made', "metavar": "FOLDER"})
    repo_id: str = field(metadata={"help": "the repository; created if it does not exist", "metavar": "ORG/NAME"})
    private: bool = field(default=False, metadata={"help": "whether a new repository is private"})
    tag: str = field(default="v1.0.0", metadata={"help": "tag of the uploaded revision"})
    license_source_images: str | None = field(
        default=None, metadata={"help": "license of the source images, for the card", "metavar": "TEXT"}
    )
    license_generated_images: str | None = field(
        default=None, metadata={"help": "license of the generated images, for the card", "metavar": "TEXT"}
    )


def run(options: DatasetPublishOptions) -> None:
    from uniedit_hf.release.dataset_card import Terms
    from uniedit_hf.release.dataset_publishing import publish

    given = {
        "source_images": options.license_source_images,
        "generated_images": options.license_generated_images,
    }
    terms = Terms(**{name: text for name, text in given.items() if text})
    commit = publish(options.input_dir, options.repo_id, private=options.private, tag=options.tag, terms=terms)
    print(f'Published {options.repo_id} at {commit[:12]}, tag {options.tag}: load_dataset("{options.repo_id}")')
