"""One run on a machine with a GPU: the base, then the recipes, each with a time limit; the results are split into
parts of 15 MB.

    python -m uniedit_hf.small_world.base.gpu_session --world world.pt.gz --output_dir OUT --base_seconds 80 \\
        --seconds 60 --lora_seconds 20

Each part runs in its own process, first with compiled layers or captured steps, and if that fails without them; a part
that is started again resumes. `--join` puts together `base.pt`, the first seeds of the recipes that were kept, and
the logs and scores.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch


PART = 15_000_000  # bytes
MODULE = "uniedit_hf.small_world.base"
FALLBACKS = {"compiled": ("compiled", "graph", "eager"), "graph": ("graph", "eager"), "eager": ("eager",)}
OVERHEAD = 240.0  # seconds that a part may take in addition to its training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--world", type=Path, help="of world_tables.py")
    parser.add_argument("--output_dir", type=Path, required=True, help="what comes back; at most 8 files")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/gpu_session"), help="what stays there")
    parser.add_argument("--base_seconds", type=float, default=80.0)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the full tunings")
    parser.add_argument("--lora_seconds", type=float, default=20.0)
    parser.add_argument("--batch", type=int, default=1024, help="of the base")
    parser.add_argument("--shape", default="full")
    parser.add_argument("--mode", choices=list(FALLBACKS), default="graph")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--self_drawn", type=int, default=2000)
    parser.add_argument(
        "--join", type=Path, help="a folder of parts to put together in --output_dir, and nothing else"
    )
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    join(options.join, options.output_dir) if options.join else run_session(options)


def run_session(options: argparse.Namespace) -> None:
    """Runs both parts, as far as time allows."""
    options.work_dir.mkdir(parents=True, exist_ok=True)
    world = unpacked(options.world, options.work_dir)
    base, recipes = options.work_dir / "base", options.work_dir / "recipes"
    try:
        arguments = ["--world", world, "--output_dir", base, "--seconds", options.base_seconds]
        arguments += ["--batch", options.batch, "--shape", options.shape]
        run_part("gpu_base", arguments, options.mode, options.base_seconds)
        in_parts(halved(base / "weights.pt"), options.output_dir / "base.pt")
        arguments = ["--world", world, "--base", base / "weights.pt", "--output_dir", recipes]
        arguments += ["--seconds", options.seconds, "--lora_seconds", options.lora_seconds]
        arguments += ["--seeds", options.seeds, "--self_drawn", options.self_drawn]
        run_part("gpu_recipes", arguments, options.mode, options.seconds + options.lora_seconds)
        for file in kept_tunings(recipes):
            in_parts(file, options.output_dir / file.name)
    finally:
        pack_results([base, recipes], options.output_dir / "results.tar.gz")


def unpacked(world: Path, folder: Path) -> Path:
    """The world's file without compression, which is faster to read."""
    target = folder / "world.pt"
    if not target.exists():
        target.write_bytes(gzip.decompress(world.read_bytes()))
    return target


def run_part(name: str, arguments: Sequence, mode: str, seconds: float) -> None:
    """Runs a part in the first mode in which it succeeds.

    Raises:
        RuntimeError: If it fails in every mode.
    """
    for each in FALLBACKS[mode]:
        command = [sys.executable, "-m", f"{MODULE}.{name}", *map(str, arguments), "--mode", each]
        begun = time.perf_counter()
        try:
            code = subprocess.run(command, timeout=seconds + OVERHEAD).returncode
        except subprocess.TimeoutExpired:
            code = "timeout"
        print(json.dumps({"part": name, "mode": each, "code": code, "seconds": round(time.perf_counter() - begun)}))
        if code == 0:
            return
    raise RuntimeError(f"{name} failed in every mode; its output is above.")


def halved(weights: Path) -> Path:
    """Writes a copy of a weights file in 16 bit, next to it."""
    stored = torch.load(weights, weights_only=True)
    stored["weights"] = {name: weight.half() for name, weight in stored["weights"].items()}
    target = weights.with_name("half.pt")
    torch.save(stored, target)
    return target


def kept_tunings(recipes: Path) -> list[Path]:
    """The first seeds of the chosen recipe and of the adapters with the smallest losses."""
    facts = json.loads((recipes / "chosen.json").read_text())
    names = [facts["chosen"]]
    adapters = sorted((r for r in facts["most_lost"] if r.startswith("LoRA")), key=facts["most_lost"].get)
    names += [name for name in adapters[:1] if name not in names]
    return [recipes / f"{name.replace(' ', '_').replace(',', '')}.pt" for name in names]


def in_parts(file: Path, target: Path) -> None:
    """Copies a file as `target.0`, `target.1`, ..."""
    data = file.read_bytes()
    for number, begin in enumerate(range(0, len(data), PART)):
        target.with_name(f"{target.name}.{number}").write_bytes(data[begin : begin + PART])


def join(parts: Path, target: Path) -> None:
    """Joins the parts of every file, and unpacks the results."""
    for first in sorted(parts.glob("*.0")):
        files = sorted(parts.glob(f"{first.stem}.*"), key=lambda file: int(file.suffix[1:]))
        (target / first.stem).write_bytes(b"".join(file.read_bytes() for file in files))
    with tarfile.open(parts / "results.tar.gz") as archive:
        archive.extractall(target, filter="data")


def pack_results(folders: Sequence[Path], target: Path) -> None:
    """Packs the existing logs, scores and the choice."""
    with tarfile.open(target, "w:gz") as archive:
        for folder in folders:
            for file in sorted(folder.rglob("*.json*")):
                archive.add(file, f"{folder.name}/{file.relative_to(folder)}")


if __name__ == "__main__":
    main()
