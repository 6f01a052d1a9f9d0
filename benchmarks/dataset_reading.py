"""How fast one worker reads the built data set for training, against what a trainer consumes.

    python -m benchmarks.dataset_reading [--rows 192] [--packs 20] [--consumed 6000]

Rows are like those of the release: a source of 640 x 480 as JPEG and a target of 1024 x 1024 as PNG, with noise, so
that they are as large as photographs. Three stages are timed, each from the same Parquet and alone: the stream without
opening images; with images opened by us; and packs of 11,520 tokens with the paper's sizes and recipe, as a worker
of the data loader makes them. `--consumed` are the tokens a second of one device, which the trainer's log shows; the
default is an assumption for the 7B model. From it follows how many workers a device needs.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from datasets import Image as ImageFeature, load_dataset

from benchmarks.official_release import photograph
from uniedit_hf.images import open_image
from uniedit_hf.models.bagel import BagelImageProcessor, BagelProcessor
from uniedit_hf.recipes import edit_sample
from uniedit_hf.release.parquet import write_rows
from uniedit_hf.schema import stable_id
from uniedit_hf.training.data import PackReader, TrainingPart
from uniedit_hf.training.streaming import PackStream


sys.path.append(str(Path(__file__).parents[1] / "tests"))  # a tokenizer of a few words

UNKNOWN = ("task_category", "question", "answer", "variant", "source", "editor", "judge", "license")
INSTRUCTION = "paint the red square blue and make the circle bigger " * 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=192)
    parser.add_argument("--packs", type=int, default=20)
    parser.add_argument("--consumed", type=float, default=6000, help="tokens a second of one device")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "148k" / "train-00000-of-00001.parquet"
        path.parent.mkdir()
        write_rows(rows(options.rows), path)
        print(
            f"{options.rows} rows, {path.stat().st_size / options.rows / 2**20:.2f} MiB a row, {os.cpu_count()} cores"
        )
        stream = load_dataset(temporary, split="train", streaming=True)
        for name in ("source_image", "target_image"):
            stream = stream.cast_column(name, ImageFeature(decode=False))
        rate = timed(stream, options.rows)
        print(f"stream, images unopened    {rate:8.1f} rows/s")
        rate = timed((opened(row) for row in stream), options.rows)
        print(f"stream, images opened      {rate:8.1f} rows/s")
        time_packs(stream, options.packs, options.consumed)


def time_packs(stream, count: int, consumed: float) -> None:
    """Packs as one worker makes them, after the window has filled."""
    from tiny_models import tiny_tokenizer

    processor = BagelProcessor(
        BagelImageProcessor(vit_size={"longest_edge": 518, "shortest_edge": 224}), tiny_tokenizer()
    )
    reader = PackReader(processor, 0, "sample", False)
    packs = iter(PackStream(TrainingPart(stream, edit_sample), reader, 11_520, 64, 1, {}, 0))
    next(packs)
    start = time.perf_counter()
    notes = [pack["pack"] for pack in itertools.islice(packs, count)]
    seconds = time.perf_counter() - start
    num_rows, tokens = (sum(counts) for counts in zip(*((len(each.ids), each.tokens) for each in notes)))
    print(
        f"packs of 11,520 tokens     {num_rows / seconds:8.1f} rows/s, {tokens / seconds:,.0f} tokens/s a worker; "
        f"a device that consumes {consumed:,.0f} tokens/s needs {-(-consumed * seconds // tokens):.0f}"
    )


def timed(items, count: int) -> float:
    start = time.perf_counter()
    found = sum(1 for _ in itertools.islice(items, count))
    return found / (time.perf_counter() - start)


def opened(row: dict) -> dict:
    return row | {name: open_image(row[name], name=name) for name in ("source_image", "target_image")}


def rows(count: int) -> Iterator[dict]:
    for number in range(count):
        source = photograph(number, 640, 480, "JPEG", quality=90)
        target = photograph(number + count, 1024, 1024, "PNG", compress_level=1)
        yield {
            "id": stable_id(str(number)),
            "source_image": {"bytes": source, "path": None},
            "instruction": INSTRUCTION,
            "target_image": {"bytes": target, "path": None},
            **dict.fromkeys(UNKNOWN),
            "scores": {"quality": None, "instruction": None, "preservation": None},
            "source_size": [640, 480],
            "target_size": [1024, 1024],
        }


if __name__ == "__main__":
    main()
