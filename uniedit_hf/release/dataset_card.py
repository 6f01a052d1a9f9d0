"""Writes the card of a built data set from its contents."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow.parquet as pq
from datasets import DatasetInfo, SplitDict, SplitInfo
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData
from PIL import Image

from uniedit_hf.dataset_builder.uniedit_148k import CITATION, VERSION
from uniedit_hf.files import write_text, written_file
from uniedit_hf.images import open_image
from uniedit_hf.release.bare_name import NAME
from uniedit_hf.release.official_release import OFFICIAL_REPO
from uniedit_hf.release.parquet import IMAGES, features_of
from uniedit_hf.release.statistics import PUBLISHED_SHARES, SIDES, UNKNOWN, Statistics, parquet_files, statistics
from uniedit_hf.schema import TASK_CATEGORIES


TEMPLATE = Path(__file__).parent / "templates" / "card.md.j2"
EXAMPLES = "assets/examples.png"
THUMBNAIL = 160
SIZE_CATEGORIES = {
    1_000: "n<1K",
    10_000: "1K<n<10K",
    100_000: "10K<n<100K",
    1_000_000: "100K<n<1M",
    10_000_000: "1M<n<10M",
}
LICENSE = """# Terms

No single license covers this data set.

- Code that built it: {code}
- Source images, questions and answers: {source_images}
- Generated images and instructions: {generated_images}
"""


@dataclass(frozen=True)
class Terms:
    """The license terms of the three kinds of content. The defaults claim nothing that is not known."""

    code: str = "apache-2.0"
    source_images: str = "those of the data sets that the images come from; see the columns `source` and `license`"
    generated_images: str = "those of the models that drew them; see the column `editor`"


def write_card(folder: Path, repo_id: str | None = None, terms: Terms | None = None) -> Path:
    """Writes `README.md`, `LICENSE.md` and an image with examples into the folder of a built data set.

    Args:
        folder: The folder.
        repo_id: The repository that the card's examples load from, and whose name is the title; before it is
            published, that is the folder. Only uniedit-148k is compared with the published shares.
        terms: License terms.

    Raises:
        ValueError: If there is no built data set in the folder.
    """
    counted = statistics(folder)
    terms = terms or Terms()
    if repo_id is None and not {result.config for result in counted} & set(PUBLISHED_SHARES):
        repo_id = f"path/to/{folder.absolute().name}"
    title = NAME if repo_id is None else repo_id.rpartition("/")[2]
    own = title.lower() != NAME  # another data set, to which the paper's shares do not apply
    _example_sheet(folder)
    card = DatasetCard.from_template(
        _metadata(counted, terms, title if own else "Uni-Edit 148k", parquet_files(folder)),
        template_path=str(TEMPLATE),
        name=title,
        repo_id=repo_id or NAME,
        bare=repo_id is None,
        version=VERSION,
        counted=counted,
        categories=[*TASK_CATEGORIES, UNKNOWN],
        published={each.config: {} if own else PUBLISHED_SHARES.get(each.config, {}) for each in counted},
        sides=[*(f"up to {side}" for side in SIDES), f"over {SIDES[-1]}"],
        terms=terms,
        upstream=OFFICIAL_REPO,
        citation=CITATION,
        examples=EXAMPLES,
    )
    write_text(folder / "LICENSE.md", LICENSE.format(**asdict(terms)))
    path = folder / "README.md"
    write_text(path, str(card))
    return path


def _metadata(
    counted: list[Statistics], terms: Terms, title: str, files: dict[str, dict[str, list[Path]]]
) -> DatasetCardData:
    total = max(result.total for result in counted)
    data = DatasetCardData(
        pretty_name=title,
        language=["en"],
        license="other",
        license_name="mixed-terms",
        license_link="LICENSE.md",
        license_code=terms.code,
        license_source_images=terms.source_images,
        license_generated_images=terms.generated_images,
        task_categories=["image-to-image", "visual-question-answering", "image-text-to-image"],
        size_categories=[next(name for limit, name in SIZE_CATEGORIES.items() if total < limit)],
        tags=["image-editing", "unified-multimodal-models", "arxiv:2605.21487"],
    )
    infos = DatasetInfosDict({result.config: _info(result, files[result.config]) for result in counted})
    infos.to_dataset_card_data(data)
    for info in data["dataset_info"] if isinstance(data["dataset_info"], list) else [data["dataset_info"]]:
        # A list of fixed length under the only name that datasets 3 also has.
        info["features"] = [
            {"sequence" if key == "list" else key: value for key, value in feature.items()}
            for feature in info["features"]
        ]
    configs = {
        result.config: {
            "data_files": [{"split": split, "path": f"{result.config}/{split}-*"} for split in result.rows],
            **({"default": True} if number == 0 else {}),
        }
        for number, result in enumerate(counted)
    }
    MetadataConfigs(configs).to_dataset_card_data(data)
    return data


def _info(result: Statistics, files: dict[str, list[Path]]) -> DatasetInfo:
    splits = SplitDict()
    for split, count in result.rows.items():
        splits.add(SplitInfo(split, num_examples=count, num_bytes=result.num_bytes[split]))
    size = sum(result.num_bytes.values())
    return DatasetInfo(
        features=features_of(path for split in files.values() for path in split[:1]),
        splits=splits,
        download_size=size,
        dataset_size=size,
        config_name=result.config,
    )


def _example_sheet(folder: Path) -> None:
    """Sources above targets, the first row of every category in the first row group."""
    files = parquet_files(folder)
    config, splits = next(iter(files.items()))
    file = next((path for path in splits["train"] if pq.read_metadata(path).num_rows), None)
    if file is None:
        return
    with pq.ParquetFile(file) as parquet:
        rows = parquet.read_row_group(0, columns=[*IMAGES, "task_category"]).to_pylist()
    shown = list({row["task_category"]: row for row in reversed(rows)}.values())[::-1]
    sheet = Image.new("RGB", (len(shown) * THUMBNAIL, 2 * THUMBNAIL), "white")
    for column, row in enumerate(shown):
        for line, name in enumerate(IMAGES):
            image = open_image(row[name], name=name)
            image.thumbnail((THUMBNAIL - 8, THUMBNAIL - 8))
            sheet.paste(image, (column * THUMBNAIL + 4, line * THUMBNAIL + 4))
    with written_file(folder / EXAMPLES) as part:
        sheet.save(part, "PNG")
