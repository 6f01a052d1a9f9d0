"""The budget of a run. When it is used up, no further call is made and the run stops cleanly."""

from __future__ import annotations

from collections.abc import Iterable

from uniedit_hf.calls.cache import Spent
from uniedit_hf.calls.call_settings import BudgetSettings, Price
from uniedit_hf.calls.messages import Reply


MILLION = 1_000_000


class BudgetReached(Exception):
    """The budget allows no further call."""


class Budget:
    """Counts calls, tokens and money, including those of earlier runs in the same folder.

    Calls are counted when they begin, so their limit is exact. Tokens and money are only known after the reply, so
    calls in flight may exceed the limit.
    """

    def __init__(self, limits: BudgetSettings, earlier: Iterable[Spent] = ()):
        self.limits = limits
        earlier = list(earlier)
        self.calls = sum(spent.calls for spent in earlier)
        self.tokens = sum(spent.tokens for spent in earlier)
        self.money = sum(spent.money for spent in earlier)

    def begin_call(self) -> None:
        """Counts a call; raises `BudgetReached` if the budget is used up."""
        for name in ("calls", "tokens", "money"):
            limit, spent = getattr(self.limits, name), getattr(self, name)
            if limit is not None and spent >= limit:
                raise BudgetReached(f"the budget of {limit:,} ({name}) is used up")
        self.calls += 1

    def fail_call(self) -> None:
        """Uncounts a call that gave no reply."""
        self.calls -= 1

    def end_call(self, reply: Reply, money: float) -> None:
        self.tokens += reply.tokens_in + reply.tokens_out
        self.money += money


def price_of(reply: Reply, price: Price | None) -> float:
    """The cost of a reply."""
    if price is None:
        return 0.0
    per_token = reply.tokens_in * price.tokens_in + reply.tokens_out * price.tokens_out
    return per_token / MILLION + (price.image if reply.image is not None else 0.0)
