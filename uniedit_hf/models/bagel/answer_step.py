"""A step of one token per row on plain weights, for one call of `generate`: how a CPU writes, with few operations.

Whatever it does not know (adapters, quantized weights, hooks, other devices and dtypes, sliding windows) goes through
`decoding_bagel` and `token_step`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import nn
from transformers import Cache

from uniedit_hf.compat import has_forward_hooks

from .decoder_bagel import EAGER, BagelRMSNorm, Regions, rotary_tables
from .step_memory import CacheMemory, is_known
from .step_weights import PLAIN, Weights, last_norm, step_experts


class AnswerStep:
    """The steps of one call of `generate`.

    Args:
        decoder: The language model of a `BagelModel`.
        head: Its linear layer to the vocabulary.
        experts: The understanding expert of every layer.
    """

    def __init__(self, decoder: nn.Module, head: nn.Linear, experts: list[Weights]):
        self.decoder, self.experts, self.head = decoder, experts, head.weight.data.t()
        self.norm = last_norm(decoder, "norm")
        self.memory: CacheMemory | None = None

    def takes(self, input_ids, position_ids, inputs_embeds, cache: Cache | None) -> bool:
        """Whether these are the arguments of a step of one token per row."""
        if inputs_embeds is not None or position_ids is None or input_ids.shape[1] != 1:
            return False
        return self.memory is not None and cache is self.memory.cache or is_known(cache)

    def logits(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, attention_mask: torch.Tensor | None, cache: Cache
    ) -> torch.Tensor:
        """As `token_step.token_logits`: (B, 1, vocabulary), after the token was added to the cache."""
        if self.memory is None or self.memory.cache is not cache or self.memory.moved():
            self.memory = CacheMemory(cache, attention_mask, self.experts[0].heads[0])
        hidden = self.decoder.embed_tokens.weight[input_ids[:, 0]]
        tables = rotary_tables(self.decoder.rotary_emb, hidden, position_ids[:, 0])
        hidden = self.memory.run_layers(self.experts, hidden, *tables, self.memory.bias(attention_mask))
        return torch.mm(self.norm(hidden), self.head)[:, None]


class Answer(NamedTuple):
    """Objects kept for all tokens of an answer, in which the decoder's modules must stay as they are."""

    decoder: nn.Module
    experts: list
    regions: Regions
    step: AnswerStep | None


_ANSWER: ContextVar[Answer | None] = ContextVar("answer", default=None)


@contextmanager
def answering(decoder: nn.Module, head: nn.Module) -> Iterator[None]:
    """Keeps the weights of a decoder and its head to the vocabulary for all tokens of an answer."""
    found, regions = step_experts(decoder, ("",), EAGER)
    experts = [expert for (expert,) in found]
    step = AnswerStep(decoder, head, experts) if regions is PLAIN and _has_step(decoder, head) else None
    token = _ANSWER.set(Answer(decoder, experts, regions, step))
    try:
        yield
    finally:
        _ANSWER.reset(token)


def _has_step(decoder: nn.Module, head: nn.Module) -> bool:
    modules = (decoder.embed_tokens, decoder.norm, head)
    plain = tuple(map(type, modules)) == (nn.Embedding, BagelRMSNorm, nn.Linear) and head.bias is None
    weights = [module.weight for module in modules] if plain else []
    usual = all(type(each.data) is torch.Tensor and each.dtype == torch.float32 for each in weights)
    on_cpu = all(each.device.type == "cpu" for each in weights)
    return plain and usual and on_cpu and not any(map(has_forward_hooks, modules))


def answer_step(decoder: nn.Module) -> AnswerStep | None:
    """The step of the answer that this decoder is writing, if it has one."""
    kept = _ANSWER.get()
    return None if kept is None or kept.decoder is not decoder else kept.step


def text_experts(decoder: nn.Module, regions: Regions) -> tuple[list, Regions]:
    """The understanding expert of every layer, and what the layers do with it: the kept ones within an answer."""
    kept = _ANSWER.get()
    if kept is not None and kept.decoder is decoder and regions is EAGER:
        return kept.experts, kept.regions
    return [layer.expert("") for layer in decoder.layers], regions
