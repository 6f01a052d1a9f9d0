"""The small BAGEL as a function of tensors: rows of one fixed layout, and many models of one shape at once.

A GPU is fast with few large operations of the same shapes, and slow with packs of any length. So here every sample has
the same layout, in which absent parts are masked; all understanding tokens come first, then all latents, so that
experts are slices; and every weight has a leading dimension of models, so that many tunings are one program. Weights
have the names of BAGEL's checkpoints, and results are those of `BagelForConditionalGeneration` (tests/test_static.py).

Needs only PyTorch. Shapes: M models, B samples of each, T text tokens, K noised copies of a target, U understanding
tokens, G latent tokens, D hidden size, V words; an image is 16 tokens of either kind, a latent token 32 channels.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

import torch
from torch.nn import functional


Weights = dict[str, torch.Tensor]
PLACES, CHANNELS, PATCH_VECTOR, TIME_FEATURES = 16, 32, 768, 256
PAD, BOS, EOS, START, END = range(5)  # the markers of the small tokenizer
EPS_RMS, EPS_LAYER, THETA = 1e-6, 1e-6, 10000.0
NO_LABEL = -100
SUFFIXES = ("", "_moe_gen")


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a small BAGEL; the defaults are those of the second base."""

    vocabulary: int
    hidden: int = 256
    intermediate: int = 512
    layers: int = 6
    heads: int = 8
    vit_hidden: int = 192
    vit_intermediate: int = 768
    vit_layers: int = 4
    vit_heads: int = 6

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True)
class RowLayout:
    """The parts of a row: a VAE view, a ViT view, text tokens, and noised copies of a target."""

    vae: bool
    vit: bool
    text: int
    copies: int

    @property
    def blocks(self) -> list[int]:
        """The block of every token, understanding first: 0 VAE view, 1 ViT view, 2 text, from 3 on the targets."""
        targets = [3 + copy for copy in range(self.copies)]
        und = [0] * 2 * self.vae + [1] * (PLACES + 2) * self.vit + [2] * self.text + [b for b in targets for _ in "se"]
        return und + [0] * PLACES * self.vae + [b for b in targets for _ in range(PLACES)]

    @property
    def understanding(self) -> int:
        """Tokens of the understanding expert."""
        return 2 * self.vae + (PLACES + 2) * self.vit + self.text + 2 * self.copies

    def rule(self, device) -> torch.Tensor:
        """Which keys a query attends to if both exist, (L, L)."""
        block = torch.tensor(self.blocks, device=device)
        index = torch.arange(len(block), device=device)
        query, key = block[:, None], block[None]
        same = (query == key) & ((query != 2) | (index[None] <= index[:, None]))
        return same | (key < query) & (key < 3)


@dataclass
class Rows:
    """Samples of one layout; parts that the layout does not have are None.

    Args:
        text: (M, B, T) ids, including markers.
        text_length: (M, B) number of ids.
        labels: (M, B, T) the next id where text has a loss, otherwise `NO_LABEL`.
        has_vit: (M, B) whether there is a ViT view.
        vit: (M, B, 16, vit hidden) features of the source.
        has_vae: (M, B) likewise.
        vae: (M, B, 16, 32) latents of the source.
        noised: (M, B, K, 16, 32) latents at `time`.
        time: (M, B, K) flow time, after the shift.
    """

    text: torch.Tensor
    text_length: torch.Tensor
    labels: torch.Tensor | None = None
    has_vit: torch.Tensor | None = None
    vit: torch.Tensor | None = None
    has_vae: torch.Tensor | None = None
    vae: torch.Tensor | None = None
    noised: torch.Tensor | None = None
    time: torch.Tensor | None = None


def fresh_weights(shape: ModelShape, seed: int) -> Weights:
    """Random weights of one model, (1, ...) each; position tables start orthogonal."""
    generator = torch.Generator().manual_seed(seed)
    weights: Weights = {}

    def matrix(name: str, out: int, into: int, bias: bool = True) -> None:
        weights[f"{name}.weight"] = torch.randn(1, out, into, generator=generator) * into**-0.5 * 0.8
        if bias:
            weights[f"{name}.bias"] = torch.zeros(1, out)

    def ones(name: str, size: int, bias: bool = False) -> None:
        weights[f"{name}.weight"] = torch.ones(1, size)
        if bias:
            weights[f"{name}.bias"] = torch.zeros(1, size)

    hidden, words = shape.hidden, shape.vocabulary
    weights["language_model.model.embed_tokens.weight"] = torch.randn(1, words, hidden, generator=generator) * 0.3
    for index in range(shape.layers):
        _decoder_layer(f"language_model.model.layers.{index}", shape, matrix, ones)
    for suffix in SUFFIXES:
        ones(f"language_model.model.norm{suffix}", hidden)
    matrix("language_model.lm_head", words, hidden, bias=False)
    vit = "vit_model.vision_model"
    matrix(f"{vit}.embeddings.patch_embedding", shape.vit_hidden, PATCH_VECTOR)
    places = torch.randn(1, PLACES, shape.vit_hidden, generator=generator) * 0.3
    weights[f"{vit}.embeddings.position_embedding.weight"] = places
    for index in range(shape.vit_layers):
        _vit_layer(f"{vit}.encoder.layers.{index}", shape, matrix, ones)
    ones(f"{vit}.post_layernorm", shape.vit_hidden, bias=True)
    matrix("connector.fc1", hidden, shape.vit_hidden)
    matrix("connector.fc2", hidden, hidden)
    matrix("vae2llm", hidden, CHANNELS)
    matrix("time_embedder.mlp.0", hidden, TIME_FEATURES)
    matrix("time_embedder.mlp.2", hidden, hidden)
    matrix("llm2vae", CHANNELS, hidden)
    weights["llm2vae.weight"].zero_()
    table = torch.linalg.qr(torch.randn(hidden, PLACES, generator=generator))[0].T * hidden**0.5 / 2
    for name in ("vit_pos_embed", "latent_pos_embed"):
        weights[f"{name}.pos_embed"] = table[None].clone().contiguous()
    return weights


def _decoder_layer(name: str, shape: ModelShape, matrix, ones) -> None:
    for suffix in SUFFIXES:
        ones(f"{name}.input_layernorm{suffix}", shape.hidden)
        for each in "qkv":
            matrix(f"{name}.self_attn.{each}_proj{suffix}", shape.hidden, shape.hidden)
        for each in "qk":
            ones(f"{name}.self_attn.{each}_norm{suffix}", shape.hidden // shape.heads)
        matrix(f"{name}.self_attn.o_proj{suffix}", shape.hidden, shape.hidden, bias=False)
        ones(f"{name}.post_attention_layernorm{suffix}", shape.hidden)
        for each in ("gate", "up"):
            matrix(f"{name}.mlp{suffix}.{each}_proj", shape.intermediate, shape.hidden, bias=False)
        matrix(f"{name}.mlp{suffix}.down_proj", shape.hidden, shape.intermediate, bias=False)


def _vit_layer(name: str, shape: ModelShape, matrix, ones) -> None:
    ones(f"{name}.layer_norm1", shape.vit_hidden, bias=True)
    for each in ("q_proj", "k_proj", "v_proj", "out_proj"):
        matrix(f"{name}.self_attn.{each}", shape.vit_hidden, shape.vit_hidden)
    ones(f"{name}.layer_norm2", shape.vit_hidden, bias=True)
    matrix(f"{name}.mlp.fc1", shape.vit_intermediate, shape.vit_hidden)
    matrix(f"{name}.mlp.fc2", shape.vit_hidden, shape.vit_intermediate)


# --- parts


def linear(states: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    """(M, ..., in) to (M, ..., out), every model with its own matrix."""
    flat, matrix = states.flatten(1, -2), weights[f"{name}.weight"].transpose(1, 2)
    bias = weights.get(f"{name}.bias")
    out = torch.bmm(flat, matrix) if bias is None else torch.baddbmm(bias[:, None], flat, matrix)
    return out.view(*states.shape[:-1], out.shape[-1])


def rms_norm(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(M, ..., D) with weight (M, D)."""
    return functional.rms_norm(states, states.shape[-1:], None, EPS_RMS) * _over(weight, states)


def _layer_norm(states: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    normed = functional.layer_norm(states, states.shape[-1:], None, None, EPS_LAYER)
    return normed * _over(weights[f"{name}.weight"], states) + _over(weights[f"{name}.bias"], states)


def _over(weight: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    return weight.view(len(weight), *[1] * (states.dim() - 2), -1)


def embed_words(ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Ids (M, ...) with tables (M, V, D); as a product with one-hot rows, whose gradient is a product as well."""
    one_hot = (ids.flatten(1)[..., None] == torch.arange(table.shape[1], device=ids.device)).to(table.dtype)
    return torch.bmm(one_hot, table).view(*ids.shape, table.shape[2])


def see(weights: Weights, shape: ModelShape, patches: torch.Tensor) -> torch.Tensor:
    """The ViT: patches (M, B, 16, 768) in [-1, 1] to features (M, B, 16, vit hidden)."""
    vit = "vit_model.vision_model"
    states = linear(patches, weights, f"{vit}.embeddings.patch_embedding")
    states = states + weights[f"{vit}.embeddings.position_embedding.weight"][:, None]
    for index in range(shape.vit_layers):
        name = f"{vit}.encoder.layers.{index}"
        normed = _layer_norm(states, weights, f"{name}.layer_norm1")
        heads = [
            linear(normed, weights, f"{name}.self_attn.{each}_proj").unflatten(-1, (shape.vit_heads, -1)).flatten(0, 1)
            for each in "qkv"
        ]
        mixed = functional.scaled_dot_product_attention(*(each.transpose(1, 2) for each in heads))
        mixed = mixed.transpose(1, 2).reshape(states.shape)
        states = states + linear(mixed, weights, f"{name}.self_attn.out_proj")
        inner = linear(_layer_norm(states, weights, f"{name}.layer_norm2"), weights, f"{name}.mlp.fc1")
        states = states + linear(functional.gelu(inner, approximate="tanh"), weights, f"{name}.mlp.fc2")
    return _layer_norm(states, weights, f"{vit}.post_layernorm")


def connect(weights: Weights, features: torch.Tensor) -> torch.Tensor:
    """ViT features (M, B, 16, vit hidden) to tokens (M, B, 16, D), including positions."""
    inner = functional.gelu(linear(features, weights, "connector.fc1"), approximate="tanh")
    return linear(inner, weights, "connector.fc2") + weights["vit_pos_embed.pos_embed"][:, None]


def _latent_tokens(weights: Weights, latents: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """Latents (M, B, K, 16, 32) at flow time (M, B, K) to tokens (M, B, K, 16, D)."""
    half = TIME_FEATURES // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=time.device) / half)
    angles = time.float()[..., None] * frequencies
    features = torch.cat([angles.cos(), angles.sin()], dim=-1).to(latents.dtype)
    embedded = functional.silu(linear(features, weights, "time_embedder.mlp.0"))
    embedded = linear(embedded, weights, "time_embedder.mlp.2")[..., None, :]
    return linear(latents, weights, "vae2llm") + embedded + weights["latent_pos_embed.pos_embed"][:, None, None]


# --- the decoder


def decoder_layer(
    und: torch.Tensor, gen: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor,
    weights: Weights, heads: int,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """One layer over both slices (M, B, U, D) and (M, B, G, D); `weights` have the names within the layer.

    Norm weights are multiplied into the following matrices and into the rotary tables: a product over weights instead
    of one over all tokens.
    """
    streams, projected = (und, gen), []
    for states, suffix in zip(streams, SUFFIXES):
        scale = weights[f"input_layernorm{suffix}.weight"][:, None]
        names = [f"self_attn.{each}_proj{suffix}" for each in "qkv"]
        matrix = torch.cat([weights[f"{name}.weight"] for name in names], dim=1) * scale
        bias = torch.cat([weights[f"{name}.bias"] for name in names], dim=1)
        normed = functional.rms_norm(states, states.shape[-1:], None, EPS_RMS)
        flat = torch.baddbmm(bias[:, None], normed.flatten(1, 2), matrix.transpose(1, 2))
        projected.append(flat.view(*states.shape[:3], 3, heads, states.shape[-1] // heads))
    together = torch.cat(projected, dim=2)
    turned = functional.rms_norm(together[..., :2, :, :], together.shape[-1:], None, EPS_RMS)
    tables = _scaled_rotary(cos, sin, weights, und.shape[2])
    turned = torch.addcmul(turned * tables[0], _swapped(turned), tables[1])
    rows = (*turned.flatten(0, 1).unbind(2), together[..., 2, :, :].flatten(0, 1))
    mixed = functional.scaled_dot_product_attention(*(each.transpose(1, 2) for each in rows), attn_mask=mask)
    mixed = mixed.transpose(1, 2).reshape(*together.shape[:3], und.shape[-1])
    out = []
    for states, part, suffix in zip(streams, mixed.split([und.shape[2], gen.shape[2]], dim=2), SUFFIXES):
        states = _added(states, part, weights[f"self_attn.o_proj{suffix}.weight"])
        scale = weights[f"post_attention_layernorm{suffix}.weight"][:, None]
        matrix = torch.cat([weights[f"mlp{suffix}.{each}_proj.weight"] for each in ("gate", "up")], dim=1) * scale
        normed = functional.rms_norm(states, states.shape[-1:], None, EPS_RMS)
        gate, up = torch.bmm(normed.flatten(1, 2), matrix.transpose(1, 2)).chunk(2, dim=-1)
        inner = (functional.silu(gate) * up).view(*states.shape[:3], gate.shape[-1])
        out.append(_added(states, inner, weights[f"mlp{suffix}.down_proj.weight"]))
    return out[0], out[1]


def _added(states: torch.Tensor, part: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """States (M, B, N, D) plus (M, B, N, in) times the matrix."""
    return torch.baddbmm(states.flatten(1, 2), part.flatten(1, 2), matrix.transpose(1, 2)).view(states.shape)


def _scaled_rotary(
    cos: torch.Tensor, sin: torch.Tensor, weights: Weights, num_und: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tables (M, B, L, 1, E) with the weights of the query and key norms: (M, B, L, 2, 1, E)."""
    num_gen = cos.shape[2] - num_und
    scales = []
    for suffix, count in zip(SUFFIXES, (num_und, num_gen)):
        both = torch.stack([weights[f"self_attn.{each}_norm{suffix}.weight"] for each in "qk"], dim=1)
        scales.append(both[:, None].expand(-1, count, -1, -1))
    scale = torch.cat(scales, dim=1)[:, None, :, :, None]
    return cos[..., None, :] * scale, sin[..., None, :] * _swapped(scale)


def _swapped(states: torch.Tensor) -> torch.Tensor:
    first, second = states.chunk(2, dim=-1)
    return torch.cat([second, first], dim=-1)


class StaticModel:
    """The forward pass over rows of one layout.

    Args:
        shape: Shape of the models. layer: `decoder_layer`, or the same compiled.
    """

    def __init__(self, shape: ModelShape, layer=decoder_layer):
        self.shape = shape
        self.layer = layer
        self._constants: dict = {}  # of a layout: created once, as nothing may be copied while a graph is captured

    def __call__(self, weights: Weights, rows: Rows, layout: RowLayout) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Hidden states after the last norms: of the text (M, B, T, D), and of the targets (M, B, K, 16, D)."""
        und, gen = self._embed(weights, rows, layout)
        cos, sin = self._rotary(rows, layout, und.dtype)
        mask = self._mask(rows, layout)
        for index in range(self.shape.layers):
            name = f"language_model.model.layers.{index}."
            own = {key.removeprefix(name): value for key, value in weights.items() if key.startswith(name)}
            und, gen = self.layer(und, gen, cos, sin, mask, own, self.shape.heads)
        first = 2 * layout.vae + (PLACES + 2) * layout.vit
        text = und[:, :, first : first + layout.text]
        text = rms_norm(text, weights["language_model.model.norm.weight"])
        if not layout.copies:
            return text, None
        drawn = gen[:, :, PLACES * layout.vae :].unflatten(2, (layout.copies, PLACES))
        return text, rms_norm(drawn, weights["language_model.model.norm_moe_gen.weight"])

    def _embed(self, weights: Weights, rows: Rows, layout: RowLayout) -> tuple[torch.Tensor, torch.Tensor]:
        table = weights["language_model.model.embed_tokens.weight"]
        models, samples = rows.text.shape[:2]
        marks = table[:, None, START : END + 1].expand(models, samples, 2, table.shape[2])
        und, gen = [], []
        if layout.vae:
            clean = torch.zeros(models, samples, 1, device=rows.text.device)
            und.append(marks)
            gen.append(_latent_tokens(weights, rows.vae[:, :, None].to(table.dtype), clean)[:, :, 0])
        if layout.vit:
            tokens = connect(weights, rows.vit.to(table.dtype))
            und += [marks[:, :, :1], tokens, marks[:, :, 1:]]
        und.append(embed_words(rows.text, table))
        und += [marks] * layout.copies
        if layout.copies:
            gen.append(_latent_tokens(weights, rows.noised.to(table.dtype), rows.time).flatten(2, 3))
        empty = table.new_zeros(models, samples, 0, table.shape[2])
        return torch.cat(und, dim=2), torch.cat(gen, dim=2) if gen else empty

    def _mask(self, rows: Rows, layout: RowLayout) -> torch.Tensor:
        """(M * B, 1, L, L)."""
        device, shape = rows.text.device, rows.text.shape[:2]
        block, rule = self._of_layout(layout, device)
        there = torch.ones(*shape, len(block), dtype=torch.bool, device=device)
        if layout.vae:
            there = there & ((block != 0) | rows.has_vae[..., None])
        if layout.vit:
            there = there & ((block != 1) | rows.has_vit[..., None])
        first = 2 * layout.vae + (PLACES + 2) * layout.vit
        place = torch.arange(len(block), device=device) - first
        there = there & ((block != 2) | (place < rows.text_length[..., None]))
        seen = rule & there[..., None, :]
        seen = seen | torch.eye(len(block), dtype=torch.bool, device=device)
        return seen.flatten(0, 1)[:, None]

    def _of_layout(self, layout: RowLayout, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        key = (layout, device)
        if key not in self._constants:
            self._constants[key] = torch.tensor(layout.blocks, device=device), layout.rule(device)
        return self._constants[key]

    def _rotary(self, rows: Rows, layout: RowLayout, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and signed sines (M, B, L, 1, head size)."""
        device = rows.text.device
        block, _ = self._of_layout(layout, device)
        nothing = torch.zeros_like(rows.text_length)
        vae = rows.has_vae.long() if layout.vae else nothing
        vit = rows.has_vit.long() if layout.vit else nothing
        first = 2 * layout.vae + (PLACES + 2) * layout.vit
        place = torch.arange(len(block), device=device) - first
        position = (block > 0) * vae[..., None] + (block > 1) * vit[..., None]
        position = position + (block == 2) * place + (block > 2) * rows.text_length[..., None]
        size = self.shape.hidden // self.shape.heads
        frequencies = THETA ** (-torch.arange(0, size, 2, dtype=torch.float32, device=device) / size)
        angles = position.float()[..., None, None] * frequencies
        sin = angles.sin()
        return torch.cat([angles.cos()] * 2, dim=-1).to(dtype), torch.cat([-sin, sin], dim=-1).to(dtype)


def text_loss(weights: Weights, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean cross entropy of each model (M,), 0 if nothing has a loss."""
    logits = linear(hidden, weights, "language_model.lm_head").float()
    each = functional.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), ignore_index=NO_LABEL, reduction="none"
    ).view(labels.shape)
    return each.flatten(1).sum(1) / (labels != NO_LABEL).flatten(1).sum(1).clamp(min=1)


def image_loss(weights: Weights, hidden: torch.Tensor, velocity: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The mean squared error of each model (M,) over samples with `counts` (M, B) > 0."""
    found = linear(hidden, weights, "llm2vae").float()
    each = (found - velocity).square().mean(dim=(-1, -2, -3))
    return (each * counts).sum(1) / counts.sum(1).clamp(min=1)


@torch.no_grad()
def draw(
    model: StaticModel, weights: Weights, rows: Rows, layout: RowLayout, noise: torch.Tensor,
    timesteps: int = 12, scale: float = 2.5, shift: float = 3.0,
) -> torch.Tensor:  # fmt: skip
    """Latents (M, B, 16, 32) by Euler steps from `noise`, guided by the rows without their text (global
    renormalization), as in the suite `small_world`."""
    times = torch.linspace(1, 0, timesteps)
    times = (shift * times / (1 + (shift - 1) * times)).tolist()
    no_text = torch.zeros_like(rows.text_length)
    latents = noise.float()
    for now, then in zip(times[:-1], times[1:]):
        at = {"noised": latents[:, :, None], "time": torch.full_like(latents[:, :, :1, 0], now)}
        full, free = (
            linear(model(weights, replace(rows, text_length=length, **at), layout)[1][:, :, 0], weights, "llm2vae")
            for length in (rows.text_length, no_text)
        )
        full, free = full.float(), free.float()
        guided = free + scale * (full - free)
        norms = [torch.linalg.vector_norm(each, dim=(-1, -2), keepdim=True) for each in (full, guided)]
        latents = latents - guided * (norms[0] / (norms[1] + 1e-8)).clamp(max=1.0) * (now - then)
    return latents


@torch.no_grad()
def write(model: StaticModel, weights: Weights, rows: Rows, layout: RowLayout, most: int = 6) -> torch.Tensor:
    """Answers as ids (M, B, most), greedy, `EOS` where they end; `rows.text` contains the questions followed by room
    for the answers.
    """
    text, length = rows.text.clone(), rows.text_length.clone()
    text.scatter_(2, length[..., None], BOS)
    length += 1
    answers, ended = [], torch.zeros_like(length, dtype=torch.bool)
    for _ in range(most):
        hidden, _ = model(weights, replace(rows, text=text, text_length=length), layout)
        last = hidden.gather(2, (length - 1)[..., None, None].expand(-1, -1, 1, hidden.shape[-1]))[:, :, 0]
        chosen = linear(last, weights, "language_model.lm_head").argmax(-1)
        chosen = torch.where(ended, EOS, chosen)
        ended = ended | (chosen == EOS)
        answers.append(chosen)
        text.scatter_(2, length[..., None], chosen[..., None])
        length = length + 1
    return torch.stack(answers, dim=-1)


def one_model(weights: Weights, index: int) -> Weights:
    """The weights of one model in the form of a checkpoint."""
    return {name: weight[index].clone() for name, weight in weights.items()}


def several(weights: Weights, count: int) -> Weights:
    """A stack of copies of one model."""
    return {name: weight.repeat(count, *[1] * (weight.dim() - 1)) for name, weight in weights.items()}


def cast(weights: Weights, dtype: torch.dtype) -> Weights:
    """All weights in the dtype of the arithmetic."""
    return {name: weight.to(dtype) for name, weight in weights.items()}
