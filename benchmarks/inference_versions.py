"""Drawing, editing and writing of this tree against another one: `python -m benchmarks.inference_versions OTHER`.

OTHER is the folder of another checkout of this repository, for example of a release. One process for each loads the
small BAGEL; they work alternately, never at the same time, so that a busy machine is equally busy for both. Prints one
JSON line for each kind of work: the median seconds of both and the median of their ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path


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
ours = hasattr(pipe, "compile")
cache = {}
if ours:
    pipe.compile()
    cache = {"cache_implementation": "static"}
blocks = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
image = Image.fromarray(blocks).resize((64, 64), Image.Resampling.NEAREST)
steps = {"num_timesteps": 50, "seed": 0}
work = {
    "draw": lambda: pipe.generate("a red circle", **steps),
    "edit": lambda: pipe.edit(image, "paint the circle red", **steps),
    "write": lambda: pipe.answer(image, "what is this", max_new_tokens=100, **cache),
}
print("ready", flush=True)
for line in sys.stdin:
    kind = line.strip()
    start = time.perf_counter()
    work[kind]()
    print(json.dumps(time.perf_counter() - start), flush=True)
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

    def seconds(self, kind: str) -> float:
        """Does a piece of work and says how long it took."""
        self.process.stdin.write(f"{kind}\n")
        self.process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> str:
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("A process ended early; its messages are above.")
        return answer.strip()

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("--model", type=Path, default=ROOT / "assets" / "small_bagel")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    trees = [Tree(folder.resolve(), options.model.resolve(), options.threads) for folder in (options.other, ROOT)]
    for kind in KINDS:
        for tree in trees:  # what is compiled or loaded at first use
            tree.seconds(kind), tree.seconds(kind)
        rounds = [[tree.seconds(kind) for tree in trees] for _ in range(options.rounds)]
        other, ours = (statistics.median(column) for column in zip(*rounds))
        ratio = statistics.median(before / after for before, after in rounds)
        print(json.dumps({"work": kind, "other_seconds": other, "our_seconds": ours, "times_as_fast": ratio}))
    for tree in trees:
        tree.close()


if __name__ == "__main__":
    main()
