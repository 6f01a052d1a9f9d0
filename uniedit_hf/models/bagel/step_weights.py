"""The operations of the experts before and after attention in one step of drawing or writing, on plain weights.

A step has few tokens, so that calling modules takes a CPU longer than their products. Here an expert is a tuple of
tensors: queries, keys and values are one product, gate and up another; norms and rotary positions are one each; the
products add the residuals. The numbers are those of the modules up to rounding. Whatever is not plain weights
(adapters, quantized or sharded weights, hooks, autocast) goes through the modules.

Shapes: n tokens of an expert, D hidden size, H query heads, K key and value heads, E head size, M size of the MLP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from uniedit_hf.compat import has_forward_hooks

from .decoder_bagel import EAGER, BagelAttention, BagelDecoderLayer, BagelRMSNorm, Expert, Regions


SHARED_MODULES = frozenset({nn.Linear, nn.ModuleList, type(ACT2FN["silu"])})
NORMS = (BagelRMSNorm, LlamaRMSNorm)
PLAIN_MODULES = SHARED_MODULES | {BagelAttention, BagelDecoderLayer, BagelRMSNorm, Qwen2MLP}


class Norm(NamedTuple):
    """An RMS norm over the last dimension.

    Args:
        weight: (size,) or (heads, size).
        eps: Added to the mean square.
        floor: () where the norm is made of lengths, in which `eps` is this length; `weight` then has the square root
            of the size in it. `None` where the device has the norm as one operation.
    """

    weight: torch.Tensor
    eps: float
    floor: torch.Tensor | None

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        if self.floor is None:
            return nn.functional.rms_norm(states, states.shape[-1:], None, self.eps) * self.weight
        length = torch.hypot(torch.linalg.vector_norm(states, dim=-1, keepdim=True), self.floor)
        return (states / length).mul_(self.weight)


class Weights(NamedTuple):
    """One expert in one layer: its norms, and its matrices with the inputs as rows.

    Args:
        heads: H and K.
        input_norm: Before the projections.
        qkv: (D, (H + 2 K) E).
        qkv_bias: ((H + 2 K) E,), or `None`.
        head_norm: The norms of queries and keys, with weights (H + K, E), or `None`.
        out: (H E, D).
        post_norm: Before the MLP.
        gate_up: (D, 2 M).
        down: (M, D).
    """

    heads: tuple[int, int]
    input_norm: Norm
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    head_norm: Norm | None
    out: torch.Tensor
    post_norm: Norm
    gate_up: torch.Tensor
    down: torch.Tensor


def joint(weights: Weights, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Hidden states (n, D) and tables (n, 1, E) to queries, keys and values side by side, (n, (H + 2 K) E)."""
    normed, bias = weights.input_norm(hidden), weights.qkv_bias
    rows = torch.mm(normed, weights.qkv) if bias is None else torch.addmm(bias, normed, weights.qkv)
    size, num_heads = cos.shape[-1], sum(weights.heads)
    both = heads_of(rows, 0, num_heads, size)
    normed = both if weights.head_norm is None else weights.head_norm(both)
    # A second copy behind each head, so that swapped halves are a view.
    swapped = torch.cat([normed, normed], -1).as_strided(normed.shape, (2 * num_heads * size, 2 * size, 1), size // 2)
    torch.mul(normed, cos, out=both).addcmul_(swapped, sin)
    return rows


def heads_of(rows: torch.Tensor, first: int, count: int, size: int) -> torch.Tensor:
    """Some heads (n, count, E) of rows with all heads side by side: a view, by one operation."""
    return rows.as_strided((len(rows), count, size), (rows.shape[1], size, 1), first * size)


def project(weights: Weights, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """As `decoder_bagel.project`: hidden states (n, D) to queries, keys and values (n, heads, E)."""
    rows, (num_queries, num_keys) = joint(weights, hidden, cos, sin), weights.heads
    parts = ((0, num_queries), (num_queries, num_keys), (num_queries + num_keys, num_keys))
    return tuple(heads_of(rows, *part, cos.shape[-1]) for part in parts)


def absorb(weights: Weights, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """As `decoder_bagel.absorb`: hidden states (n, D) and attention output (n, H * E) to (n, D)."""
    hidden = torch.addmm(hidden, attended, weights.out)
    normed = weights.post_norm(hidden)
    gate, up = torch.mm(normed, weights.gate_up).split_with_sizes([len(weights.down)] * 2, 1)
    inner = nn.functional.silu(gate).mul_(up)
    return torch.addmm(hidden, inner, weights.down)


PLAIN = EAGER._replace(project=project, absorb=absorb)


def step_experts(decoder: nn.Module, suffixes: Sequence[str], regions: Regions) -> tuple[list[tuple], Regions]:
    """The experts of every layer for one drawing or answer, and the operations before and after attention.

    Args:
        decoder: The language model of a `BagelModel`.
        suffixes: Suffixes of the experts, see `BagelDecoderLayer.expert`.
        regions: The regions that were asked for; compiled regions take modules.
    """
    if regions is EAGER and is_plain(decoder.layers):
        norm_of, size = norms_of(decoder), decoder.layers[0].self_attn.head_dim
        return [
            tuple(weights_of(layer.expert(suffix), size, norm_of) for suffix in suffixes) for layer in decoder.layers
        ], PLAIN
    return [tuple(layer.expert(suffix) for suffix in suffixes) for layer in decoder.layers], regions


def is_plain(layers: nn.ModuleList, kinds: frozenset[type] = PLAIN_MODULES) -> bool:
    """Whether layers are nothing but the weights of modules of these kinds, all of one dtype."""
    modules, parameters = list(layers.modules()), list(layers.parameters())
    device = parameters[0].device.type
    return (
        {type(module) for module in modules} <= kinds
        and not any(map(has_forward_hooks, modules))
        and {type(parameter.data) for parameter in parameters} == {torch.Tensor}
        and len({parameter.dtype for parameter in parameters}) == 1
        and device != "meta"
        and not torch.is_autocast_enabled(device)
    )


def norms_of(decoder: nn.Module) -> Callable[..., Norm]:
    """A function that makes the norms. They use lengths in fp32 on a CPU, where rms_norm is a dozen operations."""
    like = decoder.norm.weight
    by_length = like.device.type == "cpu" and like.dtype == torch.float32
    floors: dict[tuple[int, float], torch.Tensor] = {}

    def norm_of(weight: torch.Tensor, eps: float) -> Norm:
        if not by_length:
            return Norm(weight, eps, None)
        size = weight.shape[-1]
        if (size, eps) not in floors:
            floors[size, eps] = weight.new_tensor((size * eps) ** 0.5)
        return Norm(weight * size**0.5, eps, floors[size, eps])

    return norm_of


def last_norm(decoder: nn.Module, name: str, plain: bool = True) -> Callable[[torch.Tensor], torch.Tensor]:
    """The norm of this name behind the layers, as plain weights if these are plain."""
    module = getattr(decoder, name)
    if plain and type(module) in NORMS and not has_forward_hooks(module):
        return norms_of(decoder)(module.weight.data, module.variance_epsilon)
    return module


def weights_of(expert: Expert, size: int, norm_of: Callable[..., Norm]) -> Weights:
    """The plain weights of an expert whose heads have this size; `nn.Identity` stands for no norm of heads."""
    projections = (expert.q_proj, expert.k_proj, expert.v_proj)
    heads = [len(each.weight) // size for each in projections]
    head_norm, bias, mlp = None, None, expert.mlp
    if not isinstance(expert.q_norm, nn.Identity):
        each = [norm.weight.expand(n, size) for norm, n in zip((expert.q_norm, expert.k_norm), heads)]
        head_norm = norm_of(torch.cat(each).data, expert.q_norm.variance_epsilon)
    if expert.q_proj.bias is not None:
        bias = side_by_side([each.bias for each in projections])
    return Weights(
        (heads[0], heads[1]),
        norm_of(expert.input_norm.weight.data, expert.input_norm.variance_epsilon),
        side_by_side([each.weight for each in projections]).t(),
        bias,
        head_norm,
        expert.o_proj.weight.data.t(),
        norm_of(expert.post_norm.weight.data, expert.post_norm.variance_epsilon),
        side_by_side([mlp.gate_proj.weight, mlp.up_proj.weight]).t(),
        mlp.down_proj.weight.data.t(),
    )


def side_by_side(parameters: Sequence[nn.Parameter]) -> torch.Tensor:
    """Parameters as one tensor over their first dimension, without a copy that stays: if their memory is not one
    piece yet, it becomes one, of which each parameter is a slice."""
    first, storage = parameters[0].data, parameters[0].untyped_storage().data_ptr()
    rows, place, apart = 0, first.storage_offset(), False
    for parameter in parameters:
        own = parameter.untyped_storage().data_ptr() == storage and parameter.storage_offset() == place
        apart = apart or not own or not parameter.is_contiguous()
        place, rows = place + parameter.numel(), rows + len(parameter)
    if not apart:
        return first.as_strided((rows, *first.shape[1:]), first.stride())
    whole = torch.cat([parameter.data for parameter in parameters])
    for parameter, part in zip(parameters, whole.split([len(each) for each in parameters])):
        parameter.data = part
    return whole
