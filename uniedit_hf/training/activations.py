"""Bytes of activations that a forward pass keeps for the backward pass, from the shape of the model.

Shapes: D hidden size, F size of the MLP, Q and K sizes of all queries and of all keys of a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from uniedit_hf.models.workload import Workload


Checkpointing = Literal["full", "selective", "none"]


@dataclass(frozen=True)
class Activations:
    """Bytes of the decoder's activations, per token and layer unless stated otherwise.

    Args:
        config: The model's configuration.
        residual: Bytes of a number in the hidden states.
        compute: Bytes of a number that goes into a matrix product, less under autocast.
        adapters: Bytes of a number in the input of an adapter, where adapters are trained beside frozen layers.
        compiled: Whether the layers are compiled, in which case cheap operations are recomputed without checkpoints.
    """

    config: object
    residual: int
    compute: int
    adapters: int = 0
    compiled: bool = False

    @property
    def text(self):
        """The shape of the decoder."""
        return self.config.text_config

    @property
    def queries(self) -> int:
        """Q."""
        head = getattr(self.text, "head_dim", None) or self.text.hidden_size // self.text.num_attention_heads
        return self.text.num_attention_heads * head

    @property
    def keys(self) -> int:
        """K."""
        return self.queries * self.text.num_key_value_heads // self.text.num_attention_heads

    def kept(self, checkpointing: Checkpointing) -> float:
        """Bytes kept between forward and backward."""
        d, f, q, k = self.text.hidden_size, self.text.intermediate_size, self.queries, self.keys
        if checkpointing == "full":
            return self.residual * d
        if checkpointing == "selective" or self.compiled:
            # the input, and the results of attention and of all products; when compiled, also the inputs of attention
            attention = 3 * (q + k) if self.compiled else d + 2 * (q + k)
            return self.residual * d + self.compute * (d + attention + 2 * f)
        return self._norms() + self._attention() + self._mlp()

    def _norms(self) -> float:
        """Norms before attention and before the MLP: their input and, for the gradient of their weights, the
        normalized states. transformers' norms (Janus-Pro) keep the input in fp32.
        """
        copies = 0 if self.config.model_type == "bagel" or self.residual == 4 else 4
        normed = 0 if self.adapters else self.residual
        return 2 * self.text.hidden_size * (self.residual + copies + normed)

    def _attention(self) -> float:
        """Inputs of the projections, what BAGEL's query and key norms keep, and what attention itself keeps: queries,
        keys, values, the result and one number per head.
        """
        d, q, k, c = self.text.hidden_size, self.queries, self.keys, self.compute
        inputs = self.adapters * (3 * d + q) if self.adapters else c * d  # an adapter copies its input
        norms = (q + k) * (c + (0 if self.adapters else self.residual)) if self.config.model_type == "bagel" else 0
        return inputs + norms + 2 * c * (q + k) + 4 * self.text.num_attention_heads

    def _mlp(self) -> float:
        """Inputs of the products, and the two factors of SwiGLU; BAGEL recomputes one of them."""
        d, f, c = self.text.hidden_size, self.text.intermediate_size, self.compute
        factors = 2 if self.config.model_type == "bagel" else 3
        inputs = self.adapters * (2 * d + f) if self.adapters else c * (d + f)
        return inputs + factors * c * f

    def working(self) -> float:
        """Peak of the backward pass of one layer: everything the layer keeps, and the gradients in flight."""
        gradients = self.residual * self.text.hidden_size + 2 * self.compute * self.text.intermediate_size
        return self.kept("none") + gradients

    def around(self, work: Workload) -> float:
        """Bytes kept outside the layers for one pack: embeddings, final norms, and the heads with their logits in
        fp32.
        """
        d, image_logits = self.text.hidden_size, self.config.text_config.hidden_size
        if self.config.model_type != "bagel":
            image_logits = 3 * self.config.vq_config.num_embeddings
        heads = 4 * (3 * self.text.vocab_size * work.text_targets + image_logits * work.image_targets)
        return 4 * self.residual * d * work.tokens + heads

    def reading(self, work: Workload, trained: bool) -> float:
        """The understanding encoder: its working memory if frozen, its kept activations if trained."""
        vision = self.config.vision_config
        inner = getattr(vision, "intermediate_size", None) or int(vision.hidden_size * vision.mlp_ratio)
        layer = self.compute * (8 * vision.hidden_size + 2 * inner)
        return work.read * layer * (vision.num_hidden_layers if trained else 1)

    def encoding(self, work: Workload) -> float:
        """Working memory of the autoencoder in fp32: four states of its first level, for all images of one size."""
        if not work.images:
            return 0
        part = self.config.vae_config if self.config.model_type == "bagel" else self.config.vq_config
        return 4 * 4 * part.base_channels * max(h * w * work.images.count((h, w)) for h, w in set(work.images))
