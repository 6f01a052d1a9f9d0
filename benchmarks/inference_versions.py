"""Drawing, editing and writing of this tree against another one: `python -m benchmarks.inference_versions OTHER`.

OTHER is the folder of another checkout of this repository, for example of a release. One process for each loads the
same model, by default a deep and narrow one with random weights, whose time goes into operations and not into matrix
products, as on a GPU. They work alternately, never at the same time, so that a busy machine is equally busy for both.
Prints one JSON line for each kind of work: the median seconds of both and the median of their ratios, by the clock and
by the time that the processes had a CPU, which other work disturbs less.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from uniedit_hf.models.bagel.modeling_bagel import BagelForConditionalGeneration
from uniedit_hf.pipeline import UniEditPipeline


ROOT = Path(__file__).resolve().parents[1]
KINDS = ("draw", "edit", "write")

# What a process does; it runs with the code of one of the trees.
WORKER = """
import json, sys, time
import numpy as np, torch
from PIL import Image
from uniedit_hf import UniEditPipeline

torch.set_num_threads(int(sys.argv[2]))
pipe = UniEditPipeline.from_pretrained(sys.argv[1])
pipe.model.generation_config.eos_token_id = None
blocks = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
image = Image.fromarray(blocks).resize((64, 64), Image.Resampling.NEAREST)
steps = {"num_timesteps": 50, "seed": 0}
work = {
    "draw": lambda: pipe.generate("a red circle", **steps),
    "edit": lambda: pipe.edit(image, "paint the circle red", **steps),
    "write": lambda: pipe.answer(image, "what is this", max_new_tokens=100),
}
print("ready", flush=True)
for line in sys.stdin:
    kind = line.strip()
    start = time.perf_counter(), time.process_time()
    work[kind]()
    print(json.dumps([time.perf_counter() - start[0], time.process_time() - start[1]]), flush=True)
"""


class Tree:
    """A process that draws, edits and writes with the code of one tree."""

    def __init__(self, folder: Path, model: Path, threads: int):
        environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(model), str(threads)], env=environment, cwd=folder, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._answer()

    def seconds(self, kind: str) -> list[float]:
        """Does a piece of work and says how long it took, by the clock and of a CPU."""
        self.process.stdin.write(f"{kind}\n")
        self.process.stdin.flush()
        return json.loads(self._answer())

    def _answer(self) -> str:
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("A process ended early; its messages are above.")
        return answer.strip()

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()


def deep_model(folder: Path) -> Path:
    """The small BAGEL's processor with 12 layers of 64 channels of random weights."""
    torch.manual_seed(0)
    pipe = UniEditPipeline.from_pretrained(ROOT / "assets" / "small_bagel")
    config = pipe.model.config
    text = config.text_config.to_dict() | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 12}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    config.text_config = type(config.text_config)(**{name: text[name] for name in text if name != "layer_types"})
    model = BagelForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.llm2vae.weight, std=0.1)  # which starts as zero
    UniEditPipeline(model, pipe.processor).save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("--model", type=Path, help="a folder such as assets/small_bagel, in place of random weights")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = options.model or deep_model(Path(made))
        compare([Tree(each.resolve(), folder.resolve(), options.threads) for each in (options.other, ROOT)], options)


def compare(trees: list[Tree], options: argparse.Namespace) -> None:
    """Prints a line for each kind of work."""
    for kind in KINDS:
        for tree in trees:  # what is compiled or loaded at first use
            tree.seconds(kind), tree.seconds(kind)
        rounds = [[tree.seconds(kind) for tree in trees] for _ in range(options.rounds)]
        row: dict = {"work": kind}
        for index, name in enumerate(("seconds", "cpu_seconds")):
            pairs = [(other[index], ours[index]) for other, ours in rounds]
            row[f"other_{name}"], row[f"our_{name}"] = (statistics.median(column) for column in zip(*pairs))
            row[f"times_as_fast_by_{name}"] = statistics.median(other / ours for other, ours in pairs)
        print(json.dumps(row), flush=True)
    for tree in trees:
        tree.close()


if __name__ == "__main__":
    main()
