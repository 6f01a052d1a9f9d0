"""The base of all settings."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """Unknown keys are mistakes, and a mistake never shows the value, which may be a key."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
