"""What changed from one release to another: people, scans, files, configurations and figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.release import Release
from pipeline.release_documents import ReleaseManifest
from pipeline.release_words import medians


@dataclass(frozen=True)
class Changes:
    """Names that are new, gone, or still there with other content; each sorted."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


@dataclass(frozen=True)
class FigureChange:
    """A figure's median over the scans before and after; None where there is none."""

    part: str
    name: str
    before: float | None
    after: float | None


@dataclass(frozen=True)
class ReleaseDiff:
    """The way from one release to another.

    Attributes:
        before, after: names and versions.
        subjects: people; changed are those who are on another side.
        scans: changed are those of which a file, a figure or a term is another one.
        files: by path.
        config: settings by ``step.key``, and steps' versions, that differ; before and after.
        figures: medians that differ.
        model: the models' names, where they differ.
    """

    before: str
    after: str
    subjects: Changes
    scans: Changes
    files: Changes
    config: dict[str, tuple[Any, Any]]
    figures: tuple[FigureChange, ...]
    model: tuple[str | None, str | None] | None

    @property
    def same(self) -> bool:
        """Whether both hold the same data."""
        return not (self.subjects or self.scans or self.files or self.config or self.figures or self.model)


def diff_releases(before: Release, after: Release) -> ReleaseDiff:
    """Compare two releases by their documents; no data is read.

    Pseudonyms agree between releases of one workspace alone.

    Raises:
        StorageConflict: a document is damaged.
    """
    old, new = before.manifest, after.manifest
    files = _compare({f.path: f.sha256 for f in old.files}, {f.path: f.sha256 for f in new.files})
    moved = {_scan_of(path) for path in files.changed}
    moved |= {_scan_of(path) for path in (*files.added, *files.removed)}
    scans = _compare(before.about, after.about)
    shared = set(before.about) & set(after.about)
    touched = tuple(sorted(set(scans.changed) | (moved & shared)))
    models = (old.model, new.model)
    return ReleaseDiff(
        f"{old.name} {old.version}",
        f"{new.name} {new.version}",
        _compare(before.splits.by_subject(), after.splits.by_subject()),
        Changes(scans.added, scans.removed, touched),
        files,
        dict(_other_settings(old, new)),
        tuple(_other_figures(medians(before.about.values()), medians(after.about.values()))),
        models if models[0] != models[1] else None,
    )


def _scan_of(path: str) -> str:
    """SUBJECT/EXPRESSION in PART/SUBJECT/EXPRESSION/..., where a path is of this kind."""
    parts = path.split("/")
    return "/".join(parts[1:3]) if len(parts) > 3 else ""


def _compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> Changes:
    return Changes(
        tuple(sorted(set(after) - set(before))),
        tuple(sorted(set(before) - set(after))),
        tuple(sorted(name for name in set(before) & set(after) if before[name] != after[name])),
    )


def _settings(manifest: ReleaseManifest) -> dict[str, list[Any]]:
    """Every setting that went in, by ``step.key``; several where results of several configurations did."""
    found: dict[str, list[Any]] = {}
    for made in manifest.made_by:
        for name, value in (("step_version", made.step_version), *_flat(made.config)):
            values = found.setdefault(f"{made.step}.{name}", [])
            if value not in values:
                values.append(value)
    return found


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _other_settings(old: ReleaseManifest, new: ReleaseManifest) -> Iterator[tuple[str, tuple[Any, Any]]]:
    before, after = _settings(old), _settings(new)
    for name in sorted(set(before) | set(after)):
        values = [known[name][0] if len(known.get(name, ())) == 1 else known.get(name) for known in (before, after)]
        if values[0] != values[1]:
            yield name, (values[0], values[1])


Medians = Mapping[str, Mapping[str, tuple[float, float, float, int]]]


def _other_figures(before: Medians, after: Medians) -> Iterable[FigureChange]:
    for part in sorted(set(before) | set(after)):
        old, new = before.get(part, {}), after.get(part, {})
        for name in sorted(set(old) | set(new)):
            values = [of[name][0] if name in of else None for of in (old, new)]
            if values[0] != values[1]:
                yield FigureChange(part, name, values[0], values[1])
