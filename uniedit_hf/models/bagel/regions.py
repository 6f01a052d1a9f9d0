"""What an expert does before and after attention: the regions of a layer that are compiled.

They are functions of an expert's modules and its tokens. Compiled with a dynamic number of tokens, one piece of code
serves both experts in all layers.

Shapes: n tokens of an expert, D hidden size, H heads, E head size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch


def project(expert, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Norm, projections, query and key norms, rotary positions: hidden states (n, D) and tables (n, 1, E) to queries,
    keys and values (n, heads, E)."""
    normed = for_product(expert.input_norm(hidden))
    query = expert.q_norm(expert.q_proj(normed).unflatten(-1, (-1, cos.shape[-1])))
    return rotated(query, cos, sin), *_keys(expert, normed, cos, sin)


def keys(expert, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Keys and values alone, where the tokens only are seen: as `project`."""
    return _keys(expert, for_product(expert.input_norm(hidden)), cos, sin)


def _keys(expert, normed, cos, sin) -> tuple[torch.Tensor, torch.Tensor]:
    heads = (-1, cos.shape[-1])
    key = expert.k_norm(expert.k_proj(normed).unflatten(-1, heads))
    return rotated(key, cos, sin), expert.v_proj(normed).unflatten(-1, heads)


def absorb(expert, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """Output projection, norm and MLP, each added: hidden states (n, D) and attention output (n, H * E) to (n, D)."""
    hidden = hidden + expert.o_proj(attended)
    return hidden + expert.mlp(for_product(expert.post_norm(hidden)))


def for_product(states: torch.Tensor) -> torch.Tensor:
    """Under autocast in its dtype, cast once for all products that take these states and not once for each."""
    device = states.device.type
    return states.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else states


def rotated(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions on (n, heads, E); the first half of `sin` carries the sign."""
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat([second, first], dim=-1) * sin


class Regions(NamedTuple):
    """The regions, as they are or compiled."""

    project: Callable
    absorb: Callable
    keys: Callable


EAGER = Regions(project, absorb, keys)


@functools.cache
def compiled_regions(backend: str = "inductor", mode: str | None = None) -> Regions:
    """The regions compiled, once for a process.

    Args:
        backend: Of `torch.compile`.
        mode: Of `torch.compile`.
    """
    return Regions(*(_compiled(region, backend, mode) for region in EAGER))


def _compiled(region: Callable, backend: str, mode: str | None) -> Callable:
    code = torch.compile(region, backend=backend, mode=mode)

    @functools.wraps(region)
    def run(expert, hidden, *others):
        if len(hidden) == 0:
            return region(expert, hidden, *others)
        if len(hidden) > 1:  # compilers take 0 and 1 for constants
            for tensor in (hidden, *others):
                torch._dynamo.mark_dynamic(tensor, 0)
        return code(expert, hidden, *others)

    return run
