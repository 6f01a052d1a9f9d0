"""Reading: from contexts of text and images to hidden states, as users of transformers call a model.

Shapes: B rows, L tokens a row, V patches of all ViT views, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from uniedit_hf.attention import Grid, Splits, context_mask, dense_mask

from .configuration_bagel import LATENT, PADDING, TEXT, VIT
from .encoders_bagel import grid_index
from .flow import patchify


IMAGES = ("vit_patches", "vae_images", "latents")
# Arguments that transformers passes to every model, and the counts that come with a pack.
KNOWN = {
    "num_items_in_batch", "shift_labels", "ignore_index", "cache_position", "return_dict", "is_first_iteration",
    "num_text_targets", "num_image_targets",
}  # fmt: skip


def check_known(model, options: dict[str, Any]) -> None:
    """Refuses arguments that would be ignored.

    Raises:
        TypeError: Names them.
    """
    if unknown := sorted(name for name, value in options.items() if value is not None and name not in KNOWN):
        raise TypeError(
            f"{type(model).__name__} takes no {', '.join(unknown)}: give it what BagelProcessor returns, where images "
            "are vit_patches with vit_grids, or vae_images."
        )


def refuse_states(output_hidden_states: bool | None, output_attentions: bool | None) -> None:
    """Refuses outputs that a pack does not return.

    Raises:
        ValueError: If one is requested.
    """
    if output_hidden_states or output_attentions:
        raise ValueError(
            "A pack returns losses, neither hidden states nor attentions: call pack_hidden_states(), or give "
            "contexts, which have an attention_mask."
        )


def check_lengths(length: int, columns: dict[str, torch.Tensor | None]) -> None:
    """Refuses columns (B, L) of another length than the tokens.

    Raises:
        ValueError: Naming the column.
    """
    for name, column in columns.items():
        if column is not None and column.shape[1] != length:
            raise ValueError(
                f"{name} describes {column.shape[1]} tokens, but there are {length}: give all columns as "
                "BagelProcessor returned them. To join a prompt and a completion, make one chat of them."
            )


def check_mask(attention_mask: torch.Tensor | None, length: int) -> None:
    """Refuses a mask that does not say of every token whether it is real.

    Raises:
        ValueError: Giving its shape.
    """
    if attention_mask is not None and (attention_mask.ndim != 2 or attention_mask.shape[1] < length):
        raise ValueError(
            f"attention_mask has the shape {tuple(attention_mask.shape)} for {length} tokens: give (rows, tokens), "
            "those in the cache included, with 1 at real tokens."
        )


def has_images(features: dict[str, Any]) -> bool:
    """Whether there are images among the arguments of a forward."""
    return any(features.get(name) is not None for name in IMAGES)


def text_positions(embeds: torch.Tensor, attention_mask: torch.Tensor | None, cache: Cache | None) -> torch.Tensor:
    """Rotary positions (B, L) of text, which continue after the cache; padding has none."""
    rows, length = embeds.shape[:2]
    saved = getattr(cache, "positions_saved", 0)
    if attention_mask is not None:
        return (attention_mask.cumsum(-1) - 1 - saved).clamp(min=0)[:, -length:]
    past = 0 if cache is None else cache.get_seq_length()
    return (torch.arange(length, device=embeds.device) + past - saved).expand(rows, -1)


@contextmanager
def recorded(layers: Sequence[nn.Module]) -> Iterator[tuple[list[torch.Tensor], list[torch.Tensor | None]]]:
    """Collects of one row the hidden states (T, size) before the first layer and behind every layer, and the attention
    weights (H, T, T) of every layer, which are `None` unless attention is eager.
    """
    states, weights = [], []

    def add_weights(module, inputs, output):
        weights.append(None if output[1] is None else output[1][0])

    hooks = [layers[0].register_forward_pre_hook(lambda module, inputs: states.append(inputs[0][0]))]
    hooks += [each.register_forward_hook(lambda module, inputs, output: states.append(output[0])) for each in layers]
    hooks += [each.self_attn.register_forward_hook(add_weights) for each in layers]
    try:
        yield states, weights
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def attending(config, implementation: str | None) -> Iterator[None]:
    """Attention is computed by `implementation`, if given, and then as before."""
    before = config._attn_implementation
    config._attn_implementation = implementation or before
    try:
        yield
    finally:
        config._attn_implementation = before


def end_to_end(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Attention weights (H, T, T) of each image as those of all patches (H, V, V), zero between images."""
    return torch.stack([torch.block_diag(*heads) for heads in zip(*weights)])


class BagelReadingMixin:
    """Adds `forward` to the model that holds `language_model`, `embed` and `config`."""

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
        vae_images: Sequence[torch.Tensor] | None = None,
        latents: Sequence[torch.Tensor] | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Hidden states (B, L, D) of contexts, or of plain text, after a cached context.

        Packs to learn from go through `embed_pack` and the layers.

        Args:
            input_ids, attention_mask, position_ids, token_type_ids, sample_ids, split_ids, split_kinds, vit_patches,
                vit_grids, latents: See `BagelForConditionalGeneration.forward`.
            vae_images: Refused: the autoencoder is not part of this class.
            inputs_embeds: (B, L, D) instead of ids; images, if any, are inserted at their positions.
            past_key_values: The cache that the new tokens attend to and are added to.
            use_cache: Whether to create a cache if there is none.
            output_hidden_states: Whether to return hidden states before every layer and after the last norm.
            output_attentions: Whether to return the weights (B, H, L, past + L) of every layer.
            kwargs: `return_dict`.

        Raises:
            ValueError: If images do not match their positions, or there are neither ids nor embeddings, or both.
            TypeError: If there is an argument that has no meaning here.
        """
        check_known(self, kwargs)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds.")
        images = {"vit_patches": vit_patches, "vit_grids": vit_grids, "latents": latents}
        if token_type_ids is None and has_images(images | {"vae_images": vae_images}):
            raise ValueError(
                "There are images but no token_type_ids, which say where they stand: give all that BagelProcessor "
                "returns."
            )
        if vae_images is not None:
            raise ValueError(
                f"{type(self).__name__} has no autoencoder to read vae_images with: use "
                "BagelForConditionalGeneration, or give the latents of its encode_images()."
            )
        if input_ids is not None:
            check_lengths(input_ids.shape[1], {"token_type_ids": token_type_ids})
        if inputs_embeds is None or has_images(images):
            inputs_embeds = self.embed_views(input_ids, token_type_ids, **images, inputs_embeds=inputs_embeds)
        check_lengths(
            inputs_embeds.shape[1],
            {"position_ids": position_ids, "split_ids": split_ids, "token_type_ids": token_type_ids},
        )
        splits = None if split_ids is None else Splits(sample_ids, split_ids, split_kinds)
        if use_cache is None:
            use_cache = getattr(self.config, "use_cache", True)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config.text_config)
        asked = self.asked_outputs(output_hidden_states, output_attentions)
        return self.read(inputs_embeds, attention_mask, position_ids, token_type_ids, splits, past_key_values, **asked)

    @can_return_tuple
    @torch.no_grad()
    def get_image_features(
        self,
        vit_patches: torch.Tensor | None = None,
        vit_grids: torch.Tensor | None = None,
        pixel_values: Sequence[torch.Tensor] | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """The features that the understanding encoder makes of images.

        Args:
            vit_patches: (V, patch * patch * 3) of all images in order, with
            vit_grids: (images, 2) their rows and columns, as BagelProcessor returns both; or
            pixel_values: images (3, h, w), as BagelImageProcessor returns them.
            output_hidden_states: Whether to return those before and behind every layer, (V, vision size) each.
            output_attentions: Whether to return the weights of every layer, (H, V, V), zero between images.
            kwargs: `return_dict`.

        Returns:
            `last_hidden_state` (V, vision size), and `pooler_output`, for each image its tokens (T, D) as the decoder
            takes them.

        Raises:
            ValueError: If there are no images, or patches without grids.
            TypeError: If there is an argument that means nothing here.
        """
        check_known(self, kwargs)
        patch = self.config.vision_config.patch_size
        if pixel_values is not None:
            vit_grids = torch.tensor([[each.shape[1] // patch, each.shape[2] // patch] for each in pixel_values])
            vit_patches = torch.cat([patchify(each, patch) for each in pixel_values])
        if vit_patches is None or vit_grids is None:
            raise ValueError("There are no images: give vit_patches with vit_grids, or pixel_values.")
        grids, side = vit_grids.tolist(), self.vit_pos_embed.side
        sizes = [rows * columns for rows, columns in grids]
        asked = self.asked_outputs(output_hidden_states, output_attentions)
        eager = "eager" if asked["output_attentions"] else None
        seen, states, weights, tokens = [], [], [], []
        # one image at a time, whose hidden states come in its own order
        for image, grid in zip(vit_patches.to(self.device).split(sizes), grids):
            index = grid_index(*grid, side, image.device)
            vision = self.vit_model.vision_model
            with recorded(vision.encoder.layers) as records, attending(self.config.vision_config, eager):
                seen.append(self.vit_model(image, [grid], index))
            states.append(records[0])
            weights.append(records[1])
            tokens.append(self.connector(seen[-1]) + self.vit_pos_embed(index))
        hidden = tuple(map(torch.cat, zip(*states))) if asked["output_hidden_states"] else None
        attentions = tuple(map(end_to_end, zip(*weights))) if asked["output_attentions"] else None
        return BaseModelOutputWithPooling(torch.cat(seen), tuple(tokens), hidden, attentions)

    def asked_outputs(self, output_hidden_states: bool | None, output_attentions: bool | None) -> dict[str, bool]:
        """Which other outputs to return: those that the caller asks for, or else the configuration."""
        asked = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        return {name: getattr(self.config, name, False) if x is None else x for name, x in asked.items()}

    def read(
        self, embeds, attention_mask, position_ids, token_type_ids, splits: Splits | None, cache: Cache | None,
        output_hidden_states=False, output_attentions=False,
    ) -> BaseModelOutputWithPast:  # fmt: skip
        """Hidden states of embedded tokens (B, L, D); missing arguments default to those of plain text."""
        rows, length = embeds.shape[:2]
        past = 0 if cache is None else cache.get_seq_length()
        check_mask(attention_mask, length)
        positions_given = position_ids is not None
        if position_ids is None:
            position_ids = text_positions(embeds, attention_mask, cache)
        if attention_mask is None:
            attention_mask = torch.ones(rows, past + length, dtype=torch.long, device=embeds.device)
        if token_type_ids is None:
            token_type_ids = torch.where(attention_mask[:, -length:].bool(), TEXT, PADDING)
        if positions_given and splits is not None and cache is not None and length:
            # tokens of an image share a position: following text continues from the last position, not from the token
            # count
            cache.positions_saved = attention_mask.sum(-1, keepdim=True) - position_ids.amax(-1, keepdim=True) - 1
        types = token_type_ids.flatten()
        und, gen = ((types == TEXT) | (types == VIT)).nonzero()[:, 0], (types == LATENT).nonzero()[:, 0]
        order = torch.cat([und, gen])
        layout = self._row_layout(order, token_type_ids, splits, attention_mask, cache)
        if output_attentions:
            layout.attentions = []
        if output_attentions or self.config.text_config._attn_implementation == "eager":
            lowest = torch.finfo(embeds.dtype).min
            layout.mask = torch.where(layout.mask, 0.0, lowest).to(embeds.dtype)
        hidden, states = self.language_model(
            embeds, position_ids, order, len(und), layout, cache, output_hidden_states
        )
        attentions = None if layout.attentions is None else tuple(layout.attentions)
        return BaseModelOutputWithPast(hidden, cache, states, attentions)

    def _row_layout(self, order, token_type_ids, splits, attention_mask, past_key_values) -> Grid:
        rows, length = token_type_ids.shape
        real = attention_mask[:, -length:].bool()[:, None]
        itself = torch.eye(length, dtype=torch.bool, device=real.device)
        own = torch.ones_like(itself).tril() if splits is None else dense_mask(splits)
        own = real & own | itself
        num_keys = length if past_key_values is None else past_key_values.get_mask_sizes(length, 0)[0]
        return Grid(order, rows, length, context_mask(attention_mask, own, num_keys))

    def embed_views(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor | None,
        vit_patches: torch.Tensor | None = None,
        vit_grids: torch.Tensor | None = None,
        latents: Sequence[torch.Tensor] | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Ids or embeddings (B, L) and images, latents (16, h, w) being clean, as tokens (B, L, D).

        Raises:
            ValueError: If images do not match their positions.
        """
        features: dict[str, Any] = {"vit_patches": vit_patches, "vit_grids": vit_grids}
        if token_type_ids is None:
            token_type_ids = torch.full_like(input_ids, TEXT)
        if latents:
            tokens, index = self.latent_tokens(latents)
            time = torch.zeros(len(tokens), device=tokens.device)
            features |= {"latents": tokens, "latent_time": time, "latent_index": index}
        self._check_places(token_type_ids, vit_patches, vit_grids, features.get("latents"))
        return self.embed(input_ids, token_type_ids, **features, embeds=inputs_embeds)

    @staticmethod
    def _check_places(token_type_ids, vit_patches, vit_grids, latents) -> None:
        if vit_patches is not None and vit_grids is None:
            raise ValueError("There are vit_patches but no vit_grids (their rows and columns): give both.")
        for kind, tokens, what in ((VIT, vit_patches, "vit_patches"), (LATENT, latents, "latent tokens")):
            places, found = int((token_type_ids == kind).sum()), 0 if tokens is None else len(tokens)
            if places != found:
                raise ValueError(
                    f"There are {found} {what} for {places} positions of token type {kind} in token_type_ids: give "
                    "the "
                    "images that BagelProcessor returned with them, all of them and no more."
                )

    def latent_tokens(self, latents: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents (16, h, w) as tokens (P, C) of all images in order, and their indices (P,) in the position table."""
        patch, side = self.config.latent_patch_size, self.config.max_latent_size
        tokens = [patchify(latent, patch) for latent in latents]
        index = [grid_index(x.shape[1] // patch, x.shape[2] // patch, side, x.device) for x in latents]
        return torch.cat(tokens), torch.cat(index)
