"""A workspace: where the results of all steps lie, and the one way to read and publish them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pipeline.inputs import canonical_key, expected_inputs
from pipeline.keys import ScanKey
from pipeline.splits import PATH as SPLITS_PATH
from pipeline.stepspec import StepSpec
from pipeline.verdict import derive_verdict
from registration.template import Template
from storage.digest import digest_bytes, digest_json
from storage.errors import ConfigError, one_line
from storage.manifest import (
    Judgement,
    Manifest,
    Output,
    commit,
    find_damage,
    parse_judgement,
    plain,
    read_manifest,
    read_output,
)
from storage.store import Store

if TYPE_CHECKING:
    from pipeline.config import PipelineConfig

__all__ = ["ScanKey", "Workspace"]


class Workspace:
    """The results of all steps, over any store.

    A manifest is read again whenever the store has another version of it; ``pipeline.snapshot`` reads all of them once.

    Attributes:
        store: where everything lies.
        config: the workspace's configuration.
        steps: the steps by name, in order.
        tell: hears how far a long step is, (done, total, note). A caller that wants to know puts its own here.
    """

    def __init__(self, store: Store, config: PipelineConfig, steps: Mapping[str, StepSpec]) -> None:
        self.store = store
        self.config = config
        self.steps = steps
        self._read: dict[str, tuple[str, Manifest]] = {}
        self.tell: Callable[[int, int, str], None] = lambda done, total, note: None

    @property
    def url(self) -> str:
        """By which another process opens the same workspace."""
        return self.store.url

    def manifest(self, step: str, key: str) -> Manifest | None:
        """The manifest of a step's result for a key, or None where there is none."""
        path = self._manifest_path(step, key)
        found = self.store.stat(path)
        if found is None:
            return None
        version, manifest = self._read.get(path, ("", None))
        if manifest is None or version != found.version:
            manifest = read_manifest(self.store, path)
            if manifest is not None:
                self._read[path] = (found.version, manifest)
        return manifest

    def accepted(self, step: str, key: str) -> Manifest:
        """The manifest of a result that a later step relies on.

        Raises:
            ConfigError: there is none, or it was rejected.
        """
        manifest = self.manifest(step, key)
        if manifest is None or not manifest.accepted:
            why = "; ".join(manifest.reasons) if manifest else "never computed"
            raise ConfigError(one_line(f"has no accepted result of {step}", key, why, f"run {step} first"))
        return manifest

    def read(self, manifest: Manifest, name: str) -> bytes:
        """Read an output and check its digest.

        Raises:
            StorageConflict: it is missing or was changed.
        """
        return read_output(self.store, manifest, name)

    def damage(self, manifest: Manifest) -> str | None:
        """What is wrong with a result's outputs as they lie in the store, or None: one is missing or was changed."""
        return find_damage(self.store, manifest, self._manifest_path(manifest.step, manifest.key))

    def inputs(self, step: str, key: str) -> dict[str, str]:
        """The digests of all that a step reads for a key, as the planner knows them."""
        return expected_inputs(self, self.steps[step], key)

    def commit(
        self,
        step: str,
        key: str,
        *,
        inputs: Mapping[str, str] | None = None,
        outputs: Mapping[str, bytes | Output] | None = None,
        figures: Mapping[str, Any] | None = None,
        faults: Sequence[str] = (),
        extra: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Publish a step's result; the verdict follows from faults, figures, thresholds and a person's word.

        Args:
            inputs: what ``inputs(step, key)`` said before the step read them; looked up now when left out.
            outputs: by file name; bytes are put beside the manifest, an ``Output`` lies in the store already.
            figures: quality figures, units in their names. NumPy values are fine.
            faults: what the step itself raised against the scan.
            extra: further fields of the manifest.
        """
        spec = self.steps[step]
        told = plain(figures or {})
        thresholds = self.config.thresholds_of_step(step)
        word = self.judgement(key) if spec.scope == "scan" else None
        verdict = derive_verdict(spec, thresholds, word, figures=told, faults=faults, made=bool(outputs))
        manifest = Manifest(
            step=step,
            key=key,
            step_version=spec.version,
            config_digest=self.config.digest_of_step(step),
            config=self.config.resolved(step),
            inputs=dict(self.inputs(step, key) if inputs is None else inputs),
            figures=told,
            faults=list(faults),
            **verdict,
            **plain(extra or {}),
        )
        return commit(self.store, spec.manifest_path(key), manifest, outputs or {}, spec.own_folder)

    def judgement(self, key: str) -> Judgement | None:
        """A person's word over a scan, or None."""
        path = judgement_path(key)
        try:
            return parse_judgement(self.store.get(path), path)
        except FileNotFoundError:
            return None

    def scans(self) -> list[str]:
        """The keys of all scans taken in, sorted."""
        return self.scans_of("")

    def scans_of(self, subject: str) -> list[str]:
        """The keys of a subject's scans, sorted."""
        paths = self.store.list(f"ingest/{subject}" if subject else "ingest")
        ends = "/report.json"
        return sorted(path[len("ingest/") : -len(ends)] for path in paths if path.endswith(ends))

    def canonical_key(self, subject: str) -> str | None:
        """The scan that serves as the subject's canonical one, or None where there is none."""
        return canonical_key(self, subject)

    def split(self, subject: str) -> str:
        """Whether a subject is for ``train`` or ``held_out``."""
        return self.config.splits.of(subject, self.kept_splits())

    def kept_splits(self) -> dict[str, str]:
        """The splits drawn so far: ``train`` or ``held_out`` by subject."""
        try:
            return dict(json.loads(self.store.get(SPLITS_PATH)))
        except FileNotFoundError:
            return {}

    def template(self) -> Template:
        """The workspace's template.

        Raises:
            ConfigError: the file is missing or no template.
        """
        return Template.from_bytes(self.template_bytes(), self.config.template)

    def template_digest(self) -> str:
        """SHA-256 of the template's file."""
        return digest_bytes(self.template_bytes())

    def template_bytes(self) -> bytes:
        """The template's file.

        Raises:
            ConfigError: it is missing.
        """
        return self._template_bytes

    @cached_property
    def _template_bytes(self) -> bytes:
        try:
            return self.store.get(self.config.template)
        except FileNotFoundError:
            remedy = "make it with 'nphm template import-mesh' or 'import-ict', or start anew with 'nphm init'"
            raise ConfigError(one_line("template is missing", self.config.template, self.url, remedy)) from None

    def seed(self, step: str, key: str) -> int:
        """The seed of a step for a key, for ``np.random.default_rng``; from the run's seed and the key alone."""
        return int(digest_json([self.config.seed, step, key])[:16], 16)

    def _manifest_path(self, step: str, key: str) -> str:
        return self.steps[step].manifest_path(key)


def judgement_path(key: str) -> str:
    """Where a person's word over a scan lies."""
    return f"judgements/{key}.json"
