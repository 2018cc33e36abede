"""All manifests of a workspace at one moment, read at once: what a plan, a status or a report looks at."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from pipeline.keys import subject_of
from pipeline.stepspec import StepSpec
from pipeline.workspace import Workspace, judgement_path
from storage.manifest import Judgement, Manifest, find_damage, parse_manifest
from storage.store import Stat

if TYPE_CHECKING:
    from pipeline.config import PipelineConfig


class Snapshot:
    """A workspace's manifests, words and splits, held in memory. See ``take_snapshot``.

    Attributes:
        config: the workspace's configuration.
        steps: the steps by name, in order.
        manifests: by (step, key).
    """

    def __init__(
        self,
        config: PipelineConfig,
        steps: Mapping[str, StepSpec],
        manifests: Mapping[tuple[str, str], Manifest],
        *,
        words: Mapping[str, Judgement] | None = None,
        splits: Mapping[str, str] | None = None,
        template_digest: str = "",
        damages: Mapping[tuple[str, str], str] | None = None,
    ) -> None:
        self.config = config
        self.steps = steps
        self.manifests = manifests
        self._words = words or {}
        self._splits = splits or {}
        self._template_digest = template_digest
        self._damages = damages or {}
        self._scans = sorted(key for step, key in manifests if step == "ingest")
        self._of_subject = {s: list(keys) for s, keys in itertools.groupby(self._scans, subject_of)}

    def manifest(self, step: str, key: str) -> Manifest | None:
        """The manifest of a step's result, or None."""
        return self.manifests.get((step, key))

    def scans(self) -> list[str]:
        """The keys of all scans taken in, sorted."""
        return self._scans

    def scans_of(self, subject: str) -> list[str]:
        """The keys of a subject's scans, sorted."""
        return self._of_subject.get(subject, [])

    def judgement(self, key: str) -> Judgement | None:
        """A person's word over a scan, or None."""
        return self._words.get(key)

    def split(self, subject: str) -> str:
        """``train`` or ``held_out``."""
        return self.config.splits.of(subject, self._splits)

    def template_digest(self) -> str:
        """Digest of the template."""
        return self._template_digest

    def damage(self, manifest: Manifest) -> str | None:
        """What is wrong with a result's outputs as they lie in the store, or None."""
        return self._damages.get((manifest.step, manifest.key))


def _folders_elsewhere(manifest: Manifest, known: Mapping[str, Stat]) -> Iterator[str]:
    """The top folders of outputs that nothing is known of yet: listed at once, where each would be asked for alone."""
    return (output.path.partition("/")[0] for output in manifest.outputs.values() if output.path not in known)


def take_snapshot(workspace: Workspace, every_byte: bool = False) -> Snapshot:
    """Read every manifest of a workspace and look at every output once.

    Args:
        every_byte: read all outputs and hold them against their digests: finds what a failing disk has changed.

    Raises:
        StorageConflict: a manifest can't be read.
    """
    store = workspace.store
    stats: dict[str, Stat] = {}
    at: dict[str, tuple[str, str]] = {}
    for spec in workspace.steps.values():
        there = store.stats(spec.folder)
        stats |= there
        ends = "/report.json"
        for path in there:
            key = path[len(spec.folder) + 1 : -len(ends)]
            if path.endswith(ends) and path == spec.manifest_path(key):
                at[path] = (spec.name, key)
    read = store.get_many(at)
    manifests = {place: parse_manifest(data, path) for (path, place), data in zip(at.items(), read, strict=True)}
    for folder in sorted({folder for manifest in manifests.values() for folder in _folders_elsewhere(manifest, stats)}):
        stats |= store.stats(folder)
    damages = {
        place: damage
        for path, place in at.items()
        if (damage := find_damage(store, manifests[place], path, stats, every_byte)) is not None
    }
    words = {}
    for path in store.list("judgements"):
        key = path.removeprefix("judgements/").removesuffix(".json")
        assert path == judgement_path(key)
        words[key] = Judgement.model_validate_json(store.get(path))
    return Snapshot(
        workspace.config,
        workspace.steps,
        manifests,
        words=words,
        splits=workspace.kept_splits(),
        template_digest=workspace.template_digest(),
        damages=damages,
    )
