"""What a step's result depends on, derived from the manifests alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from pipeline.config import PipelineConfig
from pipeline.stepspec import Need, StepSpec
from storage.digest import digest_json
from storage.manifest import Manifest


class Book(Protocol):
    """The manifests and settings of a workspace, read from wherever."""

    config: PipelineConfig
    steps: Mapping[str, StepSpec]

    def manifest(self, step: str, key: str) -> Manifest | None:
        """The manifest of a step's result, or None."""

    def scans(self) -> Iterable[str]:
        """The keys of all scans taken in, sorted."""

    def split(self, subject: str) -> str:
        """``train`` or ``held_out``."""

    def template_digest(self) -> str:
        """Digest of the template."""


def subject_of(key: str) -> str:
    """The subject in SUBJECT/EXPRESSION."""
    return key.partition("/")[0]


def expression_of(key: str) -> str:
    """The expression in SUBJECT/EXPRESSION."""
    return key.partition("/")[2]


def canonical_key(book: Book, subject: str, expressions: Iterable[str] | None = None) -> str | None:
    """The scan that serves as a subject's canonical one.

    This is the expression that the session names, or its first retake (EXPRESSION@2 and so on) that was not rejected
    before registration, should the take before have been.

    Returns:
        The key, or None where no such scan was taken in.
    """
    keys = [f"{subject}/{e}" for e in expressions] if expressions is not None else _scans_of(book, subject)
    takes = []
    for key in keys:
        taken = book.manifest("ingest", key)
        if taken is not None:
            name, _, retake = expression_of(key).partition("@")
            if name == (taken.model_extra or {}).get("canonical_expression"):
                takes.append((int(retake or 1), key))
    takes.sort()
    for _, key in takes:
        early = (book.manifest(step, key) for step in ("ingest", "clean"))
        if all(manifest is None or manifest.accepted for manifest in early):
            return key
    return takes[0][1] if takes else None


def _scans_of(book: Book, subject: str) -> list[str]:
    return [key for key in book.scans() if subject_of(key) == subject]


def resolve(book: Book, need: Need, key: str) -> Iterator[tuple[str, str]]:
    """The results that a need stands for, as (role, key), in a fixed order.

    The role is the name under which the result's digest stands among the inputs.
    """
    if need.over in ("own", "model"):
        yield need.step, key
    elif need.over == "canonical":
        canonical = canonical_key(book, subject_of(key))
        if canonical is not None and canonical != key:
            yield f"canonical/{need.step}", canonical
    else:
        for scan in book.scans():
            if need.over == "all" or book.split(subject_of(scan)) == need.over:
                yield f"{need.step}/{scan}", scan


def result_digests(manifest: Manifest) -> dict[str, str]:
    """The digests by which later steps know a scan's result."""
    if manifest.step == "ingest":
        return {"content": str(manifest.extra("content_digest"))}
    return {name: output.sha256 for name, output in manifest.outputs.items()}


def expected_inputs(book: Book, spec: StepSpec, key: str) -> dict[str, str]:
    """The inputs that a result computed now would record: digest by name.

    Of a scan's own and its canonical scan's results each output counts; of results over many scans one digest each, and
    only the accepted ones.
    """
    inputs: dict[str, str] = {}
    for need in spec.needs:
        for role, source in resolve(book, need, key):
            manifest = book.manifest(need.step, source)
            if need.over in ("own", "canonical", "model"):
                if manifest is None or not manifest.accepted:
                    inputs[role] = "missing" if manifest is None else "rejected"
                else:
                    inputs |= {f"{role}/{name}": sha for name, sha in result_digests(manifest).items()}
            elif manifest is not None and manifest.accepted:
                inputs[role] = digest_json(result_digests(manifest))
    if spec.uses_template:
        inputs["template"] = book.template_digest()
    return inputs
