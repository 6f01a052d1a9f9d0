"""The layers of the decoder: one self-attention over all tokens between two experts with weights of their own.

Shapes: N routed tokens (no padding), U of them understanding and in front, D hidden size.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2MLP,
    Qwen2RMSNorm,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from uniedit_hf.attention import Grid, Packed

from .configuration_bagel import BagelTextConfig


def per_expert(hidden: torch.Tensor, num_und: int, und: nn.Module, gen: nn.Module) -> torch.Tensor:
    """Runs `und` on the first `num_und` rows of (N, ...) and `gen` on the rest.

    While training both run even on no rows, so that every parameter stays in the graph whatever a batch holds.
    """
    if num_und == len(hidden) and not torch.is_grad_enabled():
        return und(hidden)
    return torch.cat([und(hidden[:num_und]), gen(hidden[num_und:])])


class BagelAttention(nn.Module):
    """Self-attention with projections and query and key norms of each expert's own."""

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
        self.q_norm = Qwen2RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.k_norm = Qwen2RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.q_proj_moe_gen = nn.Linear(size, query_size)
        self.k_proj_moe_gen = nn.Linear(size, key_size)
        self.v_proj_moe_gen = nn.Linear(size, key_size)
        self.o_proj_moe_gen = nn.Linear(query_size, size, bias=False)
        self.q_norm_moe_gen = Qwen2RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.k_norm_moe_gen = Qwen2RMSNorm(self.head_dim, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden: torch.Tensor,
        num_und: int,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        layout: Grid | Packed,
        past_key_values: Cache | None = None,
    ) -> torch.Tensor:
        """Routed hidden states (N, D) to (N, D)."""
        heads = (-1, self.head_dim)
        query = per_expert(hidden, num_und, self.q_proj, self.q_proj_moe_gen).unflatten(-1, heads)
        key = per_expert(hidden, num_und, self.k_proj, self.k_proj_moe_gen).unflatten(-1, heads)
        value = per_expert(hidden, num_und, self.v_proj, self.v_proj_moe_gen).unflatten(-1, heads)
        query = per_expert(query, num_und, self.q_norm, self.q_norm_moe_gen)
        key = per_expert(key, num_und, self.k_norm, self.k_norm_moe_gen)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        query, key, value = layout.spread(query), layout.spread(key), layout.spread(value)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(_implementation(self.config, layout), eager_attention_forward)
        output, _ = attend(self, query, key, value, layout.mask, scaling=self.scaling, dropout=0.0)
        return per_expert(layout.gather(output), num_und, self.o_proj, self.o_proj_moe_gen)


def _implementation(config: BagelTextConfig, layout: Grid | Packed) -> str:
    """FlexAttention serves packed sequences; rows with a cache go through SDPA then."""
    flex = config._attn_implementation == "flex_attention"
    return "sdpa" if flex and isinstance(layout, Grid) else config._attn_implementation


class BagelDecoderLayer(GradientCheckpointingLayer):
    """One layer: a shared self-attention between two sets of weights."""

    def __init__(self, config: BagelTextConfig, layer_idx: int):
        super().__init__()
        self.self_attn = BagelAttention(config, layer_idx)
        self.mlp = Qwen2MLP(config)
        self.mlp_moe_gen = Qwen2MLP(config)
        self.input_layernorm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.input_layernorm_moe_gen = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm_moe_gen = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden: torch.Tensor,
        num_und: int,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        layout: Grid | Packed,
        past_key_values: Cache | None = None,
    ) -> torch.Tensor:
        """Routed hidden states (N, D) to (N, D)."""
        normed = per_expert(hidden, num_und, self.input_layernorm, self.input_layernorm_moe_gen)
        hidden = hidden + self.self_attn(normed, num_und, position_embeddings, layout, past_key_values)
        normed = per_expert(hidden, num_und, self.post_attention_layernorm, self.post_attention_layernorm_moe_gen)
        return hidden + per_expert(normed, num_und, self.mlp, self.mlp_moe_gen)
