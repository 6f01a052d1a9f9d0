"""A step of one token per row with a static cache, whose keys and values never move.

Every step has the same shapes and addresses. So on a CUDA device it is captured once and replayed as one graph; on
other devices its layers can be compiled, each as one region.

Shapes: B rows, S keys in the cache, D hidden size, H query heads, K key and value heads, E head size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn.functional import pad
from transformers import Cache
from transformers.cache_utils import StaticLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from uniedit_hf.models.captured import Replayed
from uniedit_hf.models.offloading import at_work

from .answer_step import text_experts
from .decoder_bagel import EAGER, Regions, compiled_regions, rotary_tables
from .denoising_bagel import on_device_of


def is_static(cache: Cache | None) -> bool:
    """Whether every layer of the cache has its final size and contains a context."""
    layers = [] if cache is None or cache.offloading else cache.layers
    return bool(layers) and all(type(layer) is StaticLayer and layer.is_initialized for layer in layers)


def token_logits(
    model,
    input_ids: torch.Tensor,
    position_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cache: Cache,
    compile_layers: bool,
) -> torch.Tensor:
    """Logits (B, 1, vocabulary) after one token per row, which is added to the cache.

    Args:
        model: A `BagelForConditionalGeneration`.
        input_ids: (B, 1).
        position_ids: (B, 1) rotary positions.
        attention_mask: (B, tokens so far or S), 1 at real tokens; `None` if all are.
        cache: A static cache that contains a context.
        compile_layers: Whether the layers run compiled.
    """
    decoder, on_cpu = model.model.language_model, input_ids.device.type == "cpu"
    at_work(decoder.layers)
    if compile_layers and on_cpu:
        code, experts, regions = compiled_code(), [layer.expert("") for layer in decoder.layers], EAGER
    else:
        code = PLAIN
        experts, regions = text_experts(decoder, compiled_regions() if compile_layers else EAGER)
    hidden, *tables = code.begin(decoder, input_ids, position_ids)
    place = cache.layers[0].cumulative_length.view(1)
    bias = seen_bias(attention_mask, place, cache.layers[0])
    for layer, expert, memory in zip(decoder.layers, experts, cache.layers):
        hidden, tables, place, bias = on_device_of(layer, (hidden, tables, place, bias))
        hidden = code.layer(expert, hidden, *tables, memory.keys, memory.values, place, bias, regions)
    torch._foreach_add_([memory.cumulative_length for memory in cache.layers], 1)
    return code.end(decoder, model.lm_head, hidden)


def seen_bias(attention_mask: torch.Tensor | None, place: torch.Tensor, memory: StaticLayer) -> torch.Tensor:
    """The bias on the scores of one token per row, (B * K, 1, S) in fp32: 0 at keys that it attends to."""
    rows, heads, size = memory.keys.shape[:3]
    unseen = torch.arange(size, device=place.device) > place
    if attention_mask is not None:
        unseen = unseen | ~pad(attention_mask, (0, size - attention_mask.shape[1]), value=1).bool()[:, None]
    bias = unseen * torch.finfo(torch.float32).min
    return bias.expand(rows, heads, size).reshape(rows * heads, 1, size)


# --- the step in three pieces ---------------------------------------------------------------------------------------


def token_begin(decoder, input_ids: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Embeddings (B, D) of one token per row, with the tables (B, 1, E) of its rotary position."""
    embeds = decoder.embed_tokens(input_ids[:, 0])
    return embeds, *rotary_tables(decoder.rotary_emb, embeds, position_ids[:, 0])


def token_layer(expert, hidden, cos, sin, keys, values, place, bias, regions: Regions = EAGER) -> torch.Tensor:
    """One layer over one token per row.

    Args:
        expert: The understanding expert of the layer.
        hidden: (B, D).
        cos, sin: (B, 1, E) tables of rotary positions.
        keys, values: (B, K, S, E), written in place.
        place: (1,) index of the token in the cache.
        bias: (B * K, 1, S) in fp32, added to the scores.
        regions: The regions of the layer.

    Returns:
        (B, D).
    """
    query, key, value = regions.project(expert, hidden, cos, sin)
    keys.index_copy_(2, place, key[:, :, None])
    values.index_copy_(2, place, value[:, :, None])
    # Queries that share a key head are the rows of one product with its keys, which are read once.
    query = query.reshape(len(bias), -1, query.shape[-1])
    scores = _product(query, keys.flatten(0, 1).transpose(1, 2)) * query.shape[-1] ** -0.5
    weights = (scores + bias).softmax(-1).to(values.dtype)
    attended = torch.bmm(weights, values.flatten(0, 1))
    return regions.absorb(expert, hidden, attended.reshape(len(hidden), -1))


def token_end(decoder, head, hidden: torch.Tensor) -> torch.Tensor:
    """Hidden states (B, D) to logits (B, 1, vocabulary)."""
    return head(decoder.norm(hidden))[:, None]


def _product(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """A batch of matrix products in fp32, as attention accumulates them."""
    if first.is_cuda and first.dtype != torch.float32:
        return torch.bmm(first, second, out_dtype=torch.float32)
    return torch.bmm(first.float(), second.float())


class TokenCode(NamedTuple):
    """The three pieces, compiled or not."""

    begin: Callable
    layer: Callable
    end: Callable


PLAIN = TokenCode(token_begin, token_layer, token_end)


@functools.cache
def compiled_code() -> TokenCode:
    """The pieces compiled for the CPU, each as one region for all sizes of cache."""
    return TokenCode(*(_compiled(piece) for piece in PLAIN))


def _compiled(piece: Callable) -> Callable:
    code, known = torch.compile(piece, options={"size_asserts": False}), set()

    @functools.wraps(piece)
    def run(*arguments):
        tensors = [each for each in arguments if isinstance(each, torch.Tensor)]
        many = len(tensors[0]) > 1  # compilers treat a size of 1 as a constant
        if many not in known:
            for tensor in tensors:
                torch._dynamo.maybe_mark_dynamic(tensor, (0, 2) if tensor.ndim > 2 else 0)  # rows and keys
            known.add(many)
        return code(*arguments)

    return run


# --- the step as one graph ------------------------------------------------------------------------------------------


class CapturedStep:
    """The forward of a model for one call of `generate`, whose steps of one token per row become one CUDA graph.

    Other shapes run without a graph; if the cache moves, the step is captured again.
    """

    def __init__(self, model):
        self.model = model
        self.key = self.step = None
        self.inputs: dict[str, torch.Tensor] = {}

    def __call__(self, input_ids=None, position_ids=None, attention_mask=None, past_key_values=None, **kwargs):
        inputs = {"input_ids": input_ids, "position_ids": position_ids}
        given = inputs | {"attention_mask": attention_mask, "past_key_values": past_key_values}
        is_token = input_ids is not None and input_ids.shape[1] == 1 and position_ids is not None
        if not is_token or not is_static(past_key_values) or kwargs.get("token_type_ids") is not None:
            return self.model(**given, **kwargs)
        key = (len(input_ids), attention_mask is None, *(layer.keys.data_ptr() for layer in past_key_values.layers))
        if attention_mask is not None and attention_mask.ndim == 4:
            inputs["attention_mask"] = attention_mask  # recreated for every step
        if key != self.key:
            self.key = key
            self.inputs = {name: value.clone() for name, value in inputs.items()}
            fixed = {"attention_mask": _padding(attention_mask, past_key_values), "past_key_values": past_key_values}
            self.step = Replayed(lambda: self.model(**fixed | self.inputs).logits, input_ids.device)
        for name, value in inputs.items():
            self.inputs[name].copy_(value)
        return CausalLMOutputWithPast(logits=self.step(), past_key_values=past_key_values)


def _padding(attention_mask: torch.Tensor | None, cache: Cache) -> torch.Tensor | None:
    """The mask (B, S) of all steps: later tokens are real."""
    if attention_mask is None or attention_mask.ndim == 4:
        return attention_mask
    return pad(attention_mask, (0, cache.layers[0].keys.shape[2] - attention_mask.shape[1]), value=1)
