"""Writing text: first contexts of text and images, then steps over text only, with a cache.

All tokens of such a step use the understanding expert, so nothing is routed. A step of one token per row needs no mask
unless rows are padded. Static caches have a separate step in `token_step`.

Shapes: B rows, L new tokens a row, S keys in the cache, D hidden size, H query heads, K key and value heads, E head
size.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from uniedit_hf.models.assisted import (
    check_cache_choice,
    check_context_is_read_at_once,
    is_assisted,
    mark_read,
    unread,
)
from uniedit_hf.models.offloading import at_work
from uniedit_hf.split_attention import NAME as SPLITS

from .answer_step import answer_step, answering, text_experts
from .configuration_bagel import LATENT, VIT
from .decoder_bagel import EAGER, compiled_regions, rotary_tables
from .denoising_bagel import on_device_of
from .reading_bagel import IMAGES, check_mask, text_positions
from .token_step import CapturedStep, is_static, token_logits


# Token columns of a context besides ids and mask
CONTEXT_COLUMNS = ("token_type_ids", "position_ids", "sample_ids", "split_ids", "split_kinds")

# cuDNN makes a plan for every number of keys, which here changes with every token
GROWING = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def kept(places: int | torch.Tensor) -> slice | torch.Tensor:
    """The positions of `logits_to_keep`: the last n, all for 0, or those in a tensor."""
    return slice(-places, None) if isinstance(places, int) else places


@dataclass
class BagelOutput(CausalLMOutputWithPast):
    """Output of a forward over contexts: next-token `logits` (B, kept, vocabulary), the cache, and other requested
    outputs.
    """


def text_states(
    decoder: nn.Module,
    embeds: torch.Tensor,
    positions: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cache: Cache | None,
    compile_layers: bool,
) -> torch.Tensor:
    """Hidden states (B, L, D) after the last norm for text after a cached context; the text is added to the cache.

    Args:
        decoder: The language model of a `BagelModel`.
        embeds: (B, L, D) of the tokens.
        positions: (B, L) rotary positions.
        attention_mask: (B, past + L), 1 at real tokens; `None` if all are.
        cache: Keys and values of the context.
        compile_layers: Whether the layers run compiled.
    """
    at_work(decoder.layers)
    rows, length = embeds.shape[:2]
    hidden, tables = embeds.flatten(0, 1), rotary_tables(decoder.rotary_emb, embeds, positions.flatten())
    mask = text_mask(attention_mask, cache, length, hidden)
    experts, regions = text_experts(decoder, compiled_regions() if compile_layers else EAGER)
    for index, (layer, expert) in enumerate(zip(decoder.layers, experts)):
        hidden, tables, mask = on_device_of(layer, (hidden, tables, mask))
        query, key, value = regions.project(expert, hidden, *tables)
        if length == 1:  # queries that share a key head become more queries of one attention
            query = query.view(rows, key.shape[1], -1, key.shape[-1])
            key, value = key.unsqueeze(2), value.unsqueeze(2)
        else:
            query, key, value = (each.unflatten(0, (rows, length)).transpose(1, 2) for each in (query, key, value))
        if cache is not None:
            key, value = cache.update(key, value, index)
        output = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=length > 1)
        if length > 1:
            output = output.transpose(1, 2)
        hidden = regions.absorb(expert, hidden, output.reshape(rows * length, -1))
    return decoder.norm(hidden).unflatten(0, (rows, length))


def text_mask(
    attention_mask: torch.Tensor | None, cache: Cache | None, length: int, like: torch.Tensor
) -> torch.Tensor | None:
    """The keys that new tokens of text attend to, as booleans (B or 1, 1, L, S); `None` for all keys.

    Args:
        attention_mask: (B, past + L) or (B, S), 1 at real tokens; `None` if all are.
        cache: The cache before the new tokens are added.
        length: L.
        like: A tensor on the device of the mask.
    """
    past = 0 if cache is None else cache.get_seq_length()
    num_keys = length if cache is None else cache.get_mask_sizes(length, 0)[0]
    grows = isinstance(past, int) and num_keys == past + length
    if attention_mask is None and length == 1 and grows:
        return None
    keys = torch.arange(num_keys, device=like.device)
    queries = torch.arange(length, device=like.device)[:, None] + past
    mask = (keys <= queries)[None, None]
    if attention_mask is None:
        return mask
    real = pad(attention_mask, (0, num_keys - attention_mask.shape[1]), value=1).bool()[:, None, None]
    # padding attends to itself, so that no row is empty
    return mask & real if length == 1 else mask & real | (keys == queries)


class BagelTextGenerationMixin:
    """Adds `generate` to the model that holds `model`, `lm_head` and `config`, ahead of `GenerationMixin`."""

    compile_layers: bool | None

    def logits_of(self, context: dict[str, Any], keep: int | torch.Tensor) -> BagelOutput:
        """Logits of contexts, or of text only, with the arguments of `forward`."""
        noise, vae_images = context.pop("posterior_noise"), context["vae_images"]
        routed = (*IMAGES, "token_type_ids", "split_ids", "output_hidden_states", "output_attentions")
        plain = not any(context[name] is not None and context[name] is not False for name in routed)
        if plain and self.writes_plainly and not torch.is_grad_enabled():
            names = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "past_key_values", "use_cache")
            return self.next_of_text(**{name: context[name] for name in names}, keep=keep)
        if vae_images and context["token_type_ids"] is not None:
            context |= {"vae_images": None, "latents": self.encode_images(vae_images, noise)}
        return self.next_token(keep, **context)

    def next_token(self, keep: int | torch.Tensor, **context) -> BagelOutput:
        """Logits after text and images, which are routed to their experts; `context` has the arguments of
        `BagelModel`.
        """
        read = self.model(**context, return_dict=True)
        logits = self.lm_head(read.last_hidden_state[:, kept(keep)])
        return BagelOutput(None, logits, read.past_key_values, read.hidden_states, read.attentions)

    def with_loss(
        self, output: BagelOutput, labels: torch.Tensor, token_type_ids: torch.Tensor | None, **options
    ) -> BagelOutput:
        """Adds the mean cross entropy of the next tokens, as in transformers' causal models.

        Image tokens carry no loss: their ids have no meaning.
        """
        if token_type_ids is not None:
            labels = labels.masked_fill((token_type_ids == VIT) | (token_type_ids == LATENT), -100)
        size = self.config.text_config.vocab_size
        loss = self.loss_function(logits=output.logits, labels=labels, vocab_size=size, **options)
        if torch.is_grad_enabled():  # parameters used only for drawing stay in the graph
            weight = self.model.llm2vae.weight
            loss = loss + self.model.llm2vae(weight.new_zeros(0, weight.shape[1])).sum().to(loss)
        return BagelOutput(**output | {"loss": loss})

    def next_of_text(
        self, input_ids, inputs_embeds, attention_mask, position_ids, past_key_values, use_cache, keep
    ) -> BagelOutput:
        """Logits after text only; nothing is routed."""
        cache, decoder = past_key_values, self.model.language_model
        step = None if self.compile_layers else answer_step(decoder)
        if step is not None and step.takes(input_ids, position_ids, inputs_embeds, cache):
            logits = step.logits(input_ids, position_ids, attention_mask, cache)
            return BagelOutput(logits=logits, past_key_values=cache)
        if inputs_embeds is None and position_ids is not None and input_ids.shape[1] == 1 and is_static(cache):
            logits = token_logits(self, input_ids, position_ids, attention_mask, cache, bool(self.compile_layers))
            return BagelOutput(logits=logits, past_key_values=cache)
        embeds = decoder.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        check_mask(attention_mask, embeds.shape[1])
        if use_cache is not False and cache is None:
            cache = DynamicCache(config=self.config.text_config)
        if position_ids is None:
            position_ids = text_positions(embeds, attention_mask, cache)
        grows = embeds.is_cuda and (cache is None or not cache.is_compileable)
        with sdpa_kernel(GROWING) if grows else nullcontext():
            hidden = text_states(decoder, embeds, position_ids, attention_mask, cache, bool(self.compile_layers))
        return BagelOutput(logits=self.lm_head(hidden[:, kept(keep)]), past_key_values=cache)

    @property
    def writes_plainly(self) -> bool:
        """Whether attention is SDPA, which steps over text only call directly."""
        return self.config.text_config._attn_implementation in ("sdpa", "flex_attention", SPLITS)

    def generate(self, inputs=None, **kwargs):
        """Writes text after a context, like any transformers model (sampling, stopping, batches, any cache).

        The arguments are those that the processor returns. Images are embedded first, so that what `GenerationMixin`
        expands and slices are plain (B, L, ...) tensors. `cache_implementation="static"` is the fastest on a GPU.
        """
        input_ids = kwargs.pop("input_ids", inputs)
        names = ("vit_patches", "vit_grids", "vae_images", "latents", "posterior_noise")
        images = {name: kwargs.pop(name) for name in names if kwargs.get(name) is not None}
        if images and kwargs.get("token_type_ids") is None:
            raise ValueError(
                "There are images but no token_type_ids, which say where the images are: pass everything that "
                "BagelProcessor returns."
            )
        if kwargs.get("token_type_ids") is not None:
            check_context_is_read_at_once(kwargs, self.generation_config)
        cache = kwargs.get("past_key_values")
        if images and isinstance(cache, Cache) and cache.get_seq_length():
            raise ValueError(
                "There are images beside past_key_values, which contain those of the first turn already: pass the "
                "sequences and past_key_values alone."
            )
        if is_assisted(kwargs, self.generation_config):
            if kwargs.get("token_type_ids") is not None:
                check_cache_choice(kwargs)
                kwargs = self._read_ahead(input_ids, images, kwargs)
            mark_read(kwargs.get("past_key_values"))
        elif images:
            images["inputs_embeds"] = kwargs.get("inputs_embeds")
            kwargs["inputs_embeds"] = self.embed_context(input_ids, kwargs["token_type_ids"], **images)
        with answering(self.model.language_model, self.lm_head):
            return super().generate(input_ids, **kwargs)

    @torch.no_grad()
    def _read_ahead(self, input_ids, images: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Reads the context up to its last token into a cache, see `uniedit_hf.models.assisted`."""
        tokens = {name: kwargs.pop(name) for name in CONTEXT_COLUMNS if kwargs.get(name) is not None}
        mask = kwargs.get("attention_mask")
        cache = DynamicCache(config=self.config.text_config)
        first = {name: column[:, :-1] for name, column in (tokens | {"input_ids": input_ids}).items()}
        first["attention_mask"] = None if mask is None else mask[:, :-1]
        self(**first, **images, past_key_values=cache, logits_to_keep=1)
        return kwargs | {"past_key_values": cache}

    def _prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs):
        """Positions of text after a cached context with images, where all tokens of an image share one position."""
        positions = super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)
        return (positions - getattr(model_kwargs.get("past_key_values"), "positions_saved", 0)).clamp(min=0)

    def prepare_inputs_for_generation(
        self, input_ids, next_sequence_length=None, inputs_embeds=None, is_first_iteration=False, sample_ids=None,
        split_ids=None, split_kinds=None, **kwargs,
    ):  # fmt: skip
        """Splits and token types are only needed for the context: written text attends to everything before it."""
        if is_first_iteration and next_sequence_length is None:
            next_sequence_length = unread(input_ids.shape[1], kwargs.get("past_key_values"))
        positions = kwargs.get("position_ids")
        here = input_ids.device == self.device
        if not is_first_iteration and next_sequence_length == 1 and positions is not None and here:
            names = ("past_key_values", "attention_mask", "use_cache", "logits_to_keep")
            names += ("output_hidden_states", "output_attentions")
            step = {name: kwargs[name] for name in names if name in kwargs}
            return step | {"input_ids": input_ids[:, -1:], "position_ids": positions[:, -1:]}
        if is_first_iteration:
            kwargs |= {"sample_ids": sample_ids, "split_ids": split_ids, "split_kinds": split_kinds}
        return super().prepare_inputs_for_generation(
            input_ids, next_sequence_length, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration,
            **kwargs,
        )  # fmt: skip

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, **kwargs):
        """With a cache, a step of one token only needs the previous position."""
        model_kwargs.pop("token_type_ids", None)
        single = model_kwargs.get("use_cache") and "num_new_tokens" not in kwargs
        positions = model_kwargs.pop("position_ids", None) if single else None
        updated = super()._update_model_kwargs_for_generation(outputs, model_kwargs, **kwargs)
        return updated if positions is None else updated | {"position_ids": positions[:, -1:] + 1}

    @staticmethod
    def create_masks_for_generate(attention_mask=None, **kwargs):
        """The model makes its own masks from the (B, L) one, for static caches too."""
        return attention_mask

    def get_compiled_call(self, compile_config=None):
        """The function that transformers calls for every token with a static cache: a captured step, unless a
        `compile_config` asks for `torch.compile`.
        """
        if compile_config is None and self.device.type == "cuda" and self.writes_plainly:
            return CapturedStep(self)
        return super().get_compiled_call(compile_config)
