"""Decides which samples share a pack. A pack is a sequence of at most `max_tokens` tokens in which samples are laid
end to end. The planner only needs the number of tokens of each sample (after conditioning dropout), and no model.

Samples pass through a window. Whenever it is full, one pack leaves it: the subset of the window with the most tokens
that fits the budget and contains the sample that has waited longest. So every sample is packed exactly once and none
waits for long. A window of 64 has thousands of subsets to choose from: where sizes vary, packs are over 99 % full.

`plan_packs` plans a whole data set before training, `StreamPacker` packs a stream; both follow the same rule.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from uniedit_hf.randomness import python_random


Oversized = Literal["raise", "skip"]


class OversizedSampleError(ValueError):
    """A sample is longer than a pack. `items` lists all such samples found so far, by index or item."""

    def __init__(self, items: Sequence[Any], length: int, max_tokens: int):
        super().__init__(tuple(items), length, max_tokens)
        self.items = tuple(items)
        self.length = length
        self.max_tokens = max_tokens

    def __str__(self) -> str:
        return (
            f"{len(self.items):,} sample(s) can never fit into a pack: sample {self.items[0]!r} has {self.length:,} "
            f"tokens but a pack holds max_tokens={self.max_tokens:,}; raise max_tokens, or leave such samples out and "
            "count them with oversized='skip'."
        )


class StreamedPack(NamedTuple):
    """The items of one pack, oldest first, and their total number of tokens."""

    items: tuple[Any, ...]
    tokens: int


@dataclass(frozen=True)
class PackPlan:
    """The packs of one pass over a data set.

    Args:
        packs: The indices of the samples of each pack.
        tokens: The total number of tokens of each pack.
        max_tokens: Maximum number of tokens in a pack.
        skipped: Indices of the samples that are longer than a pack and were left out on request.
    """

    packs: tuple[tuple[int, ...], ...]
    tokens: tuple[int, ...]
    max_tokens: int
    skipped: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.packs)

    @property
    def fill(self) -> float:
        """Share of the packs' capacity that is filled with tokens, in [0, 1]; 0 for a plan without packs."""
        return sum(self.tokens) / (len(self.packs) * self.max_tokens) if self.packs else 0.0


def fullest_subset(lengths: Sequence[int], max_tokens: int) -> list[int]:
    """Positions of the subset with the most tokens that fits into `max_tokens` and contains position 0.

    A subset sum over bits: bit s of `reachable[n]` says whether some subset of the first n samples after position 0
    has s tokens in total. Walking back from the highest bit, a sample is taken only if the earlier ones alone cannot
    reach the sum, so of equally full subsets the one with older samples wins.

    Args:
        lengths: Tokens of each waiting sample, oldest first, each at most `max_tokens`.
        max_tokens: The budget of the pack.
    """
    room = max_tokens - lengths[0]
    within_room = (1 << (room + 1)) - 1
    reachable = [1]
    for length in lengths[1:]:
        reachable.append((reachable[-1] | reachable[-1] << length) & within_room)
        if reachable[-1].bit_length() > room:  # the pack can be filled to the last token
            break
    missing = reachable[-1].bit_length() - 1
    chosen = []
    for position in range(len(reachable) - 1, 0, -1):
        if not reachable[position - 1] >> missing & 1:
            chosen.append(position)
            missing -= lengths[position]
    return [0, *reversed(chosen)]


class StreamPacker:
    """Packs a stream of samples over a window. Resuming from its state is exact: the same packs follow as without a
    break.

    Args:
        max_tokens: Maximum number of tokens in a pack.
        window: Number of samples that wait before a pack is made. A larger window fills packs better and takes more
            memory.
        oversized: How to handle a sample longer than `max_tokens`: `"raise"` an `OversizedSampleError`, or `"skip"`
            it and list it in `skipped`.
    """

    def __init__(self, max_tokens: int, window: int = 64, oversized: Oversized = "raise"):
        if max_tokens < 1 or window < 1:
            raise ValueError(f"max_tokens={max_tokens} and window={window} must both be at least 1.")
        if oversized not in ("raise", "skip"):
            raise ValueError(f"oversized={oversized!r} is unknown; choose 'raise' or 'skip'.")
        self.max_tokens = max_tokens
        self.window = window
        self.oversized = oversized
        self.waiting: list[tuple[Any, int]] = []
        self.skipped: list[Any] = []

    def add(self, item: Hashable, length: int) -> StreamedPack | None:
        """Adds one sample and returns the pack that is made once the window is full, if any.

        Args:
            item: The index or id of the sample. It becomes part of the state.
            length: Its number of tokens.
        """
        if length < 1:
            raise ValueError(f"Sample {item!r} has {length} tokens; a sample in a pack has at least 1.")
        if length > self.max_tokens:
            if self.oversized == "raise":
                raise OversizedSampleError([item], length, self.max_tokens)
            self.skipped.append(item)
            return None
        self.waiting.append((item, length))
        return self._next_pack() if len(self.waiting) >= self.window else None

    def flush(self) -> Iterator[StreamedPack]:
        """Packs the waiting samples once the stream has ended. A pack is removed from the state when it is yielded."""
        while self.waiting:
            yield self._next_pack()

    def _next_pack(self) -> StreamedPack:
        chosen = fullest_subset([length for _, length in self.waiting], self.max_tokens)
        items, lengths = zip(*(self.waiting[position] for position in chosen))
        for position in reversed(chosen):
            del self.waiting[position]
        return StreamedPack(items, sum(lengths))

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the packs to come, in plain lists and numbers."""
        return {
            "max_tokens": self.max_tokens,
            "window": self.window,
            "waiting": [list(sample) for sample in self.waiting],
            "skipped": list(self.skipped),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from a `state_dict`. Raises `ValueError` if the budget or window differs."""
        stored, here = (state["max_tokens"], state["window"]), (self.max_tokens, self.window)
        if stored != here:
            raise ValueError(
                f"The stored packing has (max_tokens, window)={stored} but this run has {here}, so it cannot be "
                "continued exactly; set both as they were."
            )
        self.waiting = [(item, length) for item, length in state["waiting"]]
        self.skipped = list(state["skipped"])


def plan_packs(
    lengths: Sequence[int],
    max_tokens: int,
    *,
    seed: int,
    window: int = 64,
    multiple_of: int = 1,
    oversized: Oversized = "raise",
) -> PackPlan:
    """Plans one pass over a data set: every sample in exactly one pack, in an order drawn from the seed.

    Every step of a training run needs the same number of packs on every rank. `multiple_of` ensures this without
    dropping or
    repeating a sample: packs are halved, from the end of the plan, until their number is divisible by it. If it is the
    number of packs in an optimizer step, the steps consist of the same packs on any number of ranks.

    Args:
        lengths: Tokens of each sample, after conditioning dropout.
        max_tokens: Maximum number of tokens in a pack.
        seed: The plan is a function of it and of the other arguments.
        window: Number of samples that a pack is chosen from.
        multiple_of: The number of packs is a multiple of this.
        oversized: How to handle samples longer than `max_tokens`: `"raise"` an `OversizedSampleError` that names
            all of them, or `"skip"` them and list them in the plan.

    Raises:
        ValueError: A sample has no tokens, or there are too few samples for a multiple of `multiple_of` packs.
    """
    if multiple_of < 1:
        raise ValueError(f"multiple_of={multiple_of} must be at least 1.")
    lengths = [int(length) for length in lengths]
    too_long = [index for index, length in enumerate(lengths) if length > max_tokens]
    if too_long and oversized == "raise":
        raise OversizedSampleError(too_long, lengths[too_long[0]], max_tokens)

    order = list(range(len(lengths)))
    python_random(seed, "packs").shuffle(order)
    packer = StreamPacker(max_tokens, window, oversized)
    filled = [pack for index in order if (pack := packer.add(index, lengths[index]))]
    packs = _halve_until_multiple([pack.items for pack in (*filled, *packer.flush())], multiple_of, lengths)
    return PackPlan(
        packs=tuple(packs),
        tokens=tuple(sum(lengths[index] for index in pack) for pack in packs),
        max_tokens=max_tokens,
        skipped=tuple(too_long),
    )


def _halve_until_multiple(packs: list[tuple[int, ...]], multiple_of: int, lengths: Sequence[int]):
    """Halves packs from the end until their number is a multiple; a pack's samples are dealt out longest first."""
    missing = -len(packs) % multiple_of
    num_samples = sum(map(len, packs))
    if num_samples < len(packs) + missing:
        raise ValueError(
            f"{num_samples} sample(s) cannot make {len(packs) + missing} packs, as multiple_of={multiple_of} asks; "
            "use fewer ranks, less accumulation or more data."
        )
    while missing:
        for position in reversed(range(len(packs))):
            if missing and len(packs[position]) > 1:
                by_length = sorted(packs[position], key=lambda index: -lengths[index])
                packs[position : position + 1] = [tuple(by_length[::2]), tuple(by_length[1::2])]
                missing -= 1
    return packs


def split_over_ranks(plan: PackPlan, num_ranks: int) -> tuple[tuple[int, ...], ...]:
    """Distributes the packs: the numbers of the packs of each rank, one per step, each pack on exactly one rank.

    Step k distributes packs `k * num_ranks` to `(k + 1) * num_ranks - 1` for any number of ranks, so that a run on
    more ranks with less accumulation trains on the same packs in the same step. Within a step the longest pack goes to
    the rank with the fewest tokens so far.

    Raises:
        ValueError: The number of packs is not a multiple of `num_ranks`.
    """
    if num_ranks < 1 or len(plan) % num_ranks:
        raise ValueError(
            f"The plan's {len(plan)} packs cannot be split evenly over num_ranks={num_ranks}; "
            "plan them with multiple_of=num_ranks."
        )
    totals = [0] * num_ranks
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    for first in range(0, len(plan), num_ranks):
        longest_first = sorted(range(first, first + num_ranks), key=lambda pack: -plan.tokens[pack])
        least_first = sorted(range(num_ranks), key=totals.__getitem__)
        for rank, pack in zip(least_first, longest_first):
            shares[rank].append(pack)
            totals[rank] += plan.tokens[pack]
    return tuple(map(tuple, shares))
