"""A workspace: where the results of all steps lie, and the one way to read and publish them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from pipeline.config import PipelineConfig
from pipeline.inputs import canonical_key, expected_inputs
from pipeline.stepspec import StepSpec
from registration.template import Template
from storage.digest import digest_bytes, digest_json
from storage.errors import ConfigError, one_line
from storage.manifest import Judgement, Manifest, Output, commit, plain, read_manifest, read_output, settle
from storage.store import Store

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}(@[1-9][0-9]?)?$")


def is_safe_name(name: str) -> bool:
    """Whether a subject, expression or model may be called so: letters, digits, ``._-``, and ``@2`` for a retake."""
    return _NAME.match(name) is not None and ".." not in name


class ScanKey(NamedTuple):
    """A scan's key, written SUBJECT/EXPRESSION."""

    subject: str
    expression: str

    @classmethod
    def parse(cls, text: str) -> ScanKey:
        """Read a key.

        Raises:
            ConfigError: the text is no key.
        """
        subject, _, expression = text.partition("/")
        if not (is_safe_name(subject) and is_safe_name(expression)):
            raise ConfigError(one_line("is no scan key", repr(text), "", "write it as SUBJECT/EXPRESSION"))
        return cls(subject, expression)

    def __str__(self) -> str:
        return f"{self.subject}/{self.expression}"


class Workspace:
    """The results of all steps, over any store.

    Manifests are read from the store each time; ``pipeline.planner.Snapshot`` holds them for a whole plan.

    Attributes:
        store: where everything lies.
        config: the workspace's configuration.
        steps: the steps by name, in order.
    """

    def __init__(self, store: Store, config: PipelineConfig, steps: Mapping[str, StepSpec]) -> None:
        self.store = store
        self.config = config
        self.steps = steps

    @property
    def url(self) -> str:
        """By which another process opens the same workspace."""
        return self.store.url

    def manifest(self, step: str, key: str) -> Manifest | None:
        """The manifest of a step's result for a key, or None where there is none."""
        return read_manifest(self.store, self._manifest_path(step, key))

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
        verdict = self.verdict(step, key, told, faults, made=bool(outputs))
        manifest = Manifest(
            step=step,
            key=key,
            step_version=spec.version,
            config_digest=self.config.digest_of_step(step),
            inputs=dict(self.inputs(step, key) if inputs is None else inputs),
            figures=told,
            faults=list(faults),
            **verdict,
            **plain(extra or {}),
        )
        return commit(self.store, spec.manifest_path(key), manifest, outputs or {}, spec.own_folder)

    def verdict(
        self, step: str, key: str, figures: Mapping[str, Any], faults: Sequence[str], made: bool
    ) -> dict[str, Any]:
        """What thresholds and a person's word make of a result: the fields ``verdict``, ``reasons``, ``judgement``."""
        spec = self.steps[step]
        reasons = [] if faults else spec.judge(figures, self.config.thresholds_of_step(step))
        return settle(faults, reasons, self.judgement(step, key), made)

    def judgement(self, step: str, key: str) -> Judgement | None:
        """A person's word over the results of a scan, or None."""
        if self.steps[step].scope != "scan":
            return None
        try:
            return Judgement.model_validate_json(self.store.get(f"judgements/{key}.json"))
        except FileNotFoundError:
            return None

    def scans(self) -> list[str]:
        """The keys of all scans taken in, sorted."""
        ends = "/report.json"
        return [
            path.removeprefix("ingest/").removesuffix(ends) for path in self.store.list("ingest") if path.endswith(ends)
        ]

    def canonical_key(self, subject: str) -> str | None:
        """The scan that serves as the subject's canonical one, or None where there is none."""
        return canonical_key(self, subject)

    def split(self, subject: str) -> str:
        """Whether a subject is for ``train`` or ``held_out``."""
        named = self.config.splits.held_out_ids
        if named:
            return "held_out" if subject in named else "train"
        return self._kept_splits.get(subject, "train")

    @cached_property
    def _kept_splits(self) -> dict[str, str]:
        try:
            return dict(json.loads(self.store.get("splits.json")))
        except FileNotFoundError:
            return {}

    def template(self) -> Template:
        """The workspace's template.

        Raises:
            ConfigError: the file is missing or no template.
        """
        return Template.from_bytes(self._template_bytes, self.config.template)

    def template_digest(self) -> str:
        """SHA-256 of the template's file."""
        return digest_bytes(self._template_bytes)

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
