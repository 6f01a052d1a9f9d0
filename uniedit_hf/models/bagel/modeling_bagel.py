"""BAGEL: one decoder that reads text and images, writes text and draws images.

Every layer has two experts. Text, ViT tokens and image markers go through the understanding expert, latent tokens
through the generation expert, and all of them share one self-attention. Tokens are routed once: understanding tokens
first, then generation tokens, so that a layer runs two dense blocks on two slices.

Shapes: B rows, L tokens per row, T = B * L, N routed tokens (no padding), U of them understanding, D hidden size,
H query heads, K key and value heads, E head size, P latent tokens, C channels of a latent token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import Cache, GenerationMixin, initialization
from transformers.utils.generic import can_return_tuple

from uniedit_hf.attention import Splits
from uniedit_hf.losses import Losses
from uniedit_hf.models.family import Criterion
from uniedit_hf.split_attention import NAME as SPLITS, PickRows, SplitPlan

from .checkpoint_bagel import CheckpointFolder
from .configuration_bagel import LATENT, VIT, BagelConfig, BagelVisionConfig
from .decoder_bagel import BagelTextModel
from .decoding_bagel import BagelOutput, BagelTextGenerationMixin
from .encoders_bagel import (
    BagelConnector,
    BagelVisionTransformer,
    SinCosPositions,
    TimeEmbedder,
    as_encoded,
    build_vae,
    cell_index,
    grid_index,
)
from .generation_bagel import BagelImageGenerationMixin
from .pretrained_bagel import BagelPreTrainedModel
from .reading_bagel import BagelReadingMixin, check_known, refuse_states
from .routing_bagel import PackRouting, image_splits, same_size
from .stored_views import with_stored
from .training_bagel import BagelTrainingMixin


class BagelVisionModel(BagelPreTrainedModel):
    """SigLIP over the patches of images of any size, each image separately."""

    config: BagelVisionConfig
    config_class = BagelVisionConfig
    base_model_prefix = "vit_model"

    def __init__(self, config: BagelVisionConfig):
        super().__init__(config)
        self.vision_model = BagelVisionTransformer(config)
        self.post_init()

    def forward(
        self,
        patches: torch.Tensor,
        grids: Sequence[Sequence[int]],
        index: torch.Tensor,
        splits: SplitPlan | None = None,
    ) -> torch.Tensor:
        """Features (V, vision size) of the patches of all images.

        Args:
            patches: (V, patch * patch * 3).
            grids: Rows and columns of each image.
            index: (V,) positions in the square table.
            splits: Attention over images of different sizes, each within itself; without it they are processed one
                size at a time.
        """
        return self.vision_model(patches, grids, index, splits)

    def get_correct_attn_implementation(self, requested_attention, is_init_check=False):
        """SDPA if the decoder uses FlexAttention: an image attends to all of itself, which needs no mask, and
        FlexAttention would be recompiled for every image size.
        """
        own = "sdpa" if requested_attention in (None, SPLITS, "flex_attention") else requested_attention
        return super().get_correct_attn_implementation(own, is_init_check)


class BagelModel(BagelReadingMixin, BagelPreTrainedModel):
    """BAGEL without its text head and its autoencoder."""

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.", r"^vae\."]

    def __init__(self, config: BagelConfig):
        super().__init__(config)
        size, token_size = config.text_config.hidden_size, config.latent_token_size
        self.language_model = BagelTextModel(config.text_config)
        self.vit_model = BagelVisionModel(config.vision_config)
        self.connector = BagelConnector(config.vision_config.hidden_size, size, config.connector_hidden_act)
        self.vit_pos_embed = SinCosPositions(config.vision_config.patches_per_side, size)
        self.latent_pos_embed = SinCosPositions(config.max_latent_size, size)
        self.time_embedder = TimeEmbedder(size)
        self.vae2llm = nn.Linear(token_size, size)
        self.llm2vae = nn.Linear(size, token_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        if module is self:
            initialization.zeros_(module.llm2vae.weight)
            initialization.zeros_(module.llm2vae.bias)
        else:
            super()._init_weights(module)

    def get_input_embeddings(self):
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value):
        self.language_model.embed_tokens = value

    def embed_vit(self, vit_patches: torch.Tensor, vit_grids: torch.Tensor) -> torch.Tensor:
        """Patches (V, patch vector) of images with `vit_grids` (images, 2) to tokens (V, D), all in one pass."""
        side, device, grids = self.vit_pos_embed.side, vit_patches.device, vit_grids.tolist()
        none = torch.empty(0, dtype=torch.long, device=device)
        index = torch.cat([none, *(grid_index(*grid, side, device) for grid in grids)])
        splits = image_splits(grids)
        seen = self.vit_model(vit_patches, grids, index, splits and splits.to(device))
        return self.connector(seen) + self.vit_pos_embed(index)

    def embed_pack(
        self,
        routing: PackRouting,
        vit_patches: torch.Tensor | None,
        latents: torch.Tensor | None,
        latent_time: torch.Tensor | None,
        vit_features: torch.Tensor | None = None,
        vit_is_stored: Sequence[bool] = (),
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The understanding tokens (U, D) and the generation tokens (G, D) of a pack.

        During training the input layers run even without images, so that every parameter stays in the graph.

        Args:
            routing: Routing of the pack.
            vit_patches: (V, patch vector) of all ViT views in order.
            latents: (G, C), clean or noised.
            latent_time: (G,) flow time.
            vit_features: (stored tokens, vision size) features of the ViT views that were stored.
            vit_is_stored: For each ViT view whether it was stored; empty if none was.
        """
        und = self.language_model.embed_tokens(routing.text_ids)
        if vit_patches is None:
            vit_patches = und.new_zeros(0, self.vit_model.vision_model.embeddings.patch_embedding.in_features)
        if latents is None:
            latents, latent_time = und.new_zeros(0, self.config.latent_token_size), und.new_zeros(0)
        if len(vit_patches) or vit_features is not None or torch.is_grad_enabled():
            index = cell_index(routing.vit_cells, routing.vit_grids, self.vit_pos_embed.side)
            if vit_features is None:
                seen = self.vit_model(vit_patches, routing.vit_grids, index, routing.vit_splits)
            else:
                known = vit_features.to(self.connector.fc1.weight.dtype)
                seen = with_stored(self.vit_model, vit_patches, routing.vit_grids, index, known, vit_is_stored)
            tokens = self.connector(seen) + self.vit_pos_embed(index)
            und = torch.cat([und, tokens.to(und.dtype)])
        if routing.und_sources is not None:
            und = PickRows.apply(und, routing.und_sources)
        index = cell_index(routing.latent_cells, routing.latent_grids, self.latent_pos_embed.side)
        return und, self.embed_latents(latents, latent_time, index).to(und.dtype)

    def embed_latents(self, latents: torch.Tensor, time: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Latent tokens (P, C), clean or noised, at flow time (P,) and position `index` (P,) to tokens (P, D)."""
        positions = self.latent_pos_embed(index)
        return self.vae2llm(latents.to(positions.dtype)) + self.time_embedder(time, positions.dtype) + positions

    def embed(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor,
        vit_patches: torch.Tensor | None = None,
        vit_grids: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        latent_time: torch.Tensor | None = None,
        latent_index: torch.Tensor | None = None,
        embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """All tokens of a batch, text and images, in place: (B, L, D). Images come in the order of their tokens.

        During training the input layers run even without images, so that every parameter stays in the graph. `embeds`
        (B, L, D) replace those of `input_ids`.
        """
        embeds = self.language_model.embed_tokens(input_ids) if embeds is None else embeds
        if vit_patches is None and torch.is_grad_enabled():
            vit_patches = embeds.new_zeros(0, self.vit_model.vision_model.embeddings.patch_embedding.in_features)
            vit_grids = torch.zeros(0, 2, dtype=torch.long)
        if latents is None and torch.is_grad_enabled():
            latents = embeds.new_zeros(0, self.config.latent_token_size)
            latent_time, latent_index = latents.new_zeros(0), latents.new_zeros(0, dtype=torch.long)
        if vit_patches is not None:
            tokens = self.embed_vit(vit_patches, vit_grids)
            embeds = embeds.masked_scatter((token_type_ids == VIT)[..., None], tokens.to(embeds.dtype))
        if latents is not None:
            tokens = self.embed_latents(latents, latent_time, latent_index)
            embeds = embeds.masked_scatter((token_type_ids == LATENT)[..., None], tokens.to(embeds.dtype))
        return embeds


class BagelForConditionalGeneration(
    BagelPreTrainedModel, BagelTrainingMixin, BagelImageGenerationMixin, BagelTextGenerationMixin, GenerationMixin
):
    """BAGEL with its text head and its autoencoder: trains on packs, writes text, draws images."""

    # Patterns that vae2llm and llm2vae do not match: the first lists what quantizers skip, the second what bf16 leaves
    # in fp32.
    _keep_in_fp32_modules = [r"vae\.(?:encoder|decoder)"]
    _keep_in_fp32_modules_strict = [r"^vae\..*"]
    training_options = frozenset({"timestep_shift", "vit_longest_edge", "posterior", "sample_timesteps"})

    def __init__(self, config: BagelConfig):
        super().__init__(config)
        self.model = BagelModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.vae = build_vae(config.vae_config)
        self.post_init()
        self.freeze_fixed_parts()

    def get_output_embeddings(self):
        return self.lm_head

    def _set_gradient_checkpointing(self, *args, **kwargs):
        """Frozen parts are not recomputed: the autoencoder and the understanding encoder have no checkpoints."""
        super()._set_gradient_checkpointing(*args, **kwargs)
        self.vae.disable_gradient_checkpointing()
        if not any(parameter.requires_grad for parameter in self.model.vit_model.parameters()):
            for layer in self.model.vit_model.vision_model.encoder.layers:
                layer.gradient_checkpointing = False

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        """The encoders that turn images into tokens."""
        return self.vae, self.model.vit_model

    @property
    def parts_in_turn(self) -> tuple[nn.Module, ...]:
        """The parts that need not be on a device together, in the order in which they work."""
        return self.vae, self.model.vit_model, self.model.language_model.layers

    def trainable_parts(self) -> dict[str, list[nn.Parameter]]:
        """All parameters by purpose: `vit`; `und` and `gen`, the experts with their input layers; `text_only`,
        parameters that get a gradient only from the text loss; `fixed`, those that are never trained.
        """
        last = f"language_model.layers.{self.config.text_config.num_hidden_layers - 1}."
        own_queries = (
            "self_attn.q_proj.",
            "self_attn.q_norm.",
            "self_attn.o_proj.",
            "post_attention_layernorm.",
            "mlp.",
        )
        parts: dict[str, list[nn.Parameter]] = {name: [] for name in ("vit", "und", "gen", "text_only", "fixed")}
        for name, parameter in self.named_parameters():
            name = name.removeprefix("model.")
            if name.startswith(("vae.", "vit_pos_embed.", "latent_pos_embed.")):
                part = "fixed"
            elif name.startswith("vit_model."):
                part = "vit"
            elif "_moe_gen" in name or name.startswith(("vae2llm.", "llm2vae.", "time_embedder.")):
                part = "gen"
            elif name.startswith(("lm_head.", "language_model.norm.", *(last + each for each in own_queries))):
                part = "text_only"
            else:
                part = "und"
            parts[part].append(parameter)
        return parts

    def lora_target_modules(self, und: bool = True, gen: bool = True, text: bool = False) -> str:
        """A pattern for PEFT: the linear layers of the decoder that are trained.

        Args:
            und: Include those of the understanding expert.
            gen: Include those of the generation expert.
            text: Include those in the last layer that only the text loss reaches.
        """
        last = self.config.text_config.num_hidden_layers - 1
        layers = r"self_attn\.[qkvo]_proj|mlp\.\w+_proj"
        patterns = []
        if und and text:
            patterns.append(rf"\d+\.({layers})")
        elif und:
            patterns.append(rf"(?!{last}\.)\d+\.({layers})|{last}\.self_attn\.[kv]_proj")
        if gen:
            patterns.append(r"\d+\.(self_attn\.[qkvo]_proj_moe_gen|mlp_moe_gen\.\w+_proj)")
        return rf".*language_model\.layers\.({'|'.join(patterns)})"

    def adjust_generation_fn(self, generation_config, from_auto_class, from_pipeline, name, **kwargs):
        """Official folders have no `generation_config.json`; then the one made from the configuration is kept."""
        if generation_config is not None or CheckpointFolder(name, kwargs).has("generation_config.json"):
            super().adjust_generation_fn(generation_config, from_auto_class, from_pipeline, name, **kwargs)

    def get_image_features(self, *args, **kwargs):
        """See `BagelModel.get_image_features`."""
        return self.model.get_image_features(*args, **kwargs)

    # --- images and latents -------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_images(
        self, images: list[torch.Tensor], posterior_noise: list[torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """Pixels (3, h, w) in [-1, 1], each at its own size, to latents (16, h/8, w/8), scaled and shifted.

        Takes the mean of the posterior, or a sample of it when standard normal `posterior_noise` of the latents'
        shapes is given. Always runs in fp32.
        """
        latents: list[torch.Tensor | None] = [None] * len(images)
        # Images of one size share a batch; padding to a common size would leak into the group norms.
        for same in same_size([image.shape for image in images]).values():
            noise = None if posterior_noise is None else torch.stack([posterior_noise[i] for i in same])
            for i, latent in zip(same, self.encode_batch(torch.stack([images[i] for i in same]), noise)):
                latents[i] = latent
        return latents

    @torch.no_grad()
    def encode_batch(self, images: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Like `encode_images`, for images (n, 3, h, w) of one size: latents (n, 16, h/8, w/8)."""
        return self.draw_latents(self.encode_moments(images), noise)

    @torch.no_grad()
    def encode_moments(self, images: torch.Tensor) -> torch.Tensor:
        """Mean and standard deviation of the posterior of images (n, 3, h, w): (n, 2 * 16, h/8, w/8) in fp32."""
        with torch.autocast(images.device.type, enabled=False):
            posteriors = [self.vae.encode(part).latent_dist for part in as_encoded(images.to(self.vae.dtype))]
        return torch.cat([torch.cat([each.mean, each.std], dim=1).float() for each in posteriors]).contiguous()

    def draw_latents(self, moments: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Moments (n, 2 * 16, h/8, w/8) to latents (n, 16, h/8, w/8), scaled and shifted: their mean, or with standard
        normal `noise` a sample of the posterior."""
        scale, shift = self.config.vae_config.scaling_factor, self.config.vae_config.shift_factor
        mean, std = moments.float().chunk(2, dim=1)
        return scale * ((mean if noise is None else mean + std * noise.to(mean)) - shift)

    @torch.no_grad()
    def decode_latents(self, latents: list[torch.Tensor]) -> list[torch.Tensor]:
        """Latents (16, h, w) to pixels (3, 8 h, 8 w), about [-1, 1]."""
        scale, shift = self.config.vae_config.scaling_factor, self.config.vae_config.shift_factor
        images = []
        for latent in latents:
            with torch.autocast(latent.device.type, enabled=False):
                scaled = (latent[None].float() / scale + shift).to(self.vae.dtype)
                images.append(self.vae.decode(scaled).sample[0].float())
        return images

    def set_autoencoder(self, dtype: torch.dtype | None = None, tile: int | None = None) -> None:
        """Runs the autoencoder in another dtype, or over tiles of large images; neither is exact.

        Args:
            dtype: dtype of its weights and activations; it was trained for fp32. `None` changes nothing.
            tile: Images with a longer side, in pixels, are cut into overlapping tiles of this size; `None` turns tiles
                off.

        Raises:
            ValueError: If `tile` is not a multiple of 8, the autoencoder's stride.
        """
        if tile is not None and (tile < 64 or tile % 8):
            raise ValueError(f"tile is {tile}: use a multiple of 8 of at least 64 pixels, such as 512.")
        if dtype is not None:
            for parameter in self.vae.parameters():
                parameter.data = parameter.data.to(dtype)
        self.vae.use_tiling = tile is not None
        if tile is not None:
            self.vae.tile_sample_min_size, self.vae.tile_latent_min_size = tile, tile // 8

    def round_trip(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        """Pixels (3, h, w) encoded and decoded: the best that the model could draw."""
        return self.decode_latents(self.encode_images(images))

    @torch.no_grad()
    def embed_context(self, input_ids: torch.Tensor, token_type_ids: torch.Tensor, **images) -> torch.Tensor:
        """The tokens of a batch of contexts (B, L, D), whose images are all clean; `images` as in `forward`."""
        return self._embed_context(input_ids, token_type_ids, **images)

    def _embed_context(
        self, input_ids, token_type_ids, vae_images=None, latents=None, posterior_noise=None, **vit
    ) -> torch.Tensor:
        if vae_images:
            latents = self.encode_images(vae_images, posterior_noise)
        return self.model.embed_views(input_ids, token_type_ids, latents=latents, **vit)

    # --- training -----------------------------------------------------------------------------------------------

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        sample_ids: torch.Tensor | None = None,
        split_ids: torch.Tensor | None = None,
        split_kinds: torch.Tensor | None = None,
        vit_patches: torch.Tensor | None = None,
        vit_grids: torch.Tensor | None = None,
        vae_images: list[torch.Tensor] | None = None,
        latents: list[torch.Tensor] | None = None,
        posterior_noise: list[torch.Tensor] | None = None,
        timesteps: torch.Tensor | None = None,
        noise: list[torch.Tensor] | None = None,
        labels: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        routing: PackRouting | None = None,
        vit_features: torch.Tensor | None = None,
        vit_is_stored: Sequence[bool] | None = None,
        stored_by: Sequence[tuple[str, str]] | None = None,
        criterion: Criterion | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> Losses | BagelOutput:
        """The losses of a packed sequence, if it has `labels` and splits and no `attention_mask`. Otherwise next-token
        logits of a batch of contexts or of plain text, and with `labels` their mean loss, as any causal model.

        Args:
            input_ids: (B, L) text and marker ids; the values at image tokens are not read.
            attention_mask: (B, past + L), 1 at real tokens; `None` for a pack.
            position_ids: (B, L) rotary positions.
            token_type_ids: (B, L) 0 padding, 1 text and markers, 2 ViT tokens, 3 latent tokens.
            sample_ids, split_ids, split_kinds: (B, L) see `uniedit_hf.attention.Splits`.
            vit_patches: (V, patch * patch * 3) patches of all ViT views in order.
            vit_grids: (images, 2) their rows and columns.
            vae_images: Pixels (3, h, w), stored moments (32, h/8, w/8) or latents of all VAE views in order, or
            latents: their latents (16, h/8, w/8), already scaled and shifted.
            posterior_noise: Standard normal draws (16, h/8, w/8), to sample the posterior instead of using its mean.
            timesteps: (VAE views,) flow time in [0, 1] before the shift; 0 is a clean image without loss.
            noise: Standard normal draws (P, C) of each VAE view; those of clean images are not used.
            labels: (1, L) tokens to predict in a pack, else (B, L) the tokens, as in transformers; -100 has no loss.
            logits_to_keep: Number of last positions with logits, 0 for all, or the indices of the positions.
            routing: Routing of the pack, made by a data worker; computed here if not given.
            vit_features: (tokens, vision size) of the stored ViT views; `vit_patches` has the others.
            vit_is_stored: For each ViT view whether it was stored.
            stored_by: Stored views, with the fingerprints of their encoders.
            criterion: Computes the losses of a pack from its predictions, see `uniedit_hf.models.family.PolicyModel`.
            kwargs: `num_items_in_batch`, by which the loss is divided, and `return_dict`.

        Returns:
            `Losses` for a pack, otherwise a `BagelOutput`.

        Raises:
            ValueError: If images do not match their positions, or there is noise to learn from but no pack.
            TypeError: If there is an argument that has no meaning here.
        """
        tokens = {"input_ids": input_ids, "token_type_ids": token_type_ids, "position_ids": position_ids}
        images = {"vit_patches": vit_patches, "vit_grids": vit_grids, "vae_images": vae_images, "latents": latents}
        images["posterior_noise"] = posterior_noise
        check_known(self, kwargs)
        if labels is not None and attention_mask is None and (split_ids is not None or routing is not None):
            refuse_states(output_hidden_states, output_attentions)
            splits = None if split_ids is None else Splits(sample_ids, split_ids, split_kinds)
            draws = {"timesteps": timesteps, "noise": noise, "stored_by": stored_by, "criterion": criterion}
            draws |= {"vit_features": vit_features, "vit_is_stored": vit_is_stored}
            return self.pack_losses(splits, routing, inputs_embeds, labels=labels, **tokens, **images, **draws)
        if noise is not None or timesteps is not None:
            raise ValueError("noise and timesteps belong to a training pack, which also needs labels: give labels.")
        context = tokens | images | {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask}
        context |= {"sample_ids": sample_ids, "split_ids": split_ids, "split_kinds": split_kinds}
        context |= {"past_key_values": past_key_values, "use_cache": use_cache}
        context |= self.model.asked_outputs(output_hidden_states, output_attentions)
        output = self.logits_of(context, logits_to_keep)
        return output if labels is None else self.with_loss(output, labels, token_type_ids, **kwargs)
