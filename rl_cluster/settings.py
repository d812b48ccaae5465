"""What all groups of settings are made of: ranges, and the error for values that cannot be."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1, strict=True)]
NonNegativeInt = Annotated[int, Field(ge=0, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
Switch = Annotated[bool, Field(strict=True)]
Share = Annotated[float, Field(ge=0, le=1)]
Precision = Literal["float32", "bfloat16"]


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names key, value and remedy."""


class Settings:
    """Unknown keys are errors in every group of settings."""

    __pydantic_config__ = ConfigDict(extra="forbid")
