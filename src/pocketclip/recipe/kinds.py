"""What the sections of a recipe are made of: their base and the kinds of their values."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

TOO_LARGE = 2**31  # for an integer: what lies in C below takes no larger ones everywhere
Positive = Annotated[int, Field(ge=1, lt=TOO_LARGE)]
Natural = Annotated[int, Field(ge=0, lt=TOO_LARGE)]
Share = Annotated[float, Field(ge=0, le=1)]
Colour = tuple[float, float, float]
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Activation = Literal["gelu", "quick_gelu"]


class Settings(BaseModel):
    """The base of every section: frozen, strict, unknown keys refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", validate_default=True, allow_inf_nan=False)
