"""What changed from one release to another: people, scans, files, configurations and figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
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
        parts: what one holds at all and the other does not; no more is told of it below, but its files.
        subjects: people; changed are those who are on another side.
        scans: changed are those of which a file, a figure or a term is another one.
        files: by path.
        config: settings by ``step.key``, and steps' versions, that differ; before and after.
        figures: medians that differ.
        model: the models' names, where they differ.
    """

    before: str
    after: str
    parts: Changes
    subjects: Changes
    scans: Changes
    files: Changes
    config: dict[str, tuple[Any, Any]]
    figures: tuple[FigureChange, ...]
    model: tuple[str | None, str | None] | None

    @property
    def same(self) -> bool:
        """Whether both hold the same data."""
        return not (
            self.parts or self.subjects or self.scans or self.files or self.config or self.figures or self.model
        )


def diff_releases(before: Release, after: Release) -> ReleaseDiff:
    """Compare two releases by their documents; no data is read.

    Pseudonyms agree between releases of one workspace alone.

    Raises:
        StorageConflict: a document is damaged.
    """
    old, new = before.manifest, after.manifest
    shared = set(old.parts) & set(new.parts)
    files = _compare({f.path: f.sha256 for f in old.files}, {f.path: f.sha256 for f in new.files})
    scans = _compare(_told(before, shared), _told(after, shared))
    moved = {_scan_of(path, shared) for path in (*files.changed, *files.added, *files.removed)}
    touched = set(scans.changed) | (moved & set(before.about) & set(after.about))
    models = (old.model, new.model)
    return ReleaseDiff(
        f"{old.name} {old.version}",
        f"{new.name} {new.version}",
        _compare(dict.fromkeys(old.parts), dict.fromkeys(new.parts)),
        _compare(before.splits.by_subject(), after.splits.by_subject()),
        Changes(scans.added, scans.removed, tuple(sorted(touched))),
        files,
        dict(_other_settings(old, new)),
        tuple(
            change
            for change in _other_figures(medians(before.about.values()), medians(after.about.values()))
            if change.part in shared
        ),
        models if models[0] != models[1] else None,
    )


def _told(release: Release, parts: Set[str]) -> dict[str, Any]:
    """What is known of each scan, of some parts alone."""
    return {
        key: scan.model_copy(
            update={
                "parts": tuple(part for part in scan.parts if part in parts),
                "figures": {part: of for part, of in scan.figures.items() if part in parts},
            }
        )
        for key, scan in release.about.items()
    }


def _scan_of(path: str, parts: Set[str]) -> str:
    """SUBJECT/EXPRESSION in PART/SUBJECT/EXPRESSION/..., where a path is of this kind and of one of the parts."""
    top, *rest = path.split("/")
    return "/".join(rest[:2]) if len(rest) > 2 and top.removesuffix(".zarr") in parts else ""


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
    both = {made.step for made in old.made_by} & {made.step for made in new.made_by}
    for name in sorted(name for name in set(before) | set(after) if name.partition(".")[0] in both):
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
