"""Compares ways of training: which fit the card, which one is chosen, and the error if none fits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch
from peft import PeftConfig

from uniedit_hf.models.workload import typical_workload

from .activations import Checkpointing
from .cards import Card
from .config import UniEditConfig
from .memory_plan import GIB, RESERVE, Planner, PlanRow, Way


ROUNDED = "bf16_stochastic_round=True"
# From the most exact to the smallest: full tuning, then a part of the weights, then adapters.
FULL = (
    Way("full-fp32", torch.float32),
    Way("full-24bit", optim="flash_adamw", needs="flashoptim"),
    Way("full-8bit", optim="adamw_torch_8bit", optim_args=ROUNDED, needs="torchao"),
    Way("full-4bit", optim="adamw_torch_4bit", optim_args=ROUNDED, needs="torchao"),
)
GEN = Way("gen-8bit", optim="adamw_torch_8bit", optim_args=ROUNDED, gen_only=True, needs="torchao")
LORA = Way("lora", adapters=True)
QLORA = Way("qlora", adapters=True, bits=4, needs="bitsandbytes")
WAYS = (*FULL, GEN, LORA, QLORA)
MEANINGS = {
    "full-fp32": "fp32 weights, AdamW",
    "full-24bit": "bf16 weights with a stored correction to 24 bits, 8-bit states (FlashOptim)",
    "full-8bit": "bf16 weights with stochastic rounding, 8-bit states (torchao)",
    "full-4bit": "bf16 weights with stochastic rounding, 4-bit states (torchao)",
    "gen-8bit": "only the generation expert, as full-8bit",
    "lora": "adapters on bf16 weights",
    "qlora": "adapters on 4-bit weights (bitsandbytes)",
    "fsdp": "fp32 weights, AdamW, sharded by FSDP2",
}
MIB = 2**20
UNITS = {GIB: "GiB", MIB: "MiB"}
# From the fastest to the smallest.
CHECKPOINTING: tuple[Checkpointing, ...] = ("none", "selective", "full")


@dataclass(frozen=True)
class Plan:
    """All ways for one model on one card.

    Args:
        model: Name of the model.
        card: The device.
        tokens: Tokens of a forward pass.
        accumulation: Forward passes per optimizer step.
        rows: One per way, with the least recomputation that fits, or full recomputation if none fits.
    """

    model: str
    card: Card
    tokens: int
    accumulation: int
    rows: tuple[PlanRow, ...]

    def best(self) -> PlanRow | None:
        """The first way that fits one card and whose package is installed."""
        rows = (row for row in self.rows if row.way.shards == 1 and row.fits(self.card.memory))
        return next((row for row in rows if installed(row.way)), None)

    def __str__(self) -> str:
        unit = GIB if max(row.peak for row in self.rows) >= GIB else MIB
        head = ("way", "weights", "gradients", "states", "activations", "encoders", "peak", "fits", "recompute",
                "s/step", "what it is")  # fmt: skip
        table = [head, *(self._line(row, unit) for row in self.rows)]
        widths = [max(len(line[column]) for line in table) for column in range(len(head) - 1)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, [*widths, 0])).rstrip() for line in table]
        title = (
            f"{self.model}: {self.tokens:,} tokens a forward pass, {self.accumulation} a step, on {self.card.name} "
            f"with {size_of(self.card.memory)}, of which a 32nd is not for tensors; {UNITS[unit]} on each device"
        )
        return "\n".join([title, "", *lines])

    def _line(self, row: PlanRow, unit: int) -> tuple[str, ...]:
        seconds = row.seconds(self.card)
        sizes = (row.weights, row.gradients, row.states, row.activations, row.encoders, row.peak)
        missing = "" if installed(row.way) else f"; pip install {row.way.needs}"
        return (
            row.way.name,
            *(f"{size / unit:.1f}" for size in sizes),
            "yes" if row.fits(self.card.memory) else "no",
            row.checkpointing,
            "?" if seconds is None else f"{seconds:.1f}",
            meaning_of(row.way) + missing,
        )


def make_plan(
    model: str, config, args: UniEditConfig, card: Card, adapters: PeftConfig | None = None, draws: bool = True
) -> Plan:
    """Plans all ways, before any weight is loaded.

    Args:
        model: Name of the model.
        config: Its configuration.
        args: Settings of the run.
        card: The device.
        adapters: The adapters of ways that train adapters; LoRA of rank 16 by default.
        draws: Whether any sample is drawn.
    """
    tokens = args.per_device_train_batch_size * args.max_tokens_per_pack
    planner = Planner(config, args, typical_workload(config, tokens), adapters, draws)
    halved = args.freeze_und or args.freeze_gen or not draws
    rows = [lightest(planner, way, card.memory) for way in WAYS if not (way.gen_only and halved)]
    rows.append(_sharded(planner, card.memory))
    return Plan(model, card, tokens, args.gradient_accumulation_steps, tuple(rows))


def lightest(
    planner: Planner, way: Way, memory: int, checkpointing: Sequence[Checkpointing] = CHECKPOINTING
) -> PlanRow:
    """A way with the least recomputation that fits, or with full recomputation if none fits."""
    rows = [planner.row(way, each) for each in checkpointing]
    return next((row for row in rows if row.fits(memory)), rows[-1])


def _sharded(planner: Planner, memory: int) -> PlanRow:
    """FSDP2 over the smallest number of devices on which it fits, 64 if it fits on none."""
    for shards in (2, 4, 8, 16, 32, 64):
        row = lightest(planner, replace(FULL[0], name=f"fsdp over {shards}", shards=shards), memory)
        if row.fits(memory):
            break
    return row


def memory_of(text: str) -> int:
    """Parses `80GB` (10^9 bytes each) or `80GiB` (2^30 bytes each).

    Raises:
        ValueError: If it is neither.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(GB|GiB)", text.strip())
    if found is None or float(found[1]) == 0:
        raise ValueError(f"plan_memory is {text!r}: give the memory of each device, as in 80GB or 79.6GiB.")
    return round(float(found[1]) * (10**9 if found[2] == "GB" else GIB))


def planned_card(args: UniEditConfig, at_hand: Card) -> Card:
    """The card with the memory of `plan_memory`, or the one of this machine."""
    if args.plan_memory is None:
        return at_hand
    return replace(at_hand, name=f"a device of {args.plan_memory}", memory=memory_of(args.plan_memory))


def refusal(wanted: PlanRow, plan: Plan) -> str:
    """One sentence: why a setting does not fit, and which ways do."""
    what = f"{wanted.way.name} of {plan.model} takes {size_of(wanted.peak)} on each device for {plan.tokens:,} tokens"
    what += f", but {plan.card.name} has {size_of((1 - RESERVE) * plan.card.memory)} for tensors"
    names = [f"{row.way.name} ({size_of(row.peak)})" for row in plan.rows if row.fits(plan.card.memory)]
    if not names:
        return f"{what}, and no other way fits: lower max_tokens_per_pack, or use a larger device."
    *most, last = names
    fitting = f"{', '.join(most)} or {last}" if most else last
    return f"{what}: use {fitting}, which `uniedit train --plan` explains."


def meaning_of(way: Way) -> str:
    """The description of a way."""
    return MEANINGS.get(way.name.partition(" ")[0], way.name)


def size_of(size: float) -> str:
    """Bytes as a readable size."""
    unit = GIB if size >= GIB else MIB
    return f"{size / unit:.1f} {UNITS[unit]}"


def installed(way: Way) -> bool:
    """Whether the package that a way needs is installed."""
    return way.needs is None or find_spec(way.needs) is not None
