"""A training step of a small model in two trees, side by side: `python -m benchmarks.step_speed OTHER [--turns 12]`.

OTHER is a checkout to compare with. Both train the small BAGEL of `assets/` on the same edits, in processes of their
own that take turns of a few steps, so that what else runs on the machine meets both alike. Prints for each way of
training the median seconds of a step in both trees, by the clock and of the CPU, and how many times as fast this tree
is.
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


ROOT = Path(__file__).resolve().parents[1]
SIXTEEN_BIT = {"bf16": True, "activation_checkpointing": False, "ema_decay": 0.99}
# settings in the other tree and in this one; f82ce24 was fastest in 16 bit with plain attention, and its quickstart
# trained so
WAYS = {
    "as the quickstart, 16 bit": (
        SIXTEEN_BIT | {"model_init_kwargs": {"attn_implementation": "eager"}},
        SIXTEEN_BIT,
    ),
    "16 bit": (SIXTEEN_BIT, SIXTEEN_BIT),
    "defaults, fp32 with checkpoints": ({}, {}),
}


def worker(tree: Path, settings: dict, options, folder: str) -> subprocess.Popen:
    """A process that trains in `tree`."""
    command = [sys.executable, ROOT / "benchmarks" / "step_speed_worker.py", ROOT / "assets" / "small_bagel", folder]
    numbers = {"--steps": options.steps, "--turns": options.turns, "--threads": options.threads}
    command += [str(each) for pair in numbers.items() for each in pair] + ["--settings", json.dumps(settings)]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(list(map(str, command)), env=environment, text=True, **pipes)


def turn(process: subprocess.Popen) -> list[float]:
    """Wall and CPU seconds of a step in the next turn."""
    process.stdin.write("\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith("["):
            return json.loads(line)
    raise RuntimeError(f"A training process ended with exit code {process.wait()} before its last turn.")


def compare(settings: tuple[dict, dict], options) -> dict[str, float]:
    """Medians over all turns but the first."""
    with tempfile.TemporaryDirectory() as folder:
        trees = (Path(options.other).resolve(), ROOT)
        processes = [worker(tree, each, options, folder) for tree, each in zip(trees, settings)]
        turns = [[turn(process) for process in processes] for _ in range(options.turns)][1:]
        for process in processes:
            process.stdin.close()
            process.wait()
    figures = {}
    for place, clock in enumerate(("wall", "cpu")):
        other, ours = ([each[tree][place] for each in turns] for tree in range(2))
        figures[f"other_{clock}_seconds"] = round(statistics.median(other), 4)
        figures[f"{clock}_seconds"] = round(statistics.median(ours), 4)
        ratios = [theirs / own for theirs, own in zip(other, ours)]
        figures[f"times_as_fast_{clock}"] = round(statistics.median(ratios), 3)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", help="a checkout to compare with")
    parser.add_argument("--steps", type=int, default=3, help="steps of a turn")
    parser.add_argument("--turns", type=int, default=12, help="turns of each process, the first of which warms up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    options = parser.parse_args()
    for way in options.ways:
        print(json.dumps({"way": way, **compare(WAYS[way], options)}), flush=True)


if __name__ == "__main__":
    main()
