"""What a workspace tells of its releases beside the data: names, contacts, terms."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from storage.frozen import Frozen

Part = Literal["clean", "registrations", "samples", "model"]
PARTS: tuple[Part, ...] = ("clean", "registrations", "samples", "model")

RELEASE_SCOPE = "release"
"""What a person's consent has to name in its ``scope``."""


class ReleaseConfig(Frozen):
    """The words that a release's datasheet and metadata need from its maker. No result depends on them."""

    name: str = Field(default="nphm-heads", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="of the data set")
    description: str = Field(default="", description="one or two sentences on what it is for; empty: a plain one")
    creator: str = Field(default="", description="who made it: a person or an organisation")
    contact: str = Field(default="", description="where to write to, also to take consent back")
    url: str = Field(default="", description="page of the data set")
    published: str = Field(
        default="",
        pattern=r"^([0-9]{4}(-[0-9]{2}(-[0-9]{2})?)?)?$",
        description="date of publication; empty: the year of the newest session",
    )
    citation: str = Field(default="", description="how to cite it")
    allowed_uses: str = Field(default="", description="what it may be used for, in addition to each scan's licence")
    forbidden_uses: str = Field(
        default="Finding out who a person is, or imitating a person without that person's consent.",
        description="what it may not be used for",
    )
