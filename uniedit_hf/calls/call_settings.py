"""Settings shared by all backends: limits, prices and the budget."""

from __future__ import annotations

from typing import Annotated, Any

import httpx2
from pydantic import Field, PositiveInt, model_validator

from uniedit_hf.calls.section import Section, Weight
from uniedit_hf.renamed import renamed


CONNECTING = 10.0  # seconds


class Price(Section):
    """Prices, in any currency.

    Args:
        tokens_in: Price of a million input tokens.
        tokens_out: Price of a million output tokens.
        image: Price of a generated image.
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
    """Settings of all backends.

    Args:
        model: Id of the model.
        concurrency: Maximum number of calls in flight.
        requests_per_minute: Maximum number of calls begun per minute.
        attempts: Maximum number of attempts for a call that fails temporarily.
        first_wait: Seconds before the second attempt; doubled before each further one.
        malformed_attempts: Maximum number of attempts if the answer does not have the requested form.
        timeout: Seconds after which a call fails.
        price: Prices for the budget and the report.
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
    """The time limits of a call: `timeout` seconds for its reply, and less for the connection."""
    return httpx2.Timeout(timeout, connect=min(timeout, CONNECTING))


class BudgetSettings(Section):
    """The total budget of a run, including resumed runs; values that are not set are unlimited.

    With the engine `datatrove` every shard gets an equal part.
    """

    calls: PositiveInt | None = None
    tokens: PositiveInt | None = None
    money: Annotated[float, Field(gt=0)] | None = None
