"""What a service that runs every day may do by itself. No result depends on it, so no change makes anything stale."""

from __future__ import annotations

from pydantic import Field

from storage.frozen import Frozen


class ServiceConfig(Frozen):
    """When to train anew, when to promote, whom to tell."""

    min_new_subjects: int = Field(
        default=5, ge=1, description="training subjects that are new since the last model before it is trained anew"
    )
    held_out_set: str = Field(
        default="first", description="name of the frozen set of held-out scans on which models are compared"
    )
    noise_floor_mm: float = Field(
        default=0.02, ge=0, description="difference of two models' errors that is always taken for noise, mm"
    )
    most_rejected_share: float = Field(
        default=0.3, ge=0, le=1, description="share of rejected scans of a session above which somebody is told"
    )
    notify_url: str = Field(
        default="", description="address that gets a JSON document by POST when somebody is to be told; none if empty"
    )
