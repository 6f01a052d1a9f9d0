"""The steps of drawing with Janus-Pro: one image token per row, with a static cache.

Everything that changes from step to step, including the step number, is in tensors at fixed addresses. So a step has
no arguments, and on a CUDA device it is captured once and replayed as one graph.

Shapes: R requests, P pairs of a request and one of its contexts, T tokens of an image, S keys in the cache, D hidden
size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import StaticCache
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm

from uniedit_hf.models.bagel.decoder_bagel import Expert, rotary_tables
from uniedit_hf.models.bagel.denoising_bagel import on_device_of
from uniedit_hf.models.bagel.step_memory import CacheMemory
from uniedit_hf.models.bagel.step_weights import SHARED_MODULES, Weights, is_plain, last_norm, norms_of, weights_of
from uniedit_hf.models.bagel.token_step import compiled_code, seen_bias, token_layer
from uniedit_hf.models.captured import Replayed


PLAIN_MODULES = SHARED_MODULES | {LlamaDecoderLayer, LlamaAttention, LlamaRMSNorm, LlamaMLP}


class TokenDrawing:
    """A batch of images whose contexts are in the cache.

    Args:
        model: A `JanusForConditionalGeneration`.
        settings: A `JanusImageSettings` for every request.
        requests: (P,) the request of every pair.
        mixing: (R, P) weight of each pair.
        cache: Keys and values of the contexts, with room for T tokens.
        attention_mask: (P, tokens of a context), 1 at real tokens.
        chances: (R, T) a number in [0, 1) for every token.

    Attributes:
        tokens: (R, T) what was drawn.
        log_probs: (R, T) of these tokens.
    """

    def __init__(
        self,
        model,
        settings: Sequence,
        requests: torch.Tensor,
        mixing: torch.Tensor,
        cache: StaticCache,
        attention_mask: torch.Tensor,
        chances: torch.Tensor,
    ):
        self.model, self.requests, self.mixing, self.cache, self.chances = model, requests, mixing, cache, chances
        self.attention_mask = attention_mask
        self.tokens = torch.zeros_like(chances, dtype=torch.long)
        self.log_probs = torch.zeros_like(chances, dtype=torch.float32)
        self.number = torch.zeros(1, dtype=torch.long, device=requests.device)
        self.position = attention_mask.sum(-1)
        self.temperatures = torch.tensor([each.temperature for each in settings], device=requests.device)[:, None]
        on_cpu = requests.device.type == "cpu"
        self.layer = compiled_code().layer if model.compile_layers and on_cpu else token_layer
        weights = None if model.compile_layers else plain_experts(model.model.language_model)
        self.experts = weights or [expert_of(layer) for layer in model.model.language_model.layers]
        self.norm = last_norm(model.model.language_model, "norm", bool(weights))
        self.memory = weights and CacheMemory(cache, attention_mask, weights[0].heads[0])
        self.step = Replayed(self._step, requests.device)

    def choose(self, hidden: torch.Tensor) -> None:
        """Samples the next token of every request from hidden states (P, D), and increments the step."""
        logits = self.mixing @ self.model.model.generation_head(hidden).float()
        scaled = logits / self.temperatures.clamp(min=1e-6)
        likely = scaled.double().softmax(-1)
        chances = self.chances.index_select(1, self.number)
        drawn = torch.searchsorted(likely.cumsum(-1), chances, right=True).clamp(max=logits.shape[1] - 1)
        chosen = torch.where(self.temperatures == 0, logits.argmax(-1, keepdim=True), drawn)
        self.tokens.index_copy_(1, self.number, chosen)
        self.log_probs.index_copy_(1, self.number, scaled.log_softmax(-1).gather(1, chosen))  # as training has it
        self.number.add_(1)

    def _step(self) -> None:
        """Runs the last token of every pair through the layers, and samples the next."""
        decoder, memories = self.model.model.language_model, self.cache.layers
        last = self.tokens.index_select(1, self.number - 1)[self.requests]
        hidden = self.model.prepare_embeddings_for_image_generation(last)[:, 0]
        tables = rotary_tables(decoder.rotary_emb, hidden, self.position + self.number - 1)
        if self.memory is not None:
            self.choose(self.norm(self.memory.run_layers(self.experts, hidden, *tables, self.memory.bias(None))))
            return
        place = memories[0].cumulative_length.view(1)
        bias = seen_bias(self.attention_mask, place, memories[0])
        for layer, expert, memory in zip(decoder.layers, self.experts, memories):
            hidden, tables, place, bias = on_device_of(layer, (hidden, tables, place, bias))
            hidden = self.layer(expert, hidden, *tables, memory.keys, memory.values, place, bias)
        torch._foreach_add_([memory.cumulative_length for memory in memories], 1)
        self.choose(self.norm(hidden))


def expert_of(layer: nn.Module) -> Expert:
    """A layer of Llama as an expert of BAGEL's, whose queries and keys have no norms."""
    attention, same = layer.self_attn, nn.Identity()
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    return Expert(
        layer.input_layernorm, *projections, same, same, attention.o_proj, layer.post_attention_layernorm, layer.mlp
    )


def plain_experts(decoder: nn.Module) -> list[Weights] | None:
    """The weights of the layers on a CPU in fp32; `None` elsewhere and if they are not plain, see `step_weights`."""
    layers, like = decoder.layers, decoder.norm.weight
    biased = [linear for layer in layers for linear in (layer.self_attn.o_proj, *layer.mlp.children())]
    if like.device.type != "cpu" or like.dtype != torch.float32 or not is_plain(layers, PLAIN_MODULES):
        return None
    if any(getattr(linear, "bias", None) is not None for linear in biased):
        return None
    return [weights_of(expert_of(layer), layer.self_attn.head_dim, norms_of(decoder)) for layer in layers]
