"""What an expert does before and after attention: the two regions of a layer that are compiled.

Both are functions of an expert's modules and its tokens. Compiled with a dynamic number of tokens, one piece of code
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
    heads = (-1, cos.shape[-1])
    normed = expert.input_norm(hidden)
    query = expert.q_norm(expert.q_proj(normed).unflatten(-1, heads))
    key = expert.k_norm(expert.k_proj(normed).unflatten(-1, heads))
    value = expert.v_proj(normed).unflatten(-1, heads)
    return rotated(query, cos, sin), rotated(key, cos, sin), value


def absorb(expert, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """Output projection, norm and MLP, each added: hidden states (n, D) and attention output (n, H * E) to (n, D)."""
    hidden = hidden + expert.o_proj(attended)
    return hidden + expert.mlp(expert.post_norm(hidden))


def rotated(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions on (n, heads, E); the first half of `sin` carries the sign."""
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat([second, first], dim=-1) * sin


class Regions(NamedTuple):
    """The two regions, as they are or compiled."""

    project: Callable
    absorb: Callable


EAGER = Regions(project, absorb)


@functools.cache
def compiled_regions(backend: str = "inductor", mode: str | None = None) -> Regions:
    """Both regions compiled, once for a process.

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
