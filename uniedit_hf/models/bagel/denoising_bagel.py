"""The steps of drawing: images after contexts whose keys and values are cached.

Every image attends to all of its context and to all of itself. So each branch of a step is one attention without a
mask over one slice of memory: the keys and values of its context, which do not change, followed by those of its image,
which every step overwrites. No branch is padded to the length of another, and nothing is read back from the device.

Shapes: B branches of a step (a context and a request each), P latent tokens of a branch, C channels of a token, D
hidden size, H query heads, K key and value heads, E head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._pytree import tree_map
from transformers import Cache

from uniedit_hf.compat import execution_device
from uniedit_hf.models.offloading import at_work

from .decoder_bagel import Regions, rotary_tables
from .encoders_bagel import grid_index
from .flow import guide, schedule
from .shortcuts_bagel import FirstLayer, Reuse
from .step_weights import PLAIN, last_norm, step_experts


Pairs = tuple[tuple[int, int], ...]  # (context, request)
MARKERS = 2  # tokens of an image that use the understanding expert: its begin and end markers


@dataclass
class Context:
    """The keys and values of one context, followed by room for the largest image that is drawn from it.

    Args:
        memory: (past + room, 2, K, E) of every layer: keys, then values.
        past: Tokens of the context.
        position: () the next rotary position.
    """

    memory: list[torch.Tensor]
    past: int
    position: torch.Tensor


def contexts_of(
    cache: Cache, attention_mask: torch.Tensor, positions: torch.Tensor, rooms: Sequence[int], like: torch.Tensor
) -> list[Context]:
    """One context for every row of a cache, without its padding.

    Args:
        cache: Cache of the whole batch; emptied layer by layer, so that nothing is in memory twice.
        attention_mask: (rows, tokens) 1 at real tokens.
        positions: (rows,) the next rotary position.
        rooms: Number of tokens to leave room for, by row.
        like: (K, E) with the dtype and device of the keys, used if no context has a token.
    """
    places = [row.nonzero()[:, 0] for row in attention_mask]
    contexts = [Context([], len(real), position) for real, position in zip(places, positions)]
    for layer in cache.layers:
        for row, (context, real, room) in enumerate(zip(contexts, places, rooms)):
            of_layer = layer.keys if layer.is_initialized else like
            memory = of_layer.new_empty(context.past + room, 2, *like.shape)
            if layer.is_initialized:
                for half, states in enumerate((layer.keys[row], layer.values[row])):
                    memory[: context.past, half] = states.transpose(0, 1)[real.to(memory.device)]
            context.memory.append(memory)
        layer.keys = layer.values = None
    return contexts


class Branches:
    """The branches that one step computes: the tokens of each expert in one tensor, with a fixed slice for each
    branch.

    Args:
        contexts: One for every branch.
        requests: The request of every branch.
        lengths: Latent tokens of every request.
        decoder: The language model of a `BagelModel`.
        markers: (2, D) embeddings of the two tokens around an image.
    """

    def __init__(
        self,
        contexts: Sequence[Context],
        requests: Sequence[int],
        lengths: Sequence[int],
        decoder: nn.Module,
        markers: torch.Tensor,
    ):
        self.requests = list(requests)
        self.lengths = [lengths[request] for request in requests]
        position = torch.stack([context.position for context in contexts])
        self.markers = markers.repeat(len(contexts), 1)
        tables = rotary_tables(decoder.rotary_emb, self.markers, position)
        self.rotary = [
            tuple(torch.cat([row.expand(n, *row.shape) for row, n in zip(each, counts)]) for each in tables)
            for counts in ([MARKERS] * len(contexts), self.lengths)
        ]
        # all views that layers write to or read from are made here, once
        num_queries, buffers = decoder.config.num_attention_heads, {}
        self.slots, self.seen = [], []
        for memories in zip(*(context.memory for context in contexts)):
            device, size = memories[0].device, memories[0].shape[-1]
            if device not in buffers:
                shapes = [(MARKERS + length, num_queries, size) for length in self.lengths]
                buffers[device] = [memories[0].new_empty(shape) for shape in shapes]
            ends = [context.past + MARKERS + length for context, length in zip(contexts, self.lengths)]
            images = [
                (query, *memory[context.past : end].unbind(1))
                for query, context, memory, end in zip(buffers[device], contexts, memories, ends)
            ]
            parts = (slice(MARKERS), slice(MARKERS, None))
            self.slots.append([[each[part] for part in parts for each in image] for image in images])
            queries = [query[None].transpose(1, 2) for query in buffers[device]]  # (1, H, 2 + P, E)
            seen = [memory[None, :end].transpose(1, 3) for memory, end in zip(memories, ends)]  # (1, K, 2, end, E)
            self.seen.append([(query, *each.unbind(2)) for query, each in zip(queries, seen)])

    def attend(self, layer: int, und: Sequence[torch.Tensor], gen: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Attention from queries, keys and values of both experts' tokens: (2 B, H * E) and (all P, H * E).

        Branches that share a context use its room in turn."""
        outputs = []
        markers = [MARKERS] * len(self.lengths)
        parts = zip(*(each.split(markers) for each in und), *(each.split(self.lengths) for each in gen))
        for part, slots, seen, length in zip(parts, self.slots[layer], self.seen[layer], self.lengths):
            for slot, new in zip(slots, part):
                slot.copy_(new)
            output = scaled_dot_product_attention(*seen, enable_gqa=True)
            outputs.append(output.transpose(1, 2).reshape(MARKERS + length, -1).split([MARKERS, length]))
        return [torch.cat(each) for each in zip(*outputs)]


def denoise(
    decoder: nn.Module, experts: Sequence[tuple], regions: Regions, branches: Branches, gen: torch.Tensor
) -> torch.Tensor:
    """Embedded latent tokens (all P, D) of the branches to hidden states before the last norm (all P, D).

    Args:
        decoder: The language model of a `BagelModel`.
        experts: Both of every layer that runs, see `step_experts`.
        regions: The operations of a layer before and after attention.
        branches: The branches of this step.
        gen: The embedded latent tokens.
    """
    at_work(decoder.layers)
    und, rotary, last = branches.markers, branches.rotary, len(experts) - 1
    for index, (layer, (reads, draws)) in enumerate(zip(decoder.layers, experts)):
        und, gen, rotary = on_device_of(layer, (und, gen, rotary))
        projected = regions.project(reads, und, *rotary[0]), regions.project(draws, gen, *rotary[1])
        of_und, of_gen = branches.attend(index, *projected)
        gen = regions.absorb(draws, gen, of_gen)
        if index < last:  # behind the last layer nobody reads the markers
            und = regions.absorb(reads, und, of_und)
    return gen


def on_device_of(layer: nn.Module, values: Any) -> Any:
    """Tensors, or containers of them, on the device that accelerate has assigned to the layer."""
    device = execution_device(layer)
    return values if device is None else tree_map(lambda each: None if each is None else each.to(device), values)


class Denoiser:
    """Computes the guided velocities of the requests of a batch.

    Args:
        model: A `BagelForConditionalGeneration`.
        settings: An `ImageSettings` for every request.
        rows: The contexts of every request: full, without its text, without its images.
        contexts: The contexts that `rows` index.
        regions: The regions of the layers, compiled or not.
    """

    def __init__(self, model, settings: Sequence, rows: Sequence[Sequence[int]], contexts, regions: Regions):
        self.model, self.settings, self.rows, self.contexts = model, settings, rows, contexts
        self.experts, self.regions = step_experts(model.model.language_model, ("", "_moe_gen"), regions)
        self.norm = last_norm(model.model.language_model, "norm_moe_gen", self.regions is PLAIN)
        self.times = torch.stack([schedule(s.num_timesteps, s.timestep_shift) for s in settings]).tolist()
        core, device = model.model, contexts[0].position.device
        grids = [model.latent_grid(s) for s in settings]
        self.lengths = [high * wide for high, wide in grids]
        self.places = [core.latent_pos_embed(grid_index(*grid, core.latent_pos_embed.side, device)) for grid in grids]
        times = torch.tensor(self.times, device=device)
        self.time_embeds = core.time_embedder(times.flatten(), self.places[0].dtype).unflatten(0, times.shape)
        config = model.config
        ids = torch.tensor([config.vision_start_token_id, config.vision_end_token_id], device=device)
        self.markers = core.language_model.embed_tokens(ids)
        self._branches: dict[tuple, Branches] = {}
        self.reuse = [Reuse(*each) for each in zip(settings, self.times)]
        self.first_layers = {
            r: FirstLayer(s.first_layer_threshold) for r, s in enumerate(settings) if s.first_layer_threshold
        }

    def velocities(self, step: int, latents: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The velocity (P, C) in fp32 of every request at its own time in this step, from its latents (P, C)."""
        asked = [request for request, reuse in enumerate(self.reuse) if reuse.computes(step)]
        found = self._computed(step, latents, asked) if asked else {}
        return [found[r] if r in found else reuse.extrapolated(step) for r, reuse in enumerate(self.reuse)]

    def _computed(self, step: int, latents, asked: Sequence[int]) -> dict[int, torch.Tensor]:
        """The guided velocities of the requests that use the model in this step."""
        core, wanted = self.model.model, {request: self._wanted(request, step) for request in asked}
        pairs = tuple(dict.fromkeys((row, r) for r, rows in wanted.items() for row in rows if row is not None))
        embeds = {
            r: core.vae2llm(latents[r].to(self.places[r].dtype)) + self.time_embeds[r, step] + self.places[r]
            for r in asked
        }
        hidden = self.norm(self._hidden(pairs, embeds))
        by_pair = self._by_pair(pairs, core.llm2vae(hidden).float())
        found = {}
        for request, rows in wanted.items():
            s, reuse = self.settings[request], self.reuse[request]
            full, *others = (None if row is None else by_pair[row, request] for row in rows)
            compared = reuse.branches(step, full, others)
            found[request] = guide(
                *compared, s.text_guidance_scale, s.image_guidance_scale, s.guidance_renorm, s.guidance_renorm_min
            )
            reuse.keep(step, found[request])
        return found

    def _hidden(self, pairs: Pairs, embeds: dict[int, torch.Tensor]) -> torch.Tensor:
        """Hidden states (all P, D) of (context, request) pairs behind the last layer, from the embedded latent tokens
        (P, D) of the requests; without the layers that are skipped."""
        watched = tuple(pair for pair in pairs if pair[1] in self.first_layers)
        if not watched:
            return self._run(pairs, embeds)
        first, found = self._by_pair(watched, self._run(watched, embeds, 1)), {}
        added = {(row, request): state - embeds[request] for (row, request), state in first.items()}
        for request in dict.fromkeys(request for _, request in watched):
            layer = self.first_layers[request]
            own = {row: each for (row, asked), each in added.items() if asked == request}
            if layer.skips(own):
                found |= {(row, request): first[row, request] + layer.behind[row] for row in own}
        rest = tuple(pair for pair in pairs if pair not in found)
        if rest:
            computed = self._by_pair(rest, self._run(rest, embeds))
            for pair in rest:
                if pair in first:
                    self.first_layers[pair[1]].keep(pair[0], added[pair], computed[pair] - first[pair])
            found |= computed
        return torch.cat([found[pair] for pair in pairs])

    def _run(self, pairs: Pairs, embeds: dict[int, torch.Tensor], depth: int | None = None) -> torch.Tensor:
        """Hidden states (all P, D) of these pairs behind the first `depth` layers, or behind all."""
        gen = torch.cat([embeds[request] for _, request in pairs])
        experts = self.experts[:depth]
        return denoise(self.model.model.language_model, experts, self.regions, self._branches_of(pairs), gen)

    def _by_pair(self, pairs: Pairs, states: torch.Tensor) -> dict[tuple[int, int], torch.Tensor]:
        """Rows of all pairs, split into those of each."""
        return dict(zip(pairs, states.split([self.lengths[request] for _, request in pairs])))

    def _wanted(self, request: int, step: int) -> list[int | None]:
        """The contexts that a step needs: the full one, and where guidance is active those without text and without
        images.
        """
        settings, rows, reuse = self.settings[request], self.rows[request], self.reuse[request]
        reuse.begin(step)
        return [
            rows[0],
            rows[1] if reuse.guides and settings.text_guidance_scale > 1 else None,
            rows[2] if reuse.guides and settings.image_guidance_scale > 1 else None,
        ]

    def _branches_of(self, pairs: Pairs) -> Branches:
        """The branches of these (context, request) pairs, created once."""
        if pairs not in self._branches:
            rows, requests = zip(*pairs)
            self._branches[pairs] = Branches(
                [self.contexts[row] for row in rows],
                requests,
                self.lengths,
                self.model.model.language_model,
                self.markers,
            )
        return self._branches[pairs]
