"""What calls have in common, whoever is asked: limits, prices and the budget."""

from __future__ import annotations

from typing import Annotated, Any

import httpx2
from pydantic import Field, PositiveInt, model_validator

from uniedit_hf.calls.section import Section, Weight
from uniedit_hf.renamed import renamed


CONNECTING = 10.0  # seconds


class Price(Section):
    """Money of any currency.

    Args:
        tokens_in: For a million tokens read.
        tokens_out: For a million tokens written.
        image: For an image drawn.
    """

    tokens_in: Weight = 0.0
    tokens_out: Weight = 0.0
    image: Weight = 0.0

    @model_validator(mode="before")
    @classmethod
    def _former_names(cls, given: Any) -> Any:
        if isinstance(given, dict) and "picture" in given:
            raise ValueError(renamed("picture", "image").removesuffix("."))
        return given


class BackendSettings(Section):
    """What all backends that are asked have in common.

    Args:
        model: Its id.
        concurrency: Calls in flight at most.
        requests_per_minute: Calls that begin in a minute at most.
        attempts: How often a call is made if it fails in a way that may pass.
        first_wait: Seconds before the second attempt; doubled before each further one.
        malformed_attempts: How often the same is asked if the answer has another form than asked for.
        timeout: Seconds after which a call has failed.
        price: For the budget and the report.
    """

    model: str
    concurrency: PositiveInt = 8
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    attempts: PositiveInt = 6
    first_wait: Annotated[float, Field(gt=0)] = 1.0
    malformed_attempts: PositiveInt = 3
    timeout: Annotated[float, Field(gt=0)] = 120.0
    price: Price | None = None


def time_limits(timeout: float) -> httpx2.Timeout:
    """The limits of a call: `timeout` seconds for its reply, and less for the connection."""
    return httpx2.Timeout(timeout, connect=min(timeout, CONNECTING))


class BudgetSettings(Section):
    """What the run may spend in all, resumed runs included; nothing set is no limit.

    With the engine `datatrove` every shard gets an equal part.
    """

    calls: PositiveInt | None = None
    tokens: PositiveInt | None = None
    money: Annotated[float, Field(gt=0)] | None = None
