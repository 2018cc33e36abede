"""Manifests: what a step made, from what, and whether it may be used. A manifest written last is the commit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storage.digest import digest_bytes, digest_json
from storage.errors import StorageConflict, one_line
from storage.frozen import Frozen, first_fault
from storage.store import Stat, Store

SCHEMA_VERSION = 1


class Output(Frozen):
    """One stored object that a manifest vouches for."""

    path: str = Field(description="where it lies in the store")
    bytes: int = Field(ge=0, description="its size")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="digest of its content")


def describe(path: str, data: bytes) -> Output:
    """The record of ``data`` as the object at ``path``."""
    return Output(path=path, bytes=len(data), sha256=digest_bytes(data))


class Judgement(Frozen):
    """A person's word over a verdict."""

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
    config: dict[str, Any] = Field(default={}, description="the step's resolved configuration, thresholds left out")
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
        text = self.model_dump_json(indent=1)
        return text.encode() + b"\n"


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
        for stray in store.list(folder):
            if stray not in kept:
                store.delete(stray)
    for name, given in sorted(outputs.items()):
        if not isinstance(given, Output):
            store.put(made[name].path, given)
    finished = manifest.model_copy(update={"outputs": made})
    store.put(path, finished.to_bytes())
    return finished


def rewrite(store: Store, path: str, manifest: Manifest) -> None:
    """Publish another verdict over outputs that stay as they are."""
    store.put(path, manifest.to_bytes())


def withdraw(store: Store, path: str, own_folder: bool = True) -> None:
    """Take a result back: the manifest first, then its outputs wherever they lie, and what lies beside it."""
    manifest = read_manifest(store, path)
    store.delete(path)
    for output in manifest.outputs.values() if manifest is not None else ():
        store.delete(output.path)
    if own_folder:
        for stray in store.list(folder_of(path)):
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
    return parse_manifest(data, path)


def parse_manifest(data: bytes, path: str) -> Manifest:
    """Decode a manifest.

    Raises:
        StorageConflict: it can't be read, or was written by another version of the project.
    """
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise StorageConflict(
            one_line("is no manifest", path, first_fault(error), "delete it and run again")
        ) from error


def parse_judgement(data: bytes, path: str) -> Judgement:
    """Decode a person's word.

    Raises:
        StorageConflict: it can't be read.
    """
    try:
        return Judgement.model_validate_json(data)
    except ValidationError as error:
        remedy = "say it anew with 'nphm judge'"
        raise StorageConflict(one_line("is no judgement", path, first_fault(error), remedy)) from error


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


def find_damage(
    store: Store, manifest: Manifest, path: str, stats: Mapping[str, Stat] | None = None, every_byte: bool = False
) -> str | None:
    """Tell what is wrong with a result's outputs, at the cost of a look at each.

    An output of the right size that was last written before its manifest is taken as it is; one written later is read
    and held against its digest. Whoever reads an output checks its digest in any case.

    Args:
        path: where the manifest lies.
        stats: what is known of the objects in the store already.
        every_byte: read all outputs, for a disk may lose what nobody has written to.

    Returns:
        What is wrong, in words that name the output's path, or None.
    """
    known = stats or {}
    committed = known.get(path) or store.stat(path)
    to_read: list[Output] = []
    for output in manifest.outputs.values():
        found = known.get(output.path) or store.stat(output.path)
        if found is None:
            return f"{output.path} is missing"
        if found.bytes != output.bytes:
            return f"{output.path} was changed"
        if every_byte or committed is None or found.modified_ns > committed.modified_ns:
            to_read.append(output)
    for output, data in zip(to_read, store.get_many(output.path for output in to_read), strict=True):
        if data is None:
            return f"{output.path} is missing"
        if digest_bytes(data) != output.sha256:
            return f"{output.path} was changed"
    return None
