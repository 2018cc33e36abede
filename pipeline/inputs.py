"""What a step's result depends on, derived from the manifests alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

from pipeline.keys import subject_of, take_of
from pipeline.stepspec import Need, StepSpec
from storage.digest import digest_json
from storage.manifest import Judgement, Manifest

if TYPE_CHECKING:
    from pipeline.config import PipelineConfig


class Book(Protocol):
    """The manifests and settings of a workspace, read from wherever."""

    config: PipelineConfig
    steps: Mapping[str, StepSpec]

    def manifest(self, step: str, key: str) -> Manifest | None:
        """The manifest of a step's result, or None."""

    def scans(self) -> Iterable[str]:
        """The keys of all scans taken in, sorted."""

    def scans_of(self, subject: str) -> Iterable[str]:
        """The keys of a subject's scans, sorted."""

    def judgement(self, key: str) -> Judgement | None:
        """A person's word over a scan, or None."""

    def split(self, subject: str) -> str:
        """``train`` or ``held_out``."""

    def template_digest(self) -> str:
        """Digest of the template."""

    def damage(self, manifest: Manifest) -> str | None:
        """What is wrong with a result's outputs as they lie in the store, or None."""


def canonical_key(book: Book, subject: str) -> str | None:
    """The scan that serves as a subject's canonical one.

    This is the expression that the session names, or its first retake (EXPRESSION@2 and so on), should the takes before
    have been rejected at ingest or cleaning, or by a person.

    Returns:
        The key, or None where no such scan was taken in.
    """
    takes: list[tuple[int, str]] = []
    for key in book.scans_of(subject):
        taken = book.manifest("ingest", key)
        name, number = take_of(key)
        if taken is not None and name == taken.extra("canonical_expression"):
            takes.append((number, key))
    takes.sort()
    for _, key in takes:
        early = (book.manifest(step, key) for step in ("ingest", "clean"))
        word = book.judgement(key)
        refused = word is not None and word.verdict == "reject"
        if not refused and all(manifest is None or manifest.accepted for manifest in early):
            return key
    return takes[0][1] if takes else None


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
                if (manifest is None and not need.optional) or (manifest is not None and not manifest.accepted):
                    inputs[role] = "missing" if manifest is None else "rejected"
                if manifest is not None and need.takes(manifest):
                    inputs |= {f"{role}/{name}": sha for name, sha in result_digests(manifest).items()}
            elif manifest is not None and need.takes(manifest):
                inputs[role] = digest_json([manifest.verdict, result_digests(manifest)])
    if spec.uses_template:
        inputs["template"] = book.template_digest()
    return inputs


def model_name(book: Book) -> str:
    """The name under which the model of this data and configuration is kept.

    The configured one, or the preset with a digest of all that training depends on.
    """
    if book.config.model_name is not None:
        return book.config.model_name
    spec = book.steps["train"]
    told = [expected_inputs(book, spec, ""), book.config.digest_of_step("train"), spec.version]
    return f"{book.config.preset}-{digest_json(told)[:8]}"
