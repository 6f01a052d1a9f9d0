"""Applies the plan to a run: dtype, optimizer and activation checkpointing where they are not set, and with
`plan="auto"` the way itself. A model that cannot fit is refused before it is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from peft import LoraConfig, PeftConfig

from uniedit_hf.models.loading import load_config
from uniedit_hf.models.workload import ROWS, typical_workload

from .activations import Checkpointing
from .cards import Card, card_at_hand
from .config import UniEditConfig
from .layer_options import checkpointing_mode
from .memory_plan import Planner, PlanRow, Way
from .quantization import quantized_weights
from .ways import (
    CHECKPOINTING,
    FULL,
    LORA,
    WAYS,
    Plan,
    installed,
    lightest,
    make_plan,
    meaning_of,
    planned_card,
    refusal,
    size_of,
)


@dataclass(frozen=True)
class Choice:
    """The way a run trains.

    Args:
        row: The way with its memory; `None` for a family without a plan.
        sentence: The same in words, for the log and the card; `None` if everything was set or nothing is planned.
        adapters: The adapters that are trained instead of the weights.
        quantization: Quantization of the weights under them.
    """

    row: PlanRow | None
    sentence: str | None
    adapters: PeftConfig | None
    quantization: object | None


def plan_of(model: str, args: UniEditConfig, adapters: PeftConfig | None = None, draws: bool = True) -> Plan:
    """All ways of training a model, from its configuration alone.

    Args:
        model: A Hub id or folder.
        args: Settings of the run.
        adapters: The adapters of ways that train adapters.
        draws: Whether any sample is drawn.

    Raises:
        OSError: If there is no such model.
        ValueError: If `plan_memory` is not a size.
    """
    config = load_config(model, **(args.model_init_kwargs or {}))
    return make_plan(model, config, args, planned_card(args, card_at_hand(args.device)), adapters, draws)


def follow_plan(
    model: str,
    args: UniEditConfig,
    adapters: PeftConfig | None,
    quantization,
    draws: bool = True,
    card: Card | None = None,
) -> Choice:
    """Chooses the settings that are not set, writes them into `args`, and refuses what cannot fit.

    Args:
        model: A Hub id or folder.
        args: Settings of the run; completed in place.
        adapters: The adapters to train, if set.
        quantization: Quantization of the weights under them, if set.
        draws: Whether any sample is drawn.
        card: The device of each process; by default that of this machine.

    Raises:
        OSError: If there is no such model.
        ValueError: If nothing that the settings allow fits; the message names what does.
    """
    config = load_config(model, **(args.model_init_kwargs or {}))
    if args.plan is None and (config.model_type not in ROWS or _uses_deepspeed(args)):
        return Choice(None, None, adapters, quantization)
    card = planned_card(args, card or card_at_hand(args.device))
    tokens = args.per_device_train_batch_size * args.max_tokens_per_pack
    planner = Planner(config, args, typical_workload(config, tokens), adapters, draws)
    ways = _allowed_ways(args, adapters, quantization, card)
    checkpointing = _allowed_checkpointing(args)
    rows = [lightest(planner, way, _memory_for_activations(args, card), checkpointing) for way in ways]
    fitting = [row for row in rows if row.fits(card.memory)]
    if not fitting:
        plan = make_plan(model, config, args, card, adapters, draws)
        raise ValueError(refusal(min(rows, key=lambda row: row.peak), plan))
    row = next((row for row in fitting if installed(row.way)), None)
    if row is None:
        usual = next((each.way for each in fitting if each.way.needs != "flashoptim"), fitting[0].way)
        raise ValueError(
            f"{usual.name} fits {card.name}, but needs the package {usual.needs}, which is not installed: pip install "
            f"{usual.needs}."
        )
    return _applied(row, card, args, adapters, quantization)


def is_sharded(args: UniEditConfig) -> bool:
    """Whether FSDP shards the weights over devices."""
    return bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def _uses_deepspeed(args: UniEditConfig) -> bool:
    """Whether DeepSpeed shards the weights; its memory is not planned."""
    return bool(args.deepspeed) or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def _allowed_ways(args: UniEditConfig, adapters, quantization, card: Card) -> Sequence[Way]:
    """The ways that agree with the settings, best first."""
    on_cpu = card.kind == "cpu"
    dtype = _dtype(args)
    optim = None if "optim" in args.left_open else str(getattr(args.optim, "value", args.optim))
    if adapters is not None:
        bits = next((n for n in (4, 8) if getattr(quantization, f"load_in_{n}bit", False)), None)
        name, usual = LORA.name if bits is None else f"qlora in {bits} bits", torch.float32 if on_cpu else LORA.dtype
        return [replace(LORA, name=name, dtype=dtype or usual, bits=bits, optim=optim or LORA.optim)]
    if is_sharded(args) and args.world_size > 1:
        ways = [replace(FULL[0], name=f"fsdp over {args.world_size}", shards=args.world_size)]
        dtype = None if args.bf16 or args.fp16 else dtype  # accelerate then keeps trained weights in fp32
    elif args.plan == "auto":
        ways = [way for way in WAYS if not (way.gen_only and (args.freeze_und or args.freeze_gen))]
    else:
        ways = list(FULL[:1] if on_cpu else FULL)  # the other ways pay on GPUs
    if dtype is not None:
        ways = [way for way in ways if way.dtype == dtype] or [replace(ways[0], name=f"full in {dtype}", dtype=dtype)]
    if optim is not None:
        other = replace(ways[0], name=f"{ways[0].name} with {optim}", optim=optim, optim_args=None, needs=None)
        ways = [way for way in ways if way.optim == optim] or [other]
    return ways


def _dtype(args: UniEditConfig) -> torch.dtype | None:
    """The dtype of the weights, if it is set."""
    asked = (args.model_init_kwargs or {}).get("dtype")
    if asked == "auto":  # that of the files, bf16 in all released checkpoints
        return torch.bfloat16
    return getattr(torch, asked) if isinstance(asked, str) else asked


def _allowed_checkpointing(args: UniEditConfig) -> Sequence[Checkpointing]:
    """The setting, or the modes to choose from."""
    return CHECKPOINTING if "activation_checkpointing" in args.left_open else [checkpointing_of(args)]


def _memory_for_activations(args: UniEditConfig, card: Card) -> int:
    """Memory that a run may fill to save recomputation: all of a GPU's, or half of a CPU's, which is shared."""
    return card.memory // (2 * args.world_size) if card.kind == "cpu" else card.memory


def checkpointing_of(args: UniEditConfig) -> Checkpointing:
    """The setting `activation_checkpointing`, where true and false mean full and none."""
    asked = args.activation_checkpointing
    return asked if isinstance(asked, str) else "full" if asked or args.gradient_checkpointing else "none"


def _applied(row: PlanRow, card: Card, args: UniEditConfig, adapters, quantization) -> Choice:
    """Writes a way into the settings."""
    way, open_ = row.way, set(args.left_open)
    if _dtype(args) is None:
        open_.add("dtype")
        args.model_init_kwargs = {"dtype": way.dtype} | (args.model_init_kwargs or {})
    if "optim" in open_:
        args.optim, args.optim_args = way.optim, args.optim_args or way.optim_args
    if "activation_checkpointing" in open_:
        args.activation_checkpointing = checkpointing_mode(row.checkpointing)
    args.freeze_und |= way.gen_only
    args.left_open = set()
    if way.adapters and adapters is None:
        adapters = LoraConfig(r=16, lora_alpha=32)
    if way.bits is not None and quantization is None:
        quantization = quantized_weights(way.bits)
    if args.plan != "auto" and card.kind == "cpu" or not open_:
        return Choice(row, None, adapters, quantization)
    sentence = (
        f"{way.name} ({meaning_of(way)}), optimizer {args.optim}, activation checkpointing {row.checkpointing}: "
        f"{size_of(row.peak)} planned on {card.name}"
    )
    return Choice(row, sentence, adapters, quantization)
