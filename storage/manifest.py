"""Manifests: what a step made, from what, and whether it may be used. A manifest written last is the commit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storage.digest import digest_bytes, digest_json
from storage.errors import StorageConflict, one_line
from storage.store import Store

SCHEMA_VERSION = 1
MAX_MANIFEST_BYTES = 64 * 1024 * 1024


class Output(BaseModel):
    """One stored object that a manifest vouches for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(description="where it lies in the store")
    bytes: int = Field(ge=0, description="its size")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="digest of its content")


def describe(path: str, data: bytes) -> Output:
    """The record of ``data`` as the object at ``path``."""
    return Output(path=path, bytes=len(data), sha256=digest_bytes(data))


class Judgement(BaseModel):
    """A person's word over a verdict."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    verdict: Literal["accept", "reject"]
    reason: str
    by: str = Field(description="who said so")


class Manifest(BaseModel):
    """The record of one finished step for one key, kept as its ``report.json``.

    Further fields of a step (such as ``T_world_from_head``) stand beside these. Dates, hosts and seconds never do:
    the same inputs give the same bytes.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    schema_version: Literal[1] = 1
    step: str
    key: str
    step_version: int
    config_digest: str
    inputs: dict[str, str] = Field(description="digest of each input by name")
    outputs: dict[str, Output] = Field(default={}, description="what was made, by name")
    figures: dict[str, Any] = Field(default={}, description="quality figures, units in their names")
    faults: list[str] = Field(default=[], description="what the step itself raised against the scan")
    verdict: Literal["accepted", "rejected"]
    reasons: list[str] = Field(default=[], description="why it was rejected, or would have been without a judgement")
    judgement: Judgement | None = None

    @property
    def accepted(self) -> bool:
        """Whether what follows may use the outputs."""
        return self.verdict == "accepted"

    def extra(self, name: str) -> Any:
        """A further field of the step.

        Raises:
            KeyError: the manifest has no such field.
        """
        return (self.model_extra or {})[name]

    def outputs_digest(self) -> str:
        """One digest over the outputs' contents and the verdict: all that later steps depend on."""
        return digest_json([self.verdict, {name: output.sha256 for name, output in self.outputs.items()}])

    def to_bytes(self) -> bytes:
        """Encode as JSON. Equal manifests, same bytes."""
        text = self.model_dump_json(indent=1, exclude_none=True)
        return text.encode() + b"\n"


def settle(faults: Sequence[str], reasons: Sequence[str], judgement: Judgement | None, made: bool) -> dict[str, Any]:
    """Derive the verdict: a person's word over the thresholds' over the step's own faults.

    Args:
        faults: what the step itself raised.
        reasons: what the thresholds say against the figures.
        judgement: a person's word, if there is one.
        made: whether there are outputs; without any, nothing can be accepted.

    Returns:
        The fields ``verdict``, ``reasons`` and ``judgement`` of a manifest.
    """
    said = [*faults, *reasons]
    accepted = not said
    if judgement is not None and judgement.verdict == "reject":
        accepted = False
        said.append(f"rejected by {judgement.by}: {judgement.reason}")
    elif judgement is not None and said:
        accepted = made
        if not made:
            said.append(f"accepted by {judgement.by}, but the step made nothing that could be used")
    return {"verdict": "accepted" if accepted else "rejected", "reasons": said, "judgement": judgement}


def plain(value: Any) -> Any:
    """Turn figures into what JSON can hold: NumPy values become plain ones, numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def folder_of(path: str) -> str:
    """The folder of a store path."""
    return path.rsplit("/", 1)[0]


def commit(
    store: Store, path: str, manifest: Manifest, outputs: Mapping[str, bytes | Output], own_folder: bool = True
) -> Manifest:
    """Publish a step's result: withdraw the old manifest, put the outputs, put the new manifest last.

    Args:
        path: where the manifest lies; outputs given as bytes lie beside it under their names.
        manifest: the record without its outputs.
        outputs: bytes to put, or an ``Output`` that lies in the store already.
        own_folder: nobody else writes beside the manifest, so what is no output is removed.

    Returns:
        The manifest as it was written, with its outputs.
    """
    folder = folder_of(path)
    made = {
        name: given if isinstance(given, Output) else describe(f"{folder}/{name}", given)
        for name, given in sorted(outputs.items())
    }
    store.delete(path)
    if own_folder:
        kept = {output.path for output in made.values()}
        for stray in list(store.list(folder)):
            if stray not in kept:
                store.delete(stray)
    for name, given in sorted(outputs.items()):
        if not isinstance(given, Output):
            store.put(made[name].path, given)
    finished = manifest.model_copy(update={"outputs": made})
    store.put(path, finished.to_bytes())
    return finished


def withdraw(store: Store, path: str, own_folder: bool = True) -> None:
    """Take a result back: the manifest first, then what lies beside it."""
    store.delete(path)
    if own_folder:
        for stray in list(store.list(folder_of(path))):
            store.delete(stray)


def read_manifest(store: Store, path: str) -> Manifest | None:
    """Read a manifest, or None where there is none.

    Raises:
        StorageConflict: it can't be read, or was written by another version of the project.
    """
    try:
        data = store.get(path)
    except FileNotFoundError:
        return None
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        why = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        raise StorageConflict(one_line("is no manifest", path, why, "delete it and run again")) from error


def read_output(store: Store, manifest: Manifest, name: str) -> bytes:
    """Read an output and hold it against its digest.

    Raises:
        StorageConflict: the manifest names no such output, or the object is missing or differs from its digest.
    """
    output = manifest.outputs.get(name)
    where = f"{manifest.step} of {manifest.key}"
    if output is None:
        why = f"it has {', '.join(manifest.outputs) or 'none'}"
        raise StorageConflict(one_line(f"has no output {name}", where, why, "run the step again"))
    try:
        data = store.get(output.path)
    except FileNotFoundError:
        raise StorageConflict(one_line("is missing", output.path, where, "run the step again")) from None
    if len(data) != output.bytes or digest_bytes(data) != output.sha256:
        why = f"{len(data)} bytes that differ from the digest in its manifest"
        raise StorageConflict(one_line("was changed after it was made", output.path, why, "delete it and run again"))
    return data
