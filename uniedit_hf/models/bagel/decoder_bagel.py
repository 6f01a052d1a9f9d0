"""The decoder: layers with one self-attention over all tokens, shared by two experts with separate weights.

Tokens are routed once, before the first layer: understanding tokens first, then generation tokens. From there on the
hidden states are two tensors, one for each expert, which interact only in attention. The work of an expert before and
after attention is one function of its modules and its tokens, the same for all layers, called a region. Compiled with
a dynamic number of tokens, one piece of code serves both experts in all layers.

Shapes: B rows, L tokens per row, N routed tokens (no padding), U of them understanding and G generation, n tokens of
one
expert, D hidden size, H heads, E head size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2MLP,
    Qwen2RMSNorm,
    Qwen2RotaryEmbedding,
    eager_attention_forward,
)

from uniedit_hf.attention import Grid, Packed
from uniedit_hf.models.offloading import at_work
from uniedit_hf.split_attention import NAME as SPLITS

from .configuration_bagel import BagelTextConfig
from .pretrained_bagel import BagelPreTrainedModel


# cosines and signed sines (tokens, 1, E), see `rotary_tables`
Rotary = tuple[torch.Tensor, torch.Tensor]


class BagelRMSNorm(Qwen2RMSNorm):
    """Qwen2's norm with fewer operations: statistics in fp32, and the same rounding before the weight is applied."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(..., size) to the same."""
        rounds_once = states.dtype == self.weight.dtype == torch.float32
        weight = self.weight if rounds_once else None
        normed = nn.functional.rms_norm(states, states.shape[-1:], weight, self.variance_epsilon)
        return normed if rounds_once else self.weight * normed


class Expert(NamedTuple):
    """The modules of one expert in one layer."""

    input_norm: nn.Module
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    q_norm: nn.Module
    k_norm: nn.Module
    o_proj: nn.Module
    post_norm: nn.Module
    mlp: nn.Module


def project(expert, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Norm, projections, query and key norms, rotary positions: hidden states (n, D) and tables (n, 1, E) to queries,
    keys and values (n, heads, E)."""
    normed = for_product(expert.input_norm(hidden))
    query = expert.q_norm(expert.q_proj(normed).unflatten(-1, (-1, cos.shape[-1])))
    return rotated(query, cos, sin), *_keys(expert, normed, cos, sin)


def keys(expert, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Like `project`, but only keys and values, for tokens that are not queries."""
    return _keys(expert, for_product(expert.input_norm(hidden)), cos, sin)


def _keys(expert, normed, cos, sin) -> tuple[torch.Tensor, torch.Tensor]:
    heads = (-1, cos.shape[-1])
    key = expert.k_norm(expert.k_proj(normed).unflatten(-1, heads))
    return rotated(key, cos, sin), expert.v_proj(normed).unflatten(-1, heads)


def absorb(expert, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """Output projection, norm and MLP, with their residual connections: hidden states (n, D) and attention output (n,
    H * E) to (n, D).
    """
    hidden = hidden + expert.o_proj(attended)
    return hidden + expert.mlp(for_product(expert.post_norm(hidden)))


def for_product(states: torch.Tensor) -> torch.Tensor:
    """Under autocast, the states in its dtype, cast once for all products that use them."""
    device = states.device.type
    return states.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else states


def rotated(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions on (n, heads, E); the first half of `sin` carries the sign."""
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat([second, first], dim=-1) * sin


class Regions(NamedTuple):
    """The regions, compiled or not."""

    project: Callable
    absorb: Callable
    keys: Callable


EAGER = Regions(project, absorb, keys)


@functools.cache
def compiled_regions(backend: str = "inductor", mode: str | None = None) -> Regions:
    """The regions compiled, once for a process.

    Args:
        backend: Backend of `torch.compile`.
        mode: Mode of `torch.compile`.
    """
    return Regions(*(_compiled(region, backend, mode) for region in EAGER))


def _compiled(region: Callable, backend: str, mode: str | None) -> Callable:
    code = torch.compile(region, backend=backend, mode=mode)

    @functools.wraps(region)
    def run(expert, hidden, *others):
        if len(hidden) == 0:
            return region(expert, hidden, *others)
        if len(hidden) > 1:  # compilers treat 0 and 1 as constants
            for tensor in (hidden, *others):
                torch._dynamo.mark_dynamic(tensor, 0)
        return code(expert, hidden, *others)

    return run


class BagelAttention(nn.Module):
    """One self-attention, with separate projections and query and key norms for each expert."""

    def __init__(self, config: BagelTextConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        size, query_size, key_size = config.hidden_size, config.hidden_size, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(size, query_size)
        self.k_proj = nn.Linear(size, key_size)
        self.v_proj = nn.Linear(size, key_size)
        self.o_proj = nn.Linear(query_size, size, bias=False)
        self.q_norm = BagelRMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.k_norm = BagelRMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.q_proj_moe_gen = nn.Linear(size, query_size)
        self.k_proj_moe_gen = nn.Linear(size, key_size)
        self.v_proj_moe_gen = nn.Linear(size, key_size)
        self.o_proj_moe_gen = nn.Linear(query_size, size, bias=False)
        self.q_norm_moe_gen = BagelRMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.k_norm_moe_gen = BagelRMSNorm(self.head_dim, eps=config.rms_norm_eps)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layout: Grid | Packed,
        past_key_values: Cache | None = None,
    ) -> torch.Tensor:
        """Routed queries, keys and values (N, heads, E) to (N, H * E)."""
        query, key, value = layout.spread(query), layout.spread(key), layout.spread(value)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(_implementation(self.config, layout), eager_attention_forward)
        output, weights = attend(self, query, key, value, layout.mask, scaling=self.scaling, dropout=0.0)
        if layout.attentions is not None:
            layout.attentions.append(weights)
        return layout.gather(output)


def _implementation(config: BagelTextConfig, layout: Grid | Packed) -> str:
    """The attention to use: implementations for packs use SDPA for rows with a cache, and SDPA processes a pack split
    by split.
    """
    chosen = config._attn_implementation
    if layout.attentions is not None:  # no other kernel returns the weights
        return "eager"
    if isinstance(layout, Grid):
        return "sdpa" if chosen in ("flex_attention", SPLITS) else chosen
    return SPLITS if chosen == "sdpa" else chosen


class BagelDecoderLayer(GradientCheckpointingLayer):
    """One layer: a shared self-attention, and two sets of weights."""

    regions: Regions = EAGER

    def __init__(self, config: BagelTextConfig, layer_idx: int):
        super().__init__()
        self.self_attn = BagelAttention(config, layer_idx)
        self.mlp = Qwen2MLP(config)
        self.mlp_moe_gen = Qwen2MLP(config)
        self.input_layernorm = BagelRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.input_layernorm_moe_gen = BagelRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = BagelRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm_moe_gen = BagelRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def expert(self, suffix: str) -> Expert:
        """The understanding expert (`""`) or the generation expert (`"_moe_gen"`)."""
        names = ("q_proj", "k_proj", "v_proj", "q_norm", "k_norm", "o_proj")
        return Expert(
            getattr(self, "input_layernorm" + suffix),
            *(getattr(self.self_attn, name + suffix) for name in names),
            getattr(self, "post_attention_layernorm" + suffix),
            getattr(self, "mlp" + suffix),
        )

    def forward(
        self,
        und: torch.Tensor,
        gen: torch.Tensor,
        rotary: tuple[Rotary, Rotary],
        layout: Grid | Packed,
        past_key_values: Cache | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One layer over the hidden states of both experts.

        During training both experts run even without rows, so that every parameter is in the graph for any pack.

        Args:
            und: (U, D).
            gen: (G, D).
            rotary: Rotary tables of the tokens of each expert.
            layout: How the routed tokens attend to each other and to the cache.
            past_key_values: Keys and values of the context; the new ones are added.
        """
        if layout.gen_asks_alone:
            return und, self._draw(und, gen, rotary, layout)
        experts, streams = (self.expert(""), self.expert("_moe_gen")), [und, gen]
        running = [i for i in range(2) if len(streams[i]) or torch.is_grad_enabled()]
        projected = [self.regions.project(experts[i], streams[i], *rotary[i]) for i in running]
        query, key, value = (_together(states) for states in zip(*projected))
        attended = self.self_attn(query, key, value, layout, past_key_values)
        for i, part in zip(running, attended.split([len(streams[i]) for i in running])):
            streams[i] = self.regions.absorb(experts[i], streams[i], part)
        return streams[0], streams[1]

    def _draw(self, und, gen, rotary: tuple[Rotary, Rotary], layout: Packed) -> torch.Tensor:
        """Computes only the generation tokens of a layer whose understanding tokens are not used further; they are
        only keys.
        """
        expert = self.expert("_moe_gen")
        query, *of_gen = self.regions.project(expert, gen, *rotary[1])
        of_und = self.regions.keys(self.expert(""), und, *rotary[0])
        key, value = (torch.cat(states) for states in zip(of_und, of_gen))
        return self.regions.absorb(expert, gen, self.self_attn(query, key, value, layout))

    @property
    def writes(self) -> bool:
        """Whether any trained parameter is reached only by the understanding tokens after this layer."""
        _, q_proj, _, _, q_norm, _, *behind = self.expert("")
        return any(each.requires_grad for part in (q_proj, q_norm, *behind) for each in part.parameters())


def _together(states: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return states[0] if len(states) == 1 else torch.cat(states)


def rotary_tables(rotary: nn.Module, states: torch.Tensor, positions: torch.Tensor) -> Rotary:
    """Cosines and sines (tokens, 1, E) of positions (tokens,) in the dtype of `states`; the first half of the sines is
    negated, so that a rotation is `states * cos + swapped_halves * sin`."""
    if rotary.rope_type == "default":  # as the module computes them, with fewer operations
        angles = positions[:, None, None] * rotary.inv_freq.to(positions.device, torch.float32)
        first, second = angles.cos(), angles.sin()
    else:
        cos, sin = rotary(states, positions[None])
        first, second = (each[0, :, None].chunk(2, dim=-1)[0] for each in (cos, sin))
    tables = torch.cat([first, first], dim=-1), torch.cat([-second, second], dim=-1)
    return tables[0].to(states.dtype), tables[1].to(states.dtype)


class BagelTextModel(BagelPreTrainedModel):
    """The decoder, from embeddings to hidden states."""

    config: BagelTextConfig
    config_class = BagelTextConfig
    base_model_prefix = "language_model"

    def __init__(self, config: BagelTextConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([BagelDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = BagelRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.norm_moe_gen = BagelRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = Qwen2RotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    def run_layers(
        self,
        und: torch.Tensor,
        gen: torch.Tensor,
        positions: torch.Tensor,
        layout: Grid | Packed,
        past_key_values: Cache | None = None,
        last_layout: Packed | None = None,
        record: list[tuple[torch.Tensor, torch.Tensor]] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All layers over the routed tokens of both experts, without the final norms.

        Args:
            und: (U, D).
            gen: (G, D).
            positions: (U + G,) rotary positions in the routed order.
            layout: How the routed tokens attend to each other and to the cache.
            past_key_values: Keys and values of the context; the new ones are added.
            last_layout: Layout of the last layer, if no understanding token is used after it.
            record: If given, gets the output of every layer except the last.
        """
        at_work(self.layers)
        cos, sin = rotary_tables(self.rotary_emb, und, positions)
        rotary = tuple(zip(cos.split([len(und), len(gen)]), sin.split([len(und), len(gen)])))
        for layer in self.layers[:-1]:
            und, gen = layer(und, gen, rotary, layout, past_key_values=past_key_values)
            if record is not None:
                record.append((und, gen))
        return self.layers[-1](und, gen, rotary, last_layout or layout, past_key_values=past_key_values)

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        position_ids: torch.Tensor,
        order: torch.Tensor,
        num_und: int,
        layout: Grid | Packed,
        past_key_values: Cache | None = None,
        output_hidden_states: bool = False,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """Hidden states after the final norm, and on request those before every layer and after the last.

        Args:
            inputs_embeds: (B, L, D).
            position_ids: (B, L) rotary positions.
            order: (N,) flat places of the tokens, understanding first; padding is left out.
            num_und: Number of these that use the understanding expert.
            layout: How the routed tokens attend to each other and to the cache.
            past_key_values: Keys and values of the context; the new ones are added.
            output_hidden_states: Whether to return them.

        Returns:
            (B, L, D), zero at padding; and a tuple with one tensor more than there are layers: the first is
            `inputs_embeds`, the last the first result.
        """

        def spread(streams) -> torch.Tensor:
            hidden = torch.cat(streams)
            flat = hidden.new_zeros(inputs_embeds.shape[0] * inputs_embeds.shape[1], hidden.shape[-1])
            return flat.index_copy(0, order, hidden).view(inputs_embeds.shape)

        routed = inputs_embeds.flatten(0, 1)[order]
        und, gen = routed.split([num_und, len(routed) - num_und])
        record: list | None = [] if output_hidden_states else None
        und, gen = self.run_layers(und, gen, position_ids.flatten()[order], layout, past_key_values, record=record)
        hidden = spread([self.norm(und), self.norm_moe_gen(gen)])
        if record is None:
            return hidden, None
        return hidden, (inputs_embeds, *(spread(each) for each in record), hidden)
