"""A release in words and figures: its description and its ``DATASHEET.md``."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jinja2

from pipeline.release_config import ReleaseConfig
from pipeline.release_documents import ReleasedScan, ReleasedScans

if TYPE_CHECKING:
    from pipeline.release_contents import ReleaseContents

_SHOWN = {
    "clean": ("face_coverage", "coverage", "noise_mm", "spread_median_mm", "guessed_share", "views_used"),
    "registrations": ("face_residual_median_mm", "face_residual_p95_mm", "face_observed", "skull_disagreement_mm"),
    "samples": ("surface_count", "near_count", "pair_count", "observed_share", "pair_weight_mean"),
}
"""Figures that a receiver asks for first; all others stand in ``scans.json``."""


def described(config: ReleaseConfig, scans: ReleasedScans) -> str:
    """The release in a sentence or two."""
    if config.description:
        return config.description
    people, expressions = len({scan.subject for scan in scans.scans}), len({scan.expression for scan in scans.scans})
    return f"{len(scans.scans)} scans of {people} heads in {expressions} expressions, for parametric head models."


def medians(scans: Iterable[ReleasedScan]) -> dict[str, dict[str, tuple[float, float, float, int]]]:
    """Each numeric figure over the scans, by part: median, least, largest, and how many scans have it."""
    values: dict[str, dict[str, list[float]]] = {}
    for scan in scans:
        for part, figures in scan.figures.items():
            for name, value in figures.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    values.setdefault(part, {}).setdefault(name, []).append(float(value))
    return {
        part: {name: (statistics.median(v), min(v), max(v), len(v)) for name, v in sorted(of.items())}
        for part, of in sorted(values.items())
    }


def write_datasheet(
    config: ReleaseConfig, version: str, published: str, contents: ReleaseContents, figures: Mapping[str, Any]
) -> bytes:
    """Fill in ``DATASHEET.md`` from the sessions and the quality figures. Same release, same bytes.

    Args:
        config: what the maker tells; what is not told is said to be missing.
        version: MAJOR.MINOR.PATCH.
        published: ISO 8601 date, perhaps the year alone.
        contents: what is released.
        figures: of the model's training and evaluation.
    """
    scans = contents.scans.scans
    people = {scan.subject: scan for scan in scans}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline", "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    page = environment.get_template("datasheet.md.j2").render(
        told=config,
        version=version,
        published=published,
        description=described(config, contents.scans),
        contents=contents,
        scans=scans,
        people=people.values(),
        expressions=_counted(scan.expression for scan in scans),
        licences=_counted(scan.licence for scan in scans),
        scopes=_counted(", ".join(scan.consent_scope) for scan in scans),
        layouts=_counted(scan.layout for scan in scans),
        rigs=_counted(scan.rig for scan in scans),
        hair=_counted(person.hair or "not told" for person in people.values()),
        with_parts=Counter(part for scan in scans for part in scan.parts),
        sides={side: sum(scan.split == side for scan in scans) for side in ("train", "held_out")},
        quality=_quality(scans),
        figures={name: _short(value) for name, value in figures.items() if isinstance(value, int | float)},
    )
    return page.encode()


def _counted(names: Iterable[str]) -> list[tuple[str, int]]:
    return sorted(Counter(names).items(), key=lambda item: (-item[1], item[0]))


def _quality(scans: Iterable[ReleasedScan]) -> list[tuple[str, str, str, str, str]]:
    """Rows of the quality table: part, figure, median, least, largest."""
    rows = []
    for part, of in medians(scans).items():
        for name in [name for name in _SHOWN.get(part, ()) if name in of] or list(of)[:5]:
            middle, least, most, _ = of[name]
            rows.append((part, name, _short(middle), _short(least), _short(most)))
    return rows


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
