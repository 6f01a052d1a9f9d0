"""The base of all settings."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """Base class of settings: unknown keys are errors, and error messages never show the value, which may be a key."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
