"""`uniedit train` with its weights really sharded on the CPU. accelerate shards on accelerators alone and would fall
back to whole weights without a word; so it is told that these processes, which talk through gloo, have one each.

    accelerate launch --use_fsdp --fsdp_version 2 ... tests/fsdp_on_cpu.py --config FILE
"""

from __future__ import annotations

import sys

from accelerate.state import PartialState
from accelerate.utils import DistributedType

from uniedit_hf import cli
from uniedit_hf.cli import train


choose_device = PartialState.set_device
leave_processes = train.leave_processes


def set_device(state: PartialState) -> None:
    choose_device(state)
    if state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU


def say_how_and_leave(code: int = 0) -> None:
    sys.stdout.write(f"Trained with {PartialState().distributed_type}\n")
    leave_processes(code)


if __name__ == "__main__":
    PartialState.set_device = set_device
    train.leave_processes = say_how_and_leave  # here, as processes beside the first end in it
    sys.exit(cli.main(["train", *sys.argv[1:]]))
