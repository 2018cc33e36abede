"""What a service that runs every day may do by itself. No result depends on it, so no change makes anything stale."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, HttpUrl, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from pipeline.safe_name import SafeName
from storage.frozen import Frozen


def _check_address(told: str) -> str:
    """The address as it goes over the wire: what is not ASCII is escaped."""
    if not told:
        return told
    try:
        return str(TypeAdapter(HttpUrl).validate_python(told))
    except ValidationError as error:
        why = error.errors()[0]["msg"].lower()
        raise PydanticCustomError("address", "is no http:// or https:// address, {why}", {"why": why}) from None


class ServiceConfig(Frozen):
    """When to train anew, when to promote, whom to tell."""

    min_new_subjects: int = Field(
        default=5, ge=1, description="training subjects that are new since the last model before it is trained anew"
    )
    held_out_set: SafeName = Field(
        default="first", description="name of the frozen set of held-out scans on which models are compared"
    )
    noise_floor_mm: float = Field(
        default=0.02, ge=0, description="difference of two models' errors that is always taken for noise, mm"
    )
    most_rejected_share: float = Field(
        default=0.3, ge=0, le=1, description="share of rejected scans of a session above which somebody is told"
    )
    notify_url: Annotated[str, AfterValidator(_check_address)] = Field(
        default="", description="address that gets a JSON document by POST when somebody is to be told; none if empty"
    )
