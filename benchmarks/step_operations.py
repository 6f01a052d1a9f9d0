"""Counts the torch operations of a training step of the small BAGEL, in the tree that is on the path:
`PYTHONPATH=TREE python benchmarks/step_operations.py assets/small_bagel [--settings JSON]`.

Prints the tensor operations of a forward and of its backward over one pack of edits, and of the forward those that
would make a GPU's host wait. Counts do not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter

import torch
from step_speed_worker import edits
from torch.profiler import ProfilerActivity, profile

from uniedit_hf.training import UniEditConfig, UniEditTrainer


WAITING = ("aten::nonzero", "aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::masked_select")


def operations(work) -> Counter:
    """Tensor operations by name."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        work()
    return Counter(event.name for event in profiler.events() if event.name.startswith("aten::"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("--settings", type=json.loads, default={})
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        args = UniEditConfig(
            output_dir=folder, max_steps=2, report_to="none", disable_tqdm=True, use_cpu=True,
            max_tokens_per_pack=1536, activation_checkpointing=False, **options.settings,
        )  # fmt: skip
        trainer = UniEditTrainer(options.base, args, train_dataset=edits(80))
        pack = next(iter(trainer.get_train_dataloader()))
    features = {name: value for name, value in pack.items() if name != "pack" and not name.startswith("num_")}
    model, losses = trainer.model.train(), []
    with torch.autocast("cpu", torch.bfloat16, enabled=bool(args.bf16)):
        losses.append(model(**features))  # what is made once stays out
        losses.clear()
        forward = operations(lambda: losses.append(model(**features)))
    backward = operations(losses[0].image_sum.backward)
    waiting = {name: forward[name] for name in WAITING if forward[name]}
    print(json.dumps({"forward": forward.total(), "backward": backward.total(), "waiting": waiting}))


if __name__ == "__main__":
    main()
