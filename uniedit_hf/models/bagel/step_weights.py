"""The operations of the experts before and after attention in one step of drawing or writing, on plain weights.

A step has few tokens, so that calling modules takes a CPU longer than their products. Here an expert is a tuple of
tensors: queries, keys and values are one product, gate and up another; norms and rotary positions are one each; the
products add the residuals. The numbers are those of the modules up to rounding. Whatever is not plain weights
(adapters, quantized or sharded weights, hooks, autocast) goes through the modules.

Shapes: n tokens of an expert, D hidden size, H query heads, K key and value heads, E head size, M size of the MLP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from uniedit_hf.compat import has_forward_hooks

from .decoder_bagel import EAGER, BagelAttention, BagelDecoderLayer, BagelRMSNorm, Regions


PLAIN_MODULES = {BagelAttention, BagelDecoderLayer, BagelRMSNorm, Qwen2MLP, nn.Linear, nn.ModuleList}
PLAIN_MODULES |= {type(ACT2FN["silu"])}


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
        qkv_bias: ((H + 2 K) E,).
        head_norm: Weights of the norms of queries and keys, (H + K, E).
        out: (H E, D).
        post_norm: Before the MLP.
        gate_up: (D, 2 M).
        down: (M, D).
    """

    heads: tuple[int, int]
    input_norm: Norm
    qkv: torch.Tensor
    qkv_bias: torch.Tensor
    head_norm: Norm
    out: torch.Tensor
    post_norm: Norm
    gate_up: torch.Tensor
    down: torch.Tensor


def project(weights: Weights, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """As `decoder_bagel.project`: hidden states (n, D) to queries, keys and values (n, heads, E)."""
    rows = torch.addmm(weights.qkv_bias, weights.input_norm(hidden), weights.qkv)
    num_queries, num_keys = weights.heads
    rows = rows.view(len(hidden), num_queries + 2 * num_keys, cos.shape[-1])
    both, value = rows.split_with_sizes([num_queries + num_keys, num_keys], 1)
    both = weights.head_norm(both)
    swapped = both.view(*both.shape[:2], 2, -1).flip(2).view(both.shape)
    query, key = torch.addcmul(both * cos, swapped, sin).split_with_sizes(weights.heads, 1)
    return query, key, value


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
    if regions is EAGER and _is_plain(decoder):
        norm_of = _norms(decoder)
        return [tuple(_weights(layer, suffix, norm_of) for suffix in suffixes) for layer in decoder.layers], PLAIN
    return [tuple(layer.expert(suffix) for suffix in suffixes) for layer in decoder.layers], regions


# the decoder that writes an answer, with what `step_experts` found for it
_ANSWER: ContextVar[tuple[nn.Module, list, Regions] | None] = ContextVar("answer", default=None)


@contextmanager
def answering(decoder: nn.Module) -> Iterator[None]:
    """Keeps the experts of a decoder for all tokens of an answer, in which its modules must stay what they are."""
    experts, regions = step_experts(decoder, ("",), EAGER)
    token = _ANSWER.set((decoder, [expert for (expert,) in experts], regions))
    try:
        yield
    finally:
        _ANSWER.reset(token)


def text_experts(decoder: nn.Module, regions: Regions) -> tuple[list, Regions]:
    """The understanding expert of every layer, and what the layers do with it: the kept ones within an answer."""
    kept = _ANSWER.get()
    if kept is not None and kept[0] is decoder and regions is EAGER:
        return kept[1:]
    return [layer.expert("") for layer in decoder.layers], regions


def _is_plain(decoder: nn.Module) -> bool:
    """Whether the layers are nothing but their modules' weights, all of one dtype."""
    modules, parameters = list(decoder.layers.modules()), list(decoder.layers.parameters())
    device = parameters[0].device.type
    return (
        {type(module) for module in modules} <= PLAIN_MODULES
        and not any(map(has_forward_hooks, modules))
        and {type(parameter.data) for parameter in parameters} == {torch.Tensor}
        and len({parameter.dtype for parameter in parameters}) == 1
        and device != "meta"
        and not torch.is_autocast_enabled(device)
    )


def _norms(decoder: nn.Module) -> Callable[..., Norm]:
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


def _weights(layer: nn.Module, suffix: str, norm_of: Callable[..., Norm]) -> Weights:
    expert, size = layer.expert(suffix), layer.self_attn.head_dim
    projections = (expert.q_proj, expert.k_proj, expert.v_proj)
    heads = [len(each.weight) // size for each in projections]
    head_weights = [norm.weight.expand(n, size) for norm, n in zip((expert.q_norm, expert.k_norm), heads)]
    mlp = expert.mlp
    return Weights(
        (heads[0], heads[1]),
        norm_of(expert.input_norm.weight.data, expert.input_norm.variance_epsilon),
        side_by_side([each.weight for each in projections]).t(),
        side_by_side([each.bias for each in projections]),
        norm_of(torch.cat(head_weights).data, expert.q_norm.variance_epsilon),
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
