"""Floating-point operations of a training step, counted from its packs and from what is trained.

A multiplication and an addition are two operations. Matrix products, attention and the autoencoder's convolutions
count; norms, activations and the optimizer, which are limited by memory, do not. Attention counts the pairs that are
seen, whatever else the kernel computes. A frozen layer has no gradient for its weights, and none for its input if
nothing before it is trained.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass

from torch import nn

from uniedit_hf.compat import embeddings_pass_gradients
from uniedit_hf.models.workload import Workload, encoder_operations, rows_of


# The parts of a decoder layer in the order in which they run; parts with the same number run in parallel.
ORDER = (
    ("input_layernorm",),
    ("q_proj", "k_proj", "v_proj"),
    ("q_norm", "k_norm"),
    ("o_proj",),
    ("post_attention_layernorm",),
    ("gate_proj", "up_proj"),
    ("down_proj",),
)
ATTENDED = 3  # from here on, tokens of one expert depend on those of the other
# BAGEL's experts have streams of their own until attention mixes them -> what leads into each.
STREAMS = {"understood": ("read", "embed_tokens", "understood"), "drawn": ("vae2llm", "time_embedder", "drawn")}


@dataclass(frozen=True)
class Product:
    """A matrix product of a layer.

    Args:
        rows: The field of `Workload` that has its number of rows.
        forward: Operations per row.
        backward: Operations per row for the gradients of input and weights.
        repeated: Whether it is in a layer that may be recomputed: those of the decoder, and of an understanding
            encoder that is trained.
        for_text: Whether only the text loss reaches it.
    """

    rows: str
    forward: int
    backward: int
    repeated: bool
    for_text: bool


@dataclass(frozen=True)
class Operations:
    """Operations of a step by kind."""

    forward: int = 0
    backward: int = 0
    recomputed: int = 0
    encoding: int = 0

    @property
    def useful(self) -> int:
        """Operations that the step needs, as MFU counts them: all but the recomputed ones."""
        return self.forward + self.backward + self.encoding

    @property
    def total(self) -> int:
        """Operations that the hardware executes."""
        return self.useful + self.recomputed

    def __add__(self, other: Operations) -> Operations:
        return Operations(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


class OperationCounter:
    """Counts packs for one model.

    Args:
        model: The model with its adapters, frozen as in training. No weight is read, so it may be on the meta device.
        recompute: Whether the layers of the decoder run again in the backward pass.
        text_loss: Whether the text loss has a weight.
    """

    def __init__(self, model: nn.Module, recompute: bool, text_loss: bool = True):
        config = model.config
        self.config = getattr(config, "base_model_config", config)
        self.recompute = recompute
        self.text_loss = text_loss
        self.encoding = functools.cache(functools.partial(encoder_operations, self.config))  # of a size of image
        self.products, decoder_trained, self.reader_trained = _products(model, self.config.model_type)
        text, vision = self.config.text_config, self.config.vision_config
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        # two products (queries with keys, weights with values), and twice as much backward
        self.pair = 4 * text.num_hidden_layers * text.num_attention_heads * width
        self.read_pair = 4 * vision.num_hidden_layers * vision.hidden_size
        self.pair_backward = 2 * self.pair * decoder_trained
        self.read_pair_backward = 2 * self.read_pair * self.reader_trained

    def count(self, work: Workload) -> Operations:
        """The operations of forward and backward over packs."""
        forward = self.pair * work.pairs + self.read_pair * work.read_pairs
        backward = self.pair_backward * work.pairs + self.read_pair_backward * work.read_pairs
        recomputed = self.pair * work.pairs + self.read_pair * work.read_pairs * self.reader_trained
        for product in self.products:
            rows = getattr(work, product.rows)
            forward += rows * product.forward
            backward += rows * product.backward * (self.text_loss or not product.for_text)
            recomputed += rows * product.forward * product.repeated
        encoding = sum(self.encoding(*size) for size in work.images)
        return Operations(forward, backward, recomputed if self.recompute else 0, encoding)


def _products(model: nn.Module, family: str) -> tuple[list[Product], bool, bool]:
    """All matrix products, and whether gradients pass the attention of the decoder and of the encoder."""
    needed = _inputs_with_gradient(model, family)
    reader_trained = any("_attn." in name and rows_of(family, f".{name}") == "read" for name in needed)
    ends = _last_products(model)
    last_layer = max(filter(None, (_layer_of(name) for name, _ in model.named_modules())), default=0)
    products = []
    for name, module in model.named_modules():
        rows = rows_of(family, f".{name}") if isinstance(module, (nn.Linear, nn.Conv2d)) else None
        if rows is not None:
            size = _size(module)
            backward = 2 * size * (_is_trained(module) + (name in needed))
            repeated = _layer_of(name) is not None or (reader_trained and ".encoder.layers." in name)
            after_attention = _layer_of(name) == last_layer and _order(name) >= ATTENDED
            for_text = rows == "text_targets" or rows == "understood" and after_attention
            products.append(Product(rows, 2 * size, backward, repeated and name not in ends, for_text))
    return products, any("o_proj" in name for name in needed), reader_trained


def _last_products(model: nn.Module) -> set[str]:
    """The last products of a layer. Nothing saves their output, so recomputation stops before them."""
    ends: dict[str, str] = {}
    for name, module in model.named_modules():
        layer = re.match(r".*\.layers\.\d+\.", name)
        if layer and isinstance(module, nn.Linear) and re.search(r"mlp.*\.(down_proj|fc2)", name):
            ends[layer[0]] = name  # the last one registered runs last
    return set(ends.values())


def _size(module: nn.Linear | nn.Conv2d) -> int:
    """Number of weights in a matrix, also if stored in 4 bits, where the tensor has another shape."""
    return module.in_features * module.out_features if isinstance(module, nn.Linear) else module.weight.numel()


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def _inputs_with_gradient(model: nn.Module, family: str) -> set[str]:
    """Names of the layers whose input needs a gradient, because something that is trained comes before."""
    places: dict[tuple, list[tuple[str, nn.Module]]] = {}
    for number, (name, module) in enumerate(model.named_modules()):
        if next(module.parameters(recurse=False), None) is not None:
            places.setdefault(_place(name, family, number), []).append((name, module))
    needed: set[str] = set()
    reached: dict[str, bool] = {}  # chain -> whether anything in it was trained so far
    if embeddings_pass_gradients(model):
        reached["embed_tokens"] = True  # transformers lets the embeddings pass a gradient where adapters recompute
    for place in sorted(places):
        stage, chain = place[0], place[-1]
        leading = (chain,) if stage == 0 else (*STREAMS.get(chain, reached), "mixed")
        before = any(reached.get(each, False) for each in leading)
        for name, module in places[place]:
            # the first half of an adapter is followed by its second
            if before or ".lora_B." in name and _is_trained(module):
                needed.add(name)
        reached[chain] = before or any(_is_trained(module) for _, module in places[place])
    return needed


def _place(name: str, family: str, number: int) -> tuple:
    """Stage, layer, order and chain: the input layers (each chain by itself), then the decoder, then the heads."""
    layer, rows = _layer_of(name), rows_of(family, f".{name}")
    if layer is not None:
        order = _order(name)
        return 1, layer, order, rows if rows in STREAMS and order < ATTENDED else "mixed"
    if rows is not None and rows.endswith("targets"):
        return 2, 0, number, "heads"
    if re.search(r"\.language_model\.norm", f".{name}"):
        return 1, math.inf, number, "mixed"
    chain = name.rpartition("model.")[2].partition(".")[0]
    chain = "read" if rows in ("read", "seen") else "generation" if chain.startswith("generation_") else chain
    return 0, 0, number, chain


def _order(name: str) -> int:
    """The position of a part in the order of a decoder layer."""
    return next((i for i, parts in enumerate(ORDER) if any(part in name for part in parts)), len(ORDER))


def _layer_of(name: str) -> int | None:
    """The number of the decoder's layer that a module is in."""
    found = re.search(r"\.language_model\.layers\.(\d+)\.", f".{name}")
    return None if found is None else int(found[1])
