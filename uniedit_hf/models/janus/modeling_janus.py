"""Janus-Pro that learns to draw and to edit: transformers' `JanusForConditionalGeneration` with a training forward
over packs, drawing with guidance, and loading that never ties weights by accident.

One decoder reads text, SigLIP features and image tokens, and predicts text through one head and image tokens through
another. A pack has `token_type_ids` and no `attention_mask`; anything else goes through transformers' own forward.

Shapes: B rows, L tokens a row, D hidden size, N SigLIP views, M VQ views, S pixels a side, T tokens of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedConfig
from transformers.models.janus.modeling_janus import (
    JanusForConditionalGeneration as TransformersJanusForConditionalGeneration,
)

from uniedit_hf.losses import Losses
from uniedit_hf.models.assisted import (
    check_cache_choice,
    check_context_is_read_at_once,
    is_assisted,
    mark_read,
    unread,
)
from uniedit_hf.models.bagel.token_step import CapturedStep
from uniedit_hf.models.family import Criterion, ModelDefaults, PackPredictions

from .generation_janus import JanusImageGenerationMixin, eager_attention, plain_attention
from .image_tokens import Fp32ImageTokenizer, decode_image_tokens, encode_image_tokens, fingerprint
from .layout import SIGLIP, VQ


FLEX = {"": "sdpa", "text_config": "flex_attention", "vision_config": "sdpa", "vq_config": "sdpa"}


class JanusForConditionalGeneration(
    JanusImageGenerationMixin, ModelDefaults, TransformersJanusForConditionalGeneration
):
    """transformers' class of this name; also trains on packs of `JanusProcessor` and edits images."""

    part_of_prefix = {
        "model.vqmodel.": "fixed",
        "model.vision_model.": "vit",
        "model.generation_": "gen",  # layers to and from image tokens
        "lm_head.": "text_only",
    }
    # Image tokens must not depend on the precision of the rest of the model.
    _keep_in_fp32_modules_strict = [r"^model\.vqmodel\..*"]

    def __init__(self, config):
        super().__init__(config)
        self.model.vqmodel.__class__ = Fp32ImageTokenizer
        self.model.vqmodel.requires_grad_(False)
        self._fingerprint: str | None = None

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As in transformers. The released configurations leave `tie_word_embeddings` at its default, true, although
        the weights are not tied; it is corrected, because saving, resizing or merging might tie them.
        FlexAttention is only used in the decoder, because the encoder does not support it."""
        if kwargs.get("attn_implementation") == "flex_attention":
            kwargs["attn_implementation"] = FLEX
        config = kwargs.get("config")  # passed by the Auto classes
        if isinstance(config, PreTrainedConfig) and config._attn_implementation == "flex_attention":
            config._attn_implementation = FLEX
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.lm_head.weight is not model.get_input_embeddings().weight:
            model.config.tie_word_embeddings = False
        return loaded

    pack_attention = FLEX  # the trainer's choice on a GPU: the mask of SDPA would be dense

    def compile_for_training(self, backend: str = "inductor", mode: str | None = None) -> None:
        """Compiles the decoder's layers, for any number of tokens."""
        for layer in self.model.language_model.layers:
            layer.compile(backend=backend, mode=mode, dynamic=True)

    def _set_gradient_checkpointing(self, *args, **kwargs):
        """A frozen encoder is not recomputed."""
        super()._set_gradient_checkpointing(*args, **kwargs)
        if not any(parameter.requires_grad for parameter in self.model.vision_model.parameters()):
            for layer in self.model.vision_model.encoder.layers:
                layer.gradient_checkpointing = False

    def enable_input_require_grads(self):
        """Makes the text embeddings require a gradient, as adapters need when activations are recomputed. transformers
        would also do so for the encoder's patches, whose frozen layers would then run a useless backward pass.
        """
        embeddings = self.get_input_embeddings()
        self._require_grads_hook = embeddings.register_forward_hook(
            lambda module, args, output: output.requires_grad_()
        )
        self._require_grads_hooks = [self._require_grads_hook]

    # --- what is trained ----------------------------------------------------------------------------------------

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        """The parts that images go through before they are tokens."""
        return self.model.vqmodel, self.model.vision_model

    def lora_target_modules(self, und: bool = True, gen: bool = True, text: bool = False) -> str:
        """A pattern for PEFT: the linear layers that are trained.

        Args:
            und: Include those of the decoder.
            gen: Include those to and from image tokens.
            text: No effect: no layer of the decoder is used only for text.
        """
        patterns = []
        if und:
            patterns.append(r"language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.\w+_proj)")
        if gen:
            patterns.append(r"generation_aligner\.(fc1|hidden_layers\.\d+)|generation_head\.(proj_out|vision_head)")
        return rf".*model\.({'|'.join(patterns)})"

    # --- images as tokens ---------------------------------------------------------------------------------------

    @property
    def image_tokenizer(self) -> str:
        """The fingerprint of the model's image tokenizer; stored tokens have it as well."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.model.vqmodel)
        return self._fingerprint

    def encode_images(self, images: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
        """Pixels (M, 3, S, S) in [-1, 1] to tokens (M, T), by the reference's rule, which differs from transformers'.

        Raises:
            ValueError: If the images are of another size than the model's.
        """
        pixels = images if isinstance(images, torch.Tensor) else torch.stack(list(images))
        side = self.config.vision_config.image_size
        if pixels.shape[1:] != (3, side, side):
            raise ValueError(
                f"Images have the shape {tuple(pixels.shape[1:])}, but the model takes (3, {side}, {side}): prepare "
                "them with its processor, which keeps their aspect ratio."
            )
        return encode_image_tokens(self.model.vqmodel, pixels)

    def decode_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (M, T) to pixels (M, 3, S, S) in fp32, about [-1, 1]."""
        return decode_image_tokens(self.model.vqmodel, tokens)

    def round_trip(self, images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Pixels (3, S, S) as the model could draw them at best."""
        return list(self.decode_tokens(self.encode_images(images)))

    def _tokens_of_views(self, vq_images, vq_tokens, made_by) -> torch.Tensor:
        """Tokens (M, T) of all VQ views: stored ones unchanged, the others encoded.

        Raises:
            ValueError: If stored tokens were made by another model.
        """
        foreign = [name for name in made_by or () if name != self.image_tokenizer]
        if foreign:
            raise ValueError(
                f"The data contains image tokens made by {foreign[0]}, but this model's image tokenizer is "
                f"{self.image_tokenizer}: store this model's, or remove the columns source_tokens and target_tokens."
            )
        if vq_images is None:
            return vq_tokens
        encoded = self.encode_images(vq_images)
        if vq_tokens is None:
            return encoded
        tokens = vq_tokens.clone()
        tokens[tokens[:, 0] < 0] = encoded.to(tokens.device)
        return tokens

    def get_image_features(self, *args, **kwargs):
        """See transformers' `JanusModel.get_image_features`."""
        return self.model.get_image_features(*args, **kwargs)

    # --- training -----------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        siglip_images: torch.Tensor | None = None,
        vq_images: torch.Tensor | None = None,
        vq_tokens: torch.Tensor | None = None,
        vq_loss: torch.Tensor | None = None,
        vq_made_by: Sequence[str] | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        criterion: Criterion | None = None,
        **kwargs,
    ):
        """With `token_type_ids` and no `attention_mask` the losses of a packed sequence; otherwise transformers'
        forward, over contexts of `JanusProcessor` or of transformers' processor.

        Args:
            input_ids: (1, L) text and marker ids; the values at image tokens are not read.
            pixel_values: For transformers' forward only.
            attention_mask: Likewise; a pack has none.
            position_ids: (1, L) rotary positions, which restart with every sample and so separate samples.
            labels: (1, L) the token to predict at each position, -100 where there is no text loss.
            token_type_ids: (1, L) 1 text and markers, 2 SigLIP tokens, 3 VQ tokens.
            siglip_images: (N, 3, S, S) in [-1, 1], all SigLIP views in order.
            vq_images: (M', 3, S, S) in [-1, 1], the VQ views without stored tokens, in order.
            vq_tokens: (M, T) tokens of all VQ views in order, -1 for views given as pixels; `None` if all are.
            vq_loss: (M,) whether a VQ view is drawn.
            vq_made_by: Fingerprints of the tokenizers that made the stored tokens.
            logits_to_keep, inputs_embeds, past_key_values, use_cache: As in transformers.
            criterion: Called with the predictions of a pack, see `uniedit_hf.models.family.PolicyModel`.
            kwargs: Likewise.

        Returns:
            `Losses`, or the output of transformers' forward.

        Raises:
            ValueError: If stored tokens were made by another model, or images do not match their positions.
        """
        if token_type_ids is None or attention_mask is not None:  # some tokenizers return token types as well
            views = {"siglip_images": siglip_images, "vq_images": vq_images, "vq_tokens": vq_tokens}
            if any(each is not None for each in views.values()):
                self._check_context(token_type_ids, pixel_values, inputs_embeds)
                inputs_embeds = self._embed_context(input_ids, token_type_ids, **views, vq_made_by=vq_made_by)
                input_ids = None
            kwargs |= {"pixel_values": pixel_values, "attention_mask": attention_mask, "position_ids": position_ids}
            kwargs |= {"inputs_embeds": inputs_embeds, "logits_to_keep": logits_to_keep}
            kwargs |= {"past_key_values": past_key_values, "use_cache": use_cache}
            seen = eager_attention(self.model.language_model) if kwargs.get("output_attentions") else nullcontext()
            with seen:
                return super().forward(input_ids=input_ids, labels=labels, **kwargs)
        tokens = self._tokens_of_views(vq_images, vq_tokens, vq_made_by)
        embeds = self.embed(input_ids, token_type_ids, siglip_images, tokens)
        hidden = self._hidden(embeds, position_ids)
        return (criterion or _mean_losses)(self._predicted(hidden, labels[0], token_type_ids[0], tokens, vq_loss))

    @staticmethod
    def _check_context(token_type_ids, pixel_values, inputs_embeds) -> None:
        if inputs_embeds is not None:
            raise ValueError(
                "There are inputs_embeds beside the token_type_ids of samples, whose images are put between embedded "
                "ids: give input_ids, or inputs_embeds alone."
            )
        if token_type_ids is None:
            raise ValueError(
                "There are images but no token_type_ids, which say where the images are: pass everything that "
                "JanusProcessor returns."
            )
        if pixel_values is not None:
            raise ValueError(
                "There are pixel_values and images of samples: pass what JanusProcessor returns for one of them."
            )

    def _hidden(self, embeds: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Hidden states (L, D) of a pack (1, L, D), every sample by itself.

        FlexAttention and FlashAttention find the beginnings of samples from the positions. Other kernels would need a
        dense mask over the whole pack; for them every sample gets a row, padded on the right, where a causal mask
        suffices.
        """
        decoder = self.model.language_model
        # With a cache, transformers would ignore that positions restart.
        if decoder.config._attn_implementation not in ("sdpa", "eager"):
            return decoder(inputs_embeds=embeds, position_ids=position_ids, use_cache=False).last_hidden_state[0]
        positions = position_ids[0]
        row, columns = (positions == 0).cumsum(0) - 1, int(positions.max()) + 1
        place, rows = row * columns + positions, int(row[-1]) + 1
        grid = embeds.new_zeros(rows * columns, embeds.shape[-1]).index_copy(0, place, embeds[0])
        places = torch.arange(columns, device=embeds.device).expand(rows, -1)
        hidden = decoder(
            inputs_embeds=grid.view(rows, columns, -1), position_ids=places, use_cache=False
        ).last_hidden_state
        return hidden.flatten(0, 1)[place]

    def embed(self, input_ids, token_type_ids, siglip_images=None, tokens=None) -> torch.Tensor:
        """Embeds all tokens: (B, L, D). The input layers are in the graph even without images."""
        embeds = self.get_input_embeddings()(input_ids)
        if tokens is None:
            tokens = input_ids.new_zeros(0, self.config.vision_config.num_image_tokens)
        drawn = self.prepare_embeddings_for_image_generation(tokens)
        for kind, features in ((SIGLIP, self._seen(siglip_images)), (VQ, drawn)):
            places = token_type_ids == kind
            found = features.shape[0] * features.shape[1]
            if not torch.compiler.is_compiling() and int(places.sum()) != found:
                raise ValueError(
                    f"Images of {found} tokens are given for {int(places.sum())} positions of token type {kind}: give "
                    "the images that JanusProcessor returned with token_type_ids, all of them and no more."
                )
            mask = places[..., None].expand_as(embeds)
            embeds = embeds.masked_scatter(mask, features.to(embeds))
        return embeds

    def _seen(self, images: torch.Tensor | None) -> torch.Tensor:
        """Features (N, T, D) of all SigLIP views; runs the same layers even without views."""
        weight = self.model.vision_model.embeddings.patch_embedding.weight
        vision = self.config.vision_config
        if images is not None:
            return self.model.get_image_features(images.to(weight.dtype)).pooler_output
        if not weight.requires_grad:
            return self.model.aligner(weight.new_zeros(0, vision.num_image_tokens, vision.hidden_size))
        # attention does not accept an empty batch
        blank = weight.new_zeros(1, 3, vision.image_size, vision.image_size)
        return self.model.get_image_features(blank).pooler_output[:0]

    def _predicted(self, hidden, labels, token_type_ids, tokens, vq_loss) -> PackPredictions:
        """The predictions of both heads from hidden states (L, D). Heads run only on supervised rows, even if there
        are none, so that their parameters stay in the graph.
        """
        rows = labels != -100
        text_logits = self.lm_head(hidden[rows]).float()
        if tokens is None or vq_loss is None:
            places, wanted = labels.new_zeros(0), labels.new_zeros(0)
        else:
            places = (token_type_ids == VQ).nonzero()[:, 0].view_as(tokens)[vq_loss].flatten()
            wanted = tokens[vq_loss].flatten()
        # the state before a token predicts it; before the first one is the image marker
        image_logits = self.model.generation_head(hidden[places - 1]).float()
        return PackPredictions(text_logits, labels[rows], image_logits, wanted)

    # --- writing text -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def embed_context(
        self, input_ids, token_type_ids, siglip_images=None, vq_images=None, vq_tokens=None, vq_made_by=None
    ) -> torch.Tensor:
        """The tokens of a batch of contexts: (B, L, D)."""
        return self._embed_context(input_ids, token_type_ids, siglip_images, vq_images, vq_tokens, vq_made_by)

    def _embed_context(self, input_ids, token_type_ids, siglip_images, vq_images, vq_tokens, vq_made_by):
        return self.embed(
            input_ids, token_type_ids, siglip_images, self._tokens_of_views(vq_images, vq_tokens, vq_made_by)
        )

    def generate(self, inputs=None, attention_mask=None, logits_processor=None, **kwargs):
        """Writes text after the contexts that `JanusProcessor` makes of samples; without `token_type_ids` as in
        transformers, but raises errors where transformers fails silently.

        Raises:
            ValueError: If images are given to transformers' drawing, which would ignore them, or a setting that it
                needs is missing.
        """
        if "token_type_ids" in kwargs and kwargs.get("pixel_values") is None:
            check_context_is_read_at_once(kwargs, self.generation_config)
            names = ("siglip_images", "vq_images", "vq_tokens", "vq_made_by")
            images = {name: kwargs.pop(name) for name in names if name in kwargs}
            inputs = kwargs.pop("input_ids", inputs)
            self._check_context(kwargs["token_type_ids"], None, kwargs.get("inputs_embeds"))
            embeds = self.embed_context(inputs, kwargs.pop("token_type_ids"), **images)
            if is_assisted(kwargs, self.generation_config):
                check_cache_choice(kwargs)
                kwargs["past_key_values"] = self._read_ahead(embeds, attention_mask)
            else:
                kwargs["inputs_embeds"] = embeds
            kwargs["input_ids"], inputs = inputs, None
        elif kwargs.get("generation_mode") == "image":
            self._check_stock_drawing(kwargs)
        kwargs |= {"attention_mask": attention_mask, "logits_processor": logits_processor}
        with plain_attention(self.model.language_model):
            if kwargs.get("generation_mode", "text") == "text":
                # transformers' own omits the logits processors of texts
                kwargs.pop("generation_mode", None)
                if is_assisted(kwargs, self.generation_config):
                    mark_read(kwargs.get("past_key_values"))
                # the scale in the model's own settings is that of drawing
                return GenerationMixin.generate(self, inputs, **{"guidance_scale": None} | kwargs)
            return super().generate(inputs, **kwargs)

    def get_compiled_call(self, compile_config=None):
        """The function that transformers calls for every token with a static cache: a captured step, unless a
        `compile_config` asks for `torch.compile`.
        """
        if compile_config is None and self.device.type == "cuda":
            return CapturedStep(self)
        return super().get_compiled_call(compile_config)

    @torch.no_grad()
    def _read_ahead(self, embeds, attention_mask) -> DynamicCache:
        """A cache of embedded contexts (B, L, D) up to their last token, see `uniedit_hf.models.assisted`."""
        cache = DynamicCache(config=self.config.text_config)
        mask = None if attention_mask is None else attention_mask[:, :-1]
        positions = None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)
        with plain_attention(self.model.language_model):
            self.model.language_model(
                inputs_embeds=embeds[:, :-1], attention_mask=mask, position_ids=positions, past_key_values=cache
            )
        return cache

    def prepare_inputs_for_generation(
        self, input_ids, next_sequence_length=None, inputs_embeds=None, is_first_iteration=False, **kwargs
    ):
        """As in transformers, after the tokens that were read ahead."""
        if is_first_iteration and next_sequence_length is None:
            next_sequence_length = unread(input_ids.shape[1], kwargs.get("past_key_values"))
        return super().prepare_inputs_for_generation(
            input_ids, next_sequence_length, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration,
            **kwargs,
        )  # fmt: skip

    def _check_stock_drawing(self, kwargs) -> None:
        remedy = "use generate_images(), or UniEditPipeline"
        if kwargs.get("pixel_values") is not None:
            raise ValueError(f"generate(generation_mode='image') of transformers does not see pixel_values: {remedy}.")
        config = kwargs.get("generation_config") or self.generation_config
        scale = kwargs.get("guidance_scale", config.guidance_scale)
        if scale is not None and scale <= 1:
            raise ValueError(
                f"guidance_scale is {scale}, but generate(generation_mode='image') of transformers needs more than 1: "
                f"{remedy}, which draw without guidance at 1."
            )
        begin = getattr(config, "boi_token_id", None)
        settings = getattr(config, "generation_kwargs", None)
        if begin is not None and not settings:
            config.generation_kwargs = {"boi_token_id": begin}
        elif not settings or "boi_token_id" not in settings:
            raise ValueError(
                "The generation configuration does not say which token begins an image: set "
                f"generation_kwargs={{'boi_token_id': ID}} in it, or {remedy}."
            )


def _mean_losses(predictions: PackPredictions) -> Losses:
    """The sums and counts of both cross entropies."""
    text, image = predictions.text_labels, predictions.image_targets
    return Losses(
        text_sum=nn.functional.cross_entropy(predictions.text_logits, text, reduction="sum"),
        text_count=torch.tensor(len(text), device=text.device),
        image_sum=nn.functional.cross_entropy(predictions.image, image, reduction="sum"),
        image_count=torch.tensor(len(image), device=image.device),
    )
