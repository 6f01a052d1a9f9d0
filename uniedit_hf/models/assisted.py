"""Assisted generation behind contexts with images.

Candidates from an assistant model, or from prompt lookup, are appended to the context before transformers has read it;
then the context is neither only ids nor only embeddings. So the context is read into the cache first, up to its last
token; from there on everything is text.
"""

from __future__ import annotations

from typing import Any

from transformers import Cache, GenerationConfig


def is_assisted(options: dict[str, Any], config: GenerationConfig) -> bool:
    """Whether a call of `generate` uses candidates from an assistant model or from prompt lookup; beam search ignores
    them, with a warning of transformers.

    Args:
        options: The arguments of the call.
        config: The model's generation configuration.

    Raises:
        ValueError: If the model shall assist itself by leaving early, which only models of text alone can.
    """
    config = options.get("generation_config") or config
    looks_up = options.get("prompt_lookup_num_tokens", getattr(config, "prompt_lookup_num_tokens", None))
    exits = options.get("assistant_early_exit", getattr(config, "assistant_early_exit", None))
    if exits is not None:
        raise ValueError(
            f"assistant_early_exit is {exits}, but this model cannot leave its layers early: use assistant_model or "
            "prompt_lookup_num_tokens."
        )
    if (options.get("num_beams", getattr(config, "num_beams", None)) or 1) > 1:
        return False
    return options.get("assistant_model") is not None or looks_up is not None


def check_context_is_read_at_once(options: dict[str, Any], config: GenerationConfig) -> None:
    """Refuses what would cut or rewrite the ids of a context, which do not stand for its images.

    Raises:
        ValueError: Naming the option.
    """
    config = options.get("generation_config") or config
    for name in ("prefill_chunk_size", "token_healing"):
        if options.get(name, getattr(config, name, None)):
            raise ValueError(
                f"{name} is not possible with contexts of samples, whose images are read at once and not by their "
                "ids: leave it out."
            )


def check_cache_choice(options: dict[str, Any]) -> None:
    """Takes `cache_implementation` out of the arguments of `generate`, whose context is read into a dynamic cache.

    Raises:
        ValueError: If another cache is chosen.
    """
    chosen = options.pop("cache_implementation", None)
    if chosen not in (None, "dynamic"):
        raise ValueError(
            f"cache_implementation is {chosen!r}, but assisted generation removes rejected candidates from the cache, "
            "which only a dynamic one allows: leave it out."
        )


def mark_read(cache: Cache | None) -> None:
    """Records how many tokens of the context are in a cache before candidates are added."""
    if cache is not None and cache.get_seq_length():
        cache.read_ahead = cache.get_seq_length()


def unread(length: int, cache: Cache | None) -> int | None:
    """How many of the last of `length` ids are still to be read, if some were read ahead; otherwise `None`."""
    ahead = getattr(cache, "read_ahead", None)
    if ahead is None:
        return None
    del cache.read_ahead
    return length - ahead
