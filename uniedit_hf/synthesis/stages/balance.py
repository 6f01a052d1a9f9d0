"""Keeps the share of each category: drafts take places in order, and rejected drafts return theirs."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Mapping

from uniedit_hf.synthesis.records import Draft, Rejection


STAGE = "balance"


def quotas(size: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Splits `size` by weights, rounded so that the parts add up to it."""
    total = sum(weights.values())
    exact = {name: size * weight / total for name, weight in weights.items()}
    parts = {name: int(share) for name, share in exact.items()}
    largest_first = sorted(exact, key=lambda name: parts[name] - exact[name])
    for name in largest_first[: size - sum(parts.values())]:
        parts[name] += 1
    return parts


class Balancer:
    """Lets drafts pass while there are free places in their category.

    A rejected draft returns its place, and a draft whose category is full waits until one comes back or all are taken
    for good. To be independent of the speed of calls, outcomes are counted in the order of the drafts, those that came
    at least `lag` earlier in any case. So the run also always ends at the same draft, when every place is taken by a
    finished record.

    Args:
        places: Records wanted of each category; None lets everything pass.
        lag: More than the number of drafts that can be in progress after this stage.
    """

    def __init__(self, places: Mapping[str, int] | None, lag: int):
        self.places = None if places is None else Counter(places)
        self.missing = 1 if places is None else sum(places.values())
        self.lag = lag
        self.under_way: deque[tuple[str, asyncio.Future[bool]] | None] = deque()
        self.undecided: Counter[str] = Counter()  # drafts under way, by category
        self.futures: dict[tuple[int, int], asyncio.Future[bool]] = {}
        self.end: tuple[int, int] | None = None

    async def __call__(self, draft: Draft) -> Draft | Rejection:
        if self.places is None:
            return draft
        while len(self.under_way) >= self.lag or (self.places[draft.category] < 1 and self.undecided[draft.category]):
            await self._count(self.under_way.popleft())
        if not self.missing and self.end is None:
            self.end = draft.position
        if self.places[draft.category] < 1:
            self.under_way.append(None)
            return draft.rejected(STAGE, "category is full", f"there are enough of {draft.category}.")
        self.places[draft.category] -= 1
        self.undecided[draft.category] += 1
        outcome = self.futures[draft.position] = asyncio.get_running_loop().create_future()
        self.under_way.append((draft.category, outcome))
        return draft

    def finish(self, result: Draft | Rejection) -> None:
        """Reports the outcome of a draft."""
        outcome = self.futures.pop(result.position, None)
        if outcome is not None and not outcome.done():
            outcome.set_result(isinstance(result, Draft))

    async def _count(self, entry: tuple[str, asyncio.Future[bool]] | None) -> None:
        if entry is None:
            return
        category, outcome = entry
        self.undecided[category] -= 1
        if await outcome:
            self.missing -= 1
        else:
            self.places[category] += 1
