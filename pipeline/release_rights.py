"""Whether a scan may leave the house: its licence, and what the person agreed to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import ValidationError

from pipeline.release_config import RELEASE_SCOPE
from pipeline.session import Consent
from storage.manifest import Manifest


@dataclass(frozen=True)
class Rights:
    """What a session tells of a scan's terms.

    Attributes:
        licence: under which it may be used; empty without one.
        scope: what the person agreed to.
        refusal: why it may not be released, or None.
    """

    licence: str
    scope: tuple[str, ...]
    refusal: str | None


def covers_release(scope: Iterable[str]) -> bool:
    """Whether what a person agreed to names release."""
    return RELEASE_SCOPE in (word.strip().lower() for word in scope)


def rights_of(ingested: Manifest) -> Rights:
    """Read the terms of a scan as its session told them.

    Consent that is not told, not given, or does not name ``release`` in its scope is none: nothing is assumed.

    Args:
        ingested: the manifest of ingest.
    """
    told = ingested.extra("licence")
    licence = told.strip() if isinstance(told, str) else ""
    agreed = ingested.extra("consent")
    try:
        consent = None if agreed is None else Consent.model_validate(agreed)
    except ValidationError:
        return Rights(licence, (), "the consent that the session tells can't be understood")
    scope = tuple(consent.scope) if consent is not None else ()
    refusal = None
    if not licence:
        refusal = "no licence was told"
    elif consent is None:
        refusal = "no consent was told"
    elif not consent.given:
        refusal = "consent was not given"
    elif not covers_release(scope):
        refusal = f"consent does not cover release, only {', '.join(scope) or 'nothing'}"
    return Rights(licence, scope, refusal)
