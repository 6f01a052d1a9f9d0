"""Planned against counted memory of small models: `python -m benchmarks.training_plan`.

Trains a model of each family for two steps in every case, counts the bytes of all tensors that are alive, and prints
the peak beside the one that was planned before. Then prints the plan of the released BAGEL for the usual cards.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path


sys.path.append(str(Path(__file__).parents[1] / "tests"))

from test_training_plan import CASES, planned_and_counted  # noqa: E402

from uniedit_hf.models.bagel import BagelConfig  # noqa: E402
from uniedit_hf.training import UniEditConfig  # noqa: E402
from uniedit_hf.training.cards import Card  # noqa: E402
from uniedit_hf.training.ways import make_plan, memory_of  # noqa: E402


CARDS = (("141GB", 989, 4.8), ("80GB", 989, 3.35), ("48GB", 362, 0.864), ("24GB", 165.2, 1.008))


def main() -> None:
    print("| family | case | counted, MB | planned, MB | ratio |\n|---|---|---|---|---|")
    for family in ("bagel", "janus"):
        for case in CASES:
            with tempfile.TemporaryDirectory() as folder:
                planned, counted = planned_and_counted(Path(folder), family, case)
            print(f"| {family} | {case} | {counted / 1e6:.1f} | {planned / 1e6:.1f} | {planned / counted:.3f} |")
    for memory, tflops, bandwidth in CARDS:
        args = UniEditConfig(output_dir="plan", use_cpu=True, bf16=True)
        card = Card(f"a card of {memory}", memory_of(memory), tflops, bandwidth)
        print(f"\n{make_plan('BAGEL-7B-MoT', BagelConfig(), args, card)}")


if __name__ == "__main__":
    main()
