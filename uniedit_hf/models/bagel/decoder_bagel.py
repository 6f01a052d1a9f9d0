"""The decoder: layers of one self-attention over all tokens between two experts with weights of their own.

Shapes: B rows, L tokens a row, N routed tokens (no padding), U of them understanding and in front, D hidden size.
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
    Qwen2RotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from uniedit_hf.attention import Grid, Packed

from .configuration_bagel import BagelTextConfig
from .pretrained_bagel import BagelPreTrainedModel


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


class BagelTextModel(BagelPreTrainedModel):
    """The decoder: embeddings in, hidden states out."""

    config: BagelTextConfig
    config_class = BagelTextConfig
    base_model_prefix = "language_model"

    def __init__(self, config: BagelTextConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([BagelDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.norm_moe_gen = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = Qwen2RotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        position_ids: torch.Tensor,
        order: torch.Tensor,
        num_und: int,
        layout: Grid | Packed,
        past_key_values: Cache | None = None,
    ) -> torch.Tensor:
        """Hidden states after the final norm.

        Args:
            inputs_embeds: (B, L, D).
            position_ids: (B, L) rotary positions.
            order: (N,) flat places of the tokens, understanding first; padding is left out.
            num_und: How many of them take the understanding expert.
            layout: How the routed tokens attend to each other and to the cache.
            past_key_values: Keys and values of the context; the new ones are added.

        Returns:
            (B, L, D), zero at padding.
        """
        hidden = inputs_embeds.flatten(0, 1)[order]
        cos, sin = self.rotary_emb(inputs_embeds, position_ids.flatten()[order][None])
        for layer in self.layers:
            hidden = layer(hidden, num_und, (cos[0], sin[0]), layout, past_key_values=past_key_values)
        hidden = per_expert(hidden, num_und, self.norm, self.norm_moe_gen)
        flat = hidden.new_zeros(inputs_embeds.shape[0] * inputs_embeds.shape[1], hidden.shape[-1])
        return flat.index_copy(0, order, hidden).view(inputs_embeds.shape)
