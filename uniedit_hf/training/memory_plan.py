"""Plans the memory of a training step from the configuration alone: the model is built without weights.

Weights, optimizer states and encoders stay in memory throughout. The peak is reached at one of four moments: while
images are encoded; when the loss is computed; when the last layer runs backward, with all activations; when the first
layer runs backward, with all gradients. Bytes are those of tensors; `RESERVE` covers what the driver and the allocator
use.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import nn

from uniedit_hf.models.loading import empty_model, inner_model
from uniedit_hf.models.workload import Workload, typical_workload

from .activations import Activations, Checkpointing
from .cards import Card
from .config import UniEditConfig
from .flops import OperationCounter, Operations
from .freezing import adapted_layers, freeze


GIB = 2**30
# Share of a device for its context, library workspaces, and free blocks too small to use.
RESERVE = 1 / 32
# Optimizers of transformers -> bytes of states per byte of a weight. Others count as AdamW.
STATES_OF_A_BYTE = {"sgd": 0, "adafactor": 0.01, "lion_32bit": 1}
ADAMW = 2
# Bytes of states per weight of any dtype, and the quantization block.
STATES_OF_A_WEIGHT = {
    "adamw_torch_8bit": (2 * (1 + 4 / 256), 256),  # torchao: an fp32 scale per block
    "adamw_torch_4bit": (2 * (1 / 2 + 4 / 256), 256),
    "adamw_bnb_8bit": (2 * (1 + 4 / 256), 1),
    "adamw_8bit": (2 * (1 + 4 / 256), 1),
    "flash_adamw": (1 + 2 * (1 + 2 / 32), 1),  # the correction to 24 bits, and two moments with scales in fp16
}
SMALLEST_QUANTISED = 4096  # tensors with fewer weights keep full states
# Bits -> bytes per weight stored by bitsandbytes; NF4 has an fp32 scale for every block of 64.
STORED = {4: 1 / 2 + 4 / 64, 8: 1}
# Share of a card's peak that our decoder reached on an H200 with full recomputation (benchmarks/RESULTS.md).
EFFICIENCY = 0.4
# The same for the fp32 convolutions of the autoencoder.
ENCODING_EFFICIENCY = 0.075


@dataclass(frozen=True)
class Way:
    """One way of training.

    Args:
        name: Its name in tables and messages.
        dtype: dtype of the weights.
        optim: The optimizer, as `optim` takes it.
        optim_args: Its arguments, as `optim_args` takes them.
        adapters: Whether adapters are trained instead of the weights.
        bits: 4 or 8 if the weights under the adapters are quantized.
        gen_only: Whether only the generation expert is trained.
        shards: Number of devices over which FSDP2 shards weights, gradients and states.
        needs: The optional package that it requires.
    """

    name: str
    dtype: torch.dtype = torch.bfloat16
    optim: str = "adamw_torch_fused"
    optim_args: str | None = None
    adapters: bool = False
    bits: int | None = None
    gen_only: bool = False
    shards: int = 1
    needs: str | None = None


@dataclass(frozen=True)
class PlanRow:
    """Bytes of a way on each device.

    Args:
        way: The way of training.
        checkpointing: Which activations are kept.
        weights: All weights except the encoders', with adapters.
        gradients: Gradients of everything that is trained.
        states: Optimizer states, and the moving average.
        activations: Activations at the moment that needs the most.
        encoders: Weights of the encoders, which are not sharded.
        peak: The most at once; less than the sum if activations are freed before all gradients exist.
        operations: Floating-point operations of an optimizer step on each device, including recomputation.
        encoding: The part of them that is fp32 convolutions.
    """

    way: Way
    checkpointing: Checkpointing
    weights: int
    gradients: int
    states: int
    activations: int
    encoders: int
    peak: int
    operations: int
    encoding: int

    def fits(self, memory: int) -> bool:
        """Whether it fits a device with this many bytes, `RESERVE` included."""
        return self.peak <= (1 - RESERVE) * memory

    def seconds(self, card: Card) -> float | None:
        """Expected seconds of an optimizer step, without waiting for data or other devices; `None` for an unknown
        card.
        """
        if card.tflops is None:
            return None
        speed = card.tflops * 1e12
        products = (self.operations - self.encoding) / (speed * EFFICIENCY)
        touched = 2 * (self.weights + self.states) + self.gradients
        updating = touched / (card.bandwidth * 1e12)
        return products + self.encoding / (speed * ENCODING_EFFICIENCY) + updating


def plan_row(
    config,
    tokens: int,
    way: Way,
    checkpointing: Checkpointing = "full",
    *,
    args: UniEditConfig | None = None,
    adapters: PeftConfig | None = None,
    work: Workload | None = None,
    draws: bool = True,
) -> PlanRow:
    """Plans one way.

    Args:
        config: Configuration of a model of either family.
        tokens: Tokens of a forward pass: packs times their length.
        way: See `WAYS`.
        checkpointing: Which activations are kept.
        args: The settings; by default the paper's, with one pack a step.
        adapters: The adapters of ways that train adapters; LoRA of rank 16 by default.
        work: Workload of a forward pass; by default edits, see `typical_workload`.
        draws: Whether any sample is drawn.
    """
    args = args or UniEditConfig(output_dir="plan", use_cpu=True, bf16=True)
    return Planner(config, args, work or typical_workload(config, tokens), adapters, draws).row(way, checkpointing)


class Planner:
    """Plans ways of training one model on packs of one kind.

    Args:
        config: Configuration of a model of either family.
        args: Settings of the run.
        work: Workload of a forward pass.
        adapters: The adapters of ways that train adapters; LoRA of rank 16 by default.
        draws: Whether any sample is drawn.
    """

    def __init__(self, config, args: UniEditConfig, work: Workload, adapters: PeftConfig | None, draws: bool):
        self.config = config
        self.args = args
        self.work = work
        self.adapters = adapters
        self.draws = draws
        self._models: dict[tuple[bool, bool], nn.Module] = {}
        self._operations: dict[tuple[bool, bool, bool], Operations] = {}

    def row(self, way: Way, checkpointing: Checkpointing) -> PlanRow:
        """Plans one way with one mode of checkpointing."""
        args, residual = self.args, way.dtype.itemsize
        parts = Parameters(self._model(way), way)
        autocast = args.bf16 or args.fp16
        compute = 2 if autocast else residual
        inputs = way.adapters * (compute if autocast else 4)
        activations = Activations(self.config, residual, compute, inputs, bool(args.torch_compile))
        width = 4 if way.adapters else residual
        gradients = sum(parts.trained) * width / way.shards
        states = states_bytes(way.optim, parts.trained, width)
        states += 4 * sum(parts.trained) * (args.ema_decay is not None)
        beside, peak = _moments(parts, activations, self.work, checkpointing, gradients, args)
        operations = self._count(way, checkpointing == "full")
        repeats = args.gradient_accumulation_steps
        resident = (parts.weights + states) / way.shards + parts.encoders
        return PlanRow(
            way,
            checkpointing,
            weights=round(parts.weights / way.shards),
            gradients=round(gradients),
            states=round(states / way.shards),
            activations=round(beside),
            encoders=round(parts.encoders),
            peak=round(resident + peak),
            operations=repeats * operations.total,
            encoding=repeats * operations.encoding,
        )

    def _model(self, way: Way) -> nn.Module:
        """The model without weights, frozen and with adapters as the way needs it."""
        key = (way.adapters, way.gen_only)
        if key not in self._models:
            model, args = empty_model(self.config), copy.copy(self.args)
            if way.adapters:
                adapters = copy.copy(self.adapters or LoraConfig(r=16, lora_alpha=32))
                if isinstance(adapters, LoraConfig) and adapters.target_modules is None:
                    adapters.target_modules = adapted_layers(model, args, self.draws)
                model = get_peft_model(model, adapters)
            else:
                args.freeze_und |= way.gen_only
                freeze(model, args, self.draws)
            self._models[key] = model
        return self._models[key]

    def _count(self, way: Way, recompute: bool) -> Operations:
        key = (way.adapters, way.gen_only, recompute)
        if key not in self._operations:
            counter = OperationCounter(inner_model(self._model(way)), recompute, self.args.text_loss_weight > 0)
            self._operations[key] = counter.count(self.work)
        return self._operations[key]


def _moments(
    parts: Parameters,
    activations: Activations,
    work: Workload,
    checkpointing: Checkpointing,
    gradients: float,
    args: UniEditConfig,
) -> tuple[float, float]:
    """The peak bytes of activations, and of activations and gradients together."""
    way, tokens = parts.way, work.tokens
    reads = not args.freeze_vit and not way.adapters
    kept = activations.kept(checkpointing) * activations.text.num_hidden_layers * tokens
    kept += activations.around(work) + activations.reading(work, trained=True) * reads
    working = activations.working() * tokens
    # autocast keeps its casts of the weights: all of them until the loss is computed, then those of one layer
    cast = activations.compute if activations.compute < activations.residual else 0
    gathered = 2 * parts.layer * activations.compute if way.shards > 1 else 0
    before = gradients if args.gradient_accumulation_steps > 1 else 0
    of_layer = gradients * parts.layer_trained / max(1, sum(parts.trained))
    # what one layer recomputes besides what it has kept
    whole = checkpointing == "none" or (checkpointing == "selective" and activations.compiled)
    remade = 0 if whole else working - activations.kept(checkpointing) * tokens + cast * parts.layer
    moments = {
        "encoding": (max(activations.encoding(work), activations.reading(work, False)), before),
        "loss": (kept + cast * parts.products / way.shards, before),
        "last layer": (kept + remade, max(before, of_layer)),
        "first layer": (
            working + cast * parts.layer + 2 * activations.residual * activations.text.hidden_size * tokens,
            max(before, gradients - of_layer),
        ),
        "update": (0, gradients),
    }
    beside = max(bytes_ for bytes_, _ in moments.values()) + gathered
    return beside, max(sum(each) for each in moments.values()) + gathered


def states_bytes(optim: str, sizes: Iterable[int], width: int) -> float:
    """Bytes of an optimizer's states for parameters of these sizes and `width` bytes a weight."""
    if optim not in STATES_OF_A_WEIGHT:
        return sum(sizes) * width * STATES_OF_A_BYTE.get(optim, ADAMW)
    each, block = STATES_OF_A_WEIGHT[optim]
    return sum(size * (each if size >= SMALLEST_QUANTISED and size % block == 0 else ADAMW * width) for size in sizes)


class Parameters:
    """Counts the parameters of a model without weights.

    Args:
        model: Frozen or adapted as it is trained.
        way: How its weights are stored.

    Attributes:
        trained: Sizes of all parameters that are trained.
        weights: Bytes of all but the encoders.
        encoders: Bytes of the encoders.
        layer: Weights of a layer of the decoder.
        layer_trained: Those of them that are trained, or of its adapters.
        products: Weights of all matrix products outside the encoders.
    """

    def __init__(self, model: nn.Module, way: Way):
        self.way = way
        inner = inner_model(model)
        encoders = {id(each) for part in inner.encoders for each in part.parameters()}
        fixed = {id(each) for each in inner.trainable_parts()["fixed"]}
        self.trained = [each.numel() for each in model.parameters() if each.requires_grad]
        self.weights = self.encoders = 0.0
        self.products = 0
        layers: dict[str, list[int]] = {}
        for name, parameter in model.named_parameters():
            size, width = parameter.numel(), way.dtype.itemsize
            is_product = parameter.ndim == 2 and "embed" not in name
            layer = re.search(r"language_model\.layers\.\d+\.", name)
            if way.adapters and parameter.requires_grad:
                width = 4  # PEFT keeps adapters in fp32
            elif way.bits is not None and layer and is_product:
                width = STORED[way.bits]
            if id(parameter) in encoders:
                self.encoders += size * (4 if id(parameter) in fixed else width)  # the autoencoder stays in fp32
            else:
                self.weights += size * width
                self.products += size * is_product
            if layer:
                counts = layers.setdefault(layer[0], [0, 0])
                counts[0] += size
                counts[1] += size * parameter.requires_grad
        self.layer, self.layer_trained = max(layers.values())
