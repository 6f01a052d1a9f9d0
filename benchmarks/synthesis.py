"""How fast rows go through synthesis, and how much memory that takes, with backends that answer at once.

    python -m benchmarks.synthesis [--rows 10000 100000]

Every row goes through all stages: read from Parquet, inspected, compared with earlier rows, classified, balanced,
instructed, screened, edited, verified by two judges, written, merged, reported; four chat calls and one edit, each
through prompt, cache, budget and limits. Images are 8 x 8 pixels, ten rows ask about each, and results are new
images, so almost nothing is image work. Prints a JSON line for each number of rows: rows a second of CPU (user and
system), the same of the clock, and the peak of memory. Then the same run again, which finds every reply in the cache.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from uniedit_hf.calls.messages import ChatRequest, EditRequest, EncodedImage, Reply, encoded
from uniedit_hf.synthesis import run, shard
from uniedit_hf.synthesis.settings import settings_from


ROWS_PER_PICTURE = 10
ROWS_PER_GROUP = 10_000
CATEGORIES = ("caption", "ocr", "math")


class Instant:
    """Answers at once, in the form asked for."""

    parameters = "instant"
    key = ""
    ratios = {}

    def __init__(self, *_):
        self.image = EncodedImage(encoded(Image.new("RGB", (8, 8), "white")))

    async def reply(self, request: ChatRequest | EditRequest) -> Reply:
        if isinstance(request, EditRequest):
            return Reply("instant", image=self.image)
        return Reply("instant", getattr(self, request.answer.__name__.lower())(request), tokens_in=100, tokens_out=20)

    def classification(self, request: ChatRequest) -> str:
        asked = json.loads(request.text)
        category = CATEGORIES[int(asked["question"].split()[-1]) % len(CATEGORIES)]
        return json.dumps({"category": category, "short_answer": asked["answer"]})

    def writing(self, request: ChatRequest) -> str:
        plan = json.loads(request.text)["plan"]
        conditions = [{"condition": "it is dark", "holds": plan.get("holds", True)} for _ in range(plan["depth"])]
        number = json.loads(request.text)["question"].split()[-1]
        instruction = f"If it is dark, write what sign {number} says in chalk on slate; otherwise paint it on a wall."
        return json.dumps({"conditions": conditions, "instruction": instruction, "expected": "A slate.", "text": "x"})

    def judgement(self, request: ChatRequest) -> str:
        return json.dumps({"reason": "Seen.", "premise": True, "change": True, "rest": True})

    def grade(self, request: ChatRequest) -> str:
        return json.dumps({"reason": "Seen.", "quality": 4})

    async def close(self) -> None:
        pass


def write_source(folder: Path, rows: int) -> Path:
    """Rows with their images."""
    schema = pa.schema([("image", pa.binary()), ("question", pa.string()), ("answer", pa.string())])
    with pq.ParquetWriter(folder / "rows.parquet", schema) as file:
        for first in range(0, rows, ROWS_PER_GROUP):
            group = [_row(number) for number in range(first, min(first + ROWS_PER_GROUP, rows))]
            file.write_table(pa.Table.from_pylist(group, schema))
    return folder / "rows.parquet"


def _row(number: int) -> dict[str, object]:
    picture = number // ROWS_PER_PICTURE
    color = (picture & 255, picture >> 8 & 255, picture >> 16)
    image = encoded(Image.new("RGB", (8, 8), color))
    return {"image": image, "question": f"What stands on sign {number}", "answer": "A word."}


def measure(rows: int, folder: Path) -> None:
    """One run in this process, then the same from the cache."""
    shard.make_backend = Instant
    settings = settings_from(
        {
            "output_dir": folder / "out",
            "source": {"kind": "rows", "files": [write_source(folder, rows)]},
            "backends": {
                "chat": {"kind": "openai", "model": "instant"},
                "editor": {"kind": "openai_images", "model": "instant"},
            },
            "classify": {"backend": "chat"},
            "balance": {"size": rows, "shares": dict.fromkeys(CATEGORIES, 1)},
            "instruct": {"backend": "chat"},
            "screen": {"similarity": 1.0},
            "edit": {"backend": "editor"},
            "verify": {"judge": "chat", "quality": "chat"},
            "export": {"rows_per_file": 10_000},
        },
        "the settings",
    )
    for name in ("first", "again from the cache"):
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        merged = run.run(settings)
        after, seconds = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - start
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        kept, rejected = merged.counts.records, merged.counts.rejects
        assert kept + rejected == rows and kept > 0.95 * rows, (kept, rejected)
        figures = {
            "rows": rows,
            "run": name,
            "records": kept,
            "cpu_seconds": round(cpu, 1),
            "rows_per_cpu_second": round(rows / cpu),
            "rows_per_second": round(rows / seconds),
            "peak_mib": round(after.ru_maxrss / 1024),
        }
        print(json.dumps(figures), flush=True)
        shutil.rmtree(settings.output_dir / "work" / "shards")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    options = parser.parse_args()
    if len(options.rows) == 1:
        with tempfile.TemporaryDirectory() as folder:
            measure(options.rows[0], Path(folder))
        return
    for rows in options.rows:  # a process each, so that each has a peak of its own
        subprocess.run([sys.executable, "-m", "benchmarks.synthesis", "--rows", str(rows)], check=True)


if __name__ == "__main__":
    main()
