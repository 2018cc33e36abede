"""All manifests of a workspace at one moment, read at once: what a plan, a status or a report looks at."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from pipeline.keys import subject_of
from pipeline.stepspec import StepSpec
from pipeline.workspace import Workspace, judgement_path
from storage.errors import StorageConflict, one_line
from storage.manifest import Judgement, Manifest, find_damage, parse_judgement, parse_manifest, read_manifest
from storage.store import Stat, Store

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


def _read_words(store: Store) -> dict[str, Judgement]:
    words = {}
    paths = store.list("judgements")
    for path, data in zip(paths, store.get_many(paths), strict=True):
        key = path.removeprefix("judgements/").removesuffix(".json")
        if path != judgement_path(key):
            raise StorageConflict(one_line("is no judgement", f"{store.url}/{path}", "a stray file", "move it away"))
        if data is not None:
            words[key] = parse_judgement(data, path)
    return words


def take_snapshot(workspace: Workspace, every_byte: bool = False) -> Snapshot:
    """Read every manifest of a workspace and look at every output once, or again where it seems damaged.

    Nobody needs to be kept from writing meanwhile: what is withdrawn after it was listed is left out.

    Args:
        every_byte: read all outputs and hold them against their digests: finds what a failing disk has changed.

    Raises:
        StorageConflict: a manifest or a person's word can't be read.
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
    manifests = {
        place: parse_manifest(data, path)
        for (path, place), data in zip(at.items(), store.get_many(at), strict=True)
        if data is not None
    }
    for folder in sorted({folder for manifest in manifests.values() for folder in _folders_elsewhere(manifest, stats)}):
        stats |= store.stats(folder)
    damages = {}
    for path, place in at.items():
        if place not in manifests or find_damage(store, manifests[place], path, stats, every_byte) is None:
            continue
        # Maybe it was made anew since it was listed: what stands now, looked at now, tells.
        now = read_manifest(store, path)
        if now is None:
            del manifests[place]
            continue
        manifests[place] = now
        damage = find_damage(store, now, path, every_byte=every_byte)
        if damage is not None:
            damages[place] = damage
    return Snapshot(
        workspace.config,
        workspace.steps,
        manifests,
        words=_read_words(store),
        splits=workspace.kept_splits(),
        template_digest=workspace.template_digest(),
        damages=damages,
    )
