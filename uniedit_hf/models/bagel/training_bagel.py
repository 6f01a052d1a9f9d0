"""Losses of a pack: embeds images, runs both experts' tokens through the layers, and applies the heads to supervised
rows.

Shapes: see `uniedit_hf.models.bagel.routing_bagel`; D hidden size, C channels of a latent token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from uniedit_hf.attention import Packed, Splits, block_mask, sample_grid
from uniedit_hf.losses import Losses
from uniedit_hf.models.family import Criterion, PackPredictions
from uniedit_hf.split_attention import NAME as SPLITS

from .decoder_bagel import compiled_regions
from .encoders_bagel import grid_index
from .flow import add_noise, patchify, shift_time, velocity_target
from .routing_bagel import PackRouting, latent_grids, route_pack, same_size
from .stored_views import COLUMNS, fingerprint


class BagelTrainingMixin:
    """Adds the training forward to the model that holds `model`, `lm_head`, `vae` and `config`."""

    pack_attention = SPLITS  # the trainer's choice on a GPU
    _view_encoders: dict[str, str] | None = None

    def compile_for_training(self, backend: str = "inductor", mode: str | None = None) -> None:
        """Compiles the work of each expert before and after attention, once for all layers."""
        for layer in self.model.language_model.layers:
            layer.regions = compiled_regions(backend, mode)

    def pack_losses(
        self,
        splits: Splits,
        routing: PackRouting | None = None,
        inputs_embeds: torch.Tensor | None = None,
        criterion: Criterion | None = None,
        **features,
    ) -> Losses:
        """The losses of a pack.

        Args:
            splits: Sample and split of every token.
            routing: Routing of the pack; if not given, computed here, which reads tensors back from the device.
            inputs_embeds: (1, L, D) to use instead of the embedded tokens.
            criterion: Computes the losses from the predictions, in place of these ones.
            features: The other inputs of the model's `forward` for a pack.
        """
        routing = self._routing(splits, routing, features)
        und, gen, target, time = self._run_pack(splits, routing, inputs_embeds, features, reads_und=False)
        # Heads run only on supervised rows, even if there are none, so that their parameters stay in the graph.
        decoder = self.model.language_model
        logits = self.lm_head(decoder.norm(und.index_select(0, routing.text_rows))).float()
        drawn = _rows(gen, routing.image_rows)
        velocity = self.model.llm2vae(decoder.norm_moe_gen(drawn)).float()
        wanted = velocity.detach() if target is None else _rows(target, routing.image_rows).float()
        if criterion is not None:
            times = None if time is None else _rows(time, routing.image_rows)
            return criterion(PackPredictions(logits, routing.text_labels, velocity, wanted, times))
        count = {"dtype": torch.long, "device": und.device}
        return Losses(
            text_sum=nn.functional.cross_entropy(logits, routing.text_labels, reduction="sum"),
            text_count=torch.full((), len(routing.text_labels), **count),
            image_sum=(velocity - wanted).pow(2).mean(-1).sum(),
            image_count=torch.full((), routing.num_image_targets, **count),
        )

    def pack_hidden_states(self, sample_ids, split_ids, split_kinds, routing=None, **features) -> torch.Tensor:
        """Hidden states (1, L, D) of a pack after the final norm, in the order of the sequence."""
        splits = Splits(sample_ids, split_ids, split_kinds)
        routing = self._routing(splits, routing, features)
        und, gen, *_ = self._run_pack(splits, routing, None, features, reads_und=True)
        decoder = self.model.language_model
        hidden = torch.cat([decoder.norm(und), decoder.norm_moe_gen(gen)])
        return torch.zeros_like(hidden).index_copy(0, routing.order, hidden)[None]

    def _routing(self, splits: Splits, routing: PackRouting | None, features: dict[str, Any]) -> PackRouting:
        if routing is None:
            side = 8 * self.config.latent_patch_size
            images, latents = features.get("vae_images") or (), features.get("latents") or ()
            grids = latent_grids(images, side)
            grids += [(x.shape[1] * 8 // side, x.shape[2] * 8 // side) for x in latents]
            times, noise, vit_grids = (features.get(name) for name in ("timesteps", "noise", "vit_grids"))
            routing = route_pack(
                *(features[name] for name in ("input_ids", "token_type_ids", "position_ids")),
                *splits,
                features["labels"],
                vit_grids=() if vit_grids is None else vit_grids.tolist(),
                latent_grids=grids,
                drawn=[False] * len(grids) if times is None or noise is None else (times > 0).tolist(),
            )
        return routing.to(self.device, non_blocking=True)

    def _run_pack(self, splits: Splits, routing: PackRouting, inputs_embeds, features, reads_und: bool):
        """Hidden states (U, D) and (G, D) of both experts before the final norms, and the velocities (G, C) to
        predict with their flow times (G,), `None` without noise. Unless `reads_und`, the last layer skips
        understanding tokens if none has a loss and none of its weights for them is trained.
        """
        self.check_stored_views(features.get("stored_by") or ())
        tokens, time, target = self._noised_latents(routing, features)
        if inputs_embeds is None:
            stored = (features.get("vit_features"), features.get("vit_is_stored") or ())
            und, gen = self.model.embed_pack(routing, features.get("vit_patches"), tokens, time, *stored)
        else:
            und, gen = inputs_embeds[0][routing.order].split([routing.num_und, routing.num_gen])
        decoder, layout = self.model.language_model, self._pack_layout(splits, routing, und.dtype)
        by_splits, trained = layout.mask is routing.splits, torch.is_grad_enabled() and decoder.layers[-1].writes
        alone = by_splits and routing.gen_splits is not None and not reads_und and not trained
        last = Packed(routing.gen_splits, gen_asks_alone=True) if alone else None
        und, gen = decoder.run_layers(und, gen, routing.positions, layout, last_layout=last)
        return und, gen, target, time

    def _pack_layout(self, splits: Splits, routing: PackRouting, dtype: torch.dtype):
        implementation = self.config.text_config._attn_implementation
        if implementation == "flex_attention":
            return Packed(block_mask(splits, routing.order))
        if implementation == "eager":
            grid = sample_grid(splits, routing.order)
            grid.mask = torch.where(grid.mask, 0.0, torch.finfo(dtype).min).to(dtype)
            return grid
        return Packed(routing.splits)

    # --- latents ------------------------------------------------------------------------------------------------

    def _noised_latents(self, routing: PackRouting, features: dict[str, Any]):
        """Latent tokens (G, C), noised where they are drawn, their times (G,), and the velocities to predict."""
        images, latents = features.get("vae_images"), features.get("latents")
        if images is None and latents is None:
            return None, None, None
        tokens = self._clean_latents(routing, images, latents, features.get("posterior_noise"))
        times, noise = features.get("timesteps"), features.get("noise")
        times = torch.zeros(len(routing.latent_grids)) if times is None else times.float()
        time = shift_time(times.to(tokens.device), self.config.timestep_shift).index_select(0, routing.latent_views)
        if noise is None:
            return tokens, time, None
        drawn = torch.cat(list(noise)).to(tokens)
        return add_noise(tokens, drawn, time[:, None]), time, velocity_target(tokens, drawn)

    @torch.no_grad()
    def _clean_latents(
        self,
        routing: PackRouting,
        images: Sequence[torch.Tensor] | None,
        latents: Sequence[torch.Tensor] | None,
        noise: Sequence[torch.Tensor] | None,
    ) -> torch.Tensor:
        """Tokens (G, C) of all VAE views in order; views of one size are encoded together."""
        tokens = []
        for same in same_size(routing.latent_grids).values():
            if latents is None:
                drawn = None if noise is None else torch.stack([noise[i] for i in same])
                batch = self._latents_of([images[i] for i in same], drawn)
            else:
                batch = torch.stack([latents[i] for i in same])
            tokens.append(patchify(batch, self.config.latent_patch_size).flatten(0, 1))
        together = torch.cat(tokens)
        return together if routing.latent_sources is None else together.index_select(0, routing.latent_sources)

    def _latents_of(self, images: Sequence[torch.Tensor], noise: torch.Tensor | None) -> torch.Tensor:
        """Latents (n, Z, h/8, w/8) of views of one size: pixels (3, h, w) are encoded together; stored moments (2 Z,
        h/8, w/8) are only sampled; latents that the model drew are used as they are.
        """
        pixels = [number for number, image in enumerate(images) if len(image) == 3]
        moments: list[torch.Tensor] = list(images)
        if pixels:
            encoded = self.encode_moments(torch.stack([images[number] for number in pixels]))
            for number, each in zip(pixels, encoded):
                moments[number] = each
        drawn = [len(each) == self.config.vae_config.z_channels for each in moments]
        if not any(drawn):
            return self.draw_latents(torch.stack(moments).to(self.device), noise)
        singly = (None,) * len(moments) if noise is None else noise
        return torch.stack(
            [
                each.to(self.device) if known else self.draw_latents(each.to(self.device)[None], own)[0]
                for each, known, own in zip(moments, drawn, singly)
            ]
        )

    # --- views that were stored ---------------------------------------------------------------------------------

    @property
    def view_encoders(self) -> dict[str, str]:
        """Fingerprints of the encoders, by view."""
        if self._view_encoders is None:
            vit = self.model.vit_model
            self._view_encoders = {"vae": fingerprint(self.vae, "encoder."), "vit": fingerprint(vit)}
        return self._view_encoders

    def check_stored_views(self, stored_by: Sequence[tuple[str, str]]) -> None:
        """Checks that stored views were made by this model's encoders, and that these are not trained.

        Raises:
            ValueError: If not.
        """
        for view, made_by in stored_by:
            columns = f"{COLUMNS[view]} in the columns source_{COLUMNS[view]} and target_{COLUMNS[view]}"
            if made_by != self.view_encoders[view]:
                raise ValueError(
                    f"The data contains {columns} made by the encoder {made_by}, but this model's own is "
                    f"{self.view_encoders[view]}: store this model's with `uniedit dataset latents`, or remove them."
                )
            if view == "vit" and any(each.requires_grad for each in self.model.vit_model.parameters()):
                raise ValueError(
                    f"The data contains {columns}, so the encoder would not learn: remove them, or set "
                    "freeze_vit=True."
                )

    @torch.no_grad()
    def encode_view(self, pixels: torch.Tensor, view: str) -> torch.Tensor:
        """The stored encoding of one image: moments (2 Z, h/8, w/8) of `"vae"`, or features (rows, columns, vision
        size)
        of `"vit"`, from pixels (3, h, w) in [-1, 1]."""
        if view == "vae":
            return self.encode_moments(pixels[None].to(self.device))[0]
        patch = self.config.vision_config.patch_size
        rows, columns = pixels.shape[1] // patch, pixels.shape[2] // patch
        patches = patchify(pixels[None], patch).flatten(0, 1).to(self.device)
        index = grid_index(rows, columns, self.model.vit_pos_embed.side, self.device)
        return self.model.vit_model(patches, [(rows, columns)], index).view(rows, columns, -1)


def _rows(states: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    return states if rows is None else states.index_select(0, rows)
