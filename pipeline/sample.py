"""The sample step: from a registered scan to the training samples in its Zarr group."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.deformation_samples import sample_deformation
from pipeline.identity_samples import sample_identity
from pipeline.sample_config import STEP_VERSION, SampleConfig
from pipeline.sample_format import DECODERS, SAMPLES_ROOT, encode_samples, quantise_samples
from pipeline.sample_pictures import picture_deformation, picture_identity
from registration.mesh import Mesh, mesh_from_ply
from registration.pictures import to_png
from storage.digest import digest_bytes
from storage.errors import ConfigError, ScanRejected, one_line
from storage.manifest import Manifest, Output
from storage.shards import group_metadata
from storage.store import Store

if TYPE_CHECKING:
    from pipeline.workspace import Workspace


def run_sample(workspace: Workspace, key: str) -> Manifest:
    """Sample one scan and publish its group and manifest.

    A canonical scan gets identity samples; every scan gets deformation pairs, the canonical one such that do not move.

    Raises:
        ConfigError: an input was not computed.
        ScanRejected: the scan can't be sampled.
        StorageConflict: an input is damaged.
    """
    inputs = workspace.inputs("sample", key)
    config: SampleConfig = workspace.config.of_step("sample")  # type: ignore[assignment]
    seed = workspace.seed("sample", key)
    template = workspace.template()
    subject = key.partition("/")[0]
    canonical_key = workspace.canonical_key(subject)
    if canonical_key is None:
        raise ConfigError(one_line("has no canonical scan", subject, "", "take one in"))
    posed, _ = _registration(workspace, key)
    canonical, frame = _registration(workspace, canonical_key)
    plane = np.array(frame["throat_plane"])
    motion = sample_deformation(canonical, posed, template, plane, config.deformation, seed)
    if len(motion.samples.canonical) == 0:
        raise ScanRejected(one_line("gives no pairs", key, "all lie below the throat plane", "check its registration"))
    stored = quantise_samples(motion.samples, key)
    figures = dict(motion.figures)
    pictures = {"pairs.png": to_png(picture_deformation(motion.samples))}
    if key == canonical_key:
        cleaned = workspace.accepted("clean", key)
        scan, companion = (
            mesh_from_ply(workspace.read(cleaned, name), f"{key}/{name}") for name in ("mesh.ply", "watertight.ply")
        )
        T_world_from_head = np.array(frame["T_world_from_head"])
        shape = sample_identity(
            scan, companion, canonical, template, plane, T_world_from_head, config.identity, seed + 1
        )
        if not (len(shape.samples.surface) and len(shape.samples.near) and len(shape.samples.space)):
            why = "nothing of the scan lies above the throat plane"
            raise ScanRejected(one_line("gives no identity samples", key, why, "check its registration"))
        stored |= quantise_samples(shape.samples, key)
        figures |= shape.figures
        pictures["distances.png"] = to_png(picture_identity(shape.samples))
    rows = {part: len(stored[columns[0]]) for part, (columns, _) in DECODERS.items() if columns[0] in stored}
    attributes = {
        "key": key,
        "canonical_key": canonical_key,
        "frame": "head",
        "units": "mm",
        "rows": rows,
        "template_sha256": workspace.template_digest(),
        "config_sha256": workspace.config.digest_of_step("sample"),
        "step_version": STEP_VERSION,
    }
    objects = encode_samples(stored, attributes)
    figures["stored_bytes"] = sum(len(data) for data in objects.values())
    workspace.store.delete(workspace.steps["sample"].manifest_path(key))
    group = _put_group(workspace.store, key, objects)
    outputs: dict[str, bytes | Output] = {**group, **pictures}
    return workspace.commit(
        "sample",
        key,
        inputs=inputs,
        outputs=outputs,
        figures=figures,
        extra={"group": f"{SAMPLES_ROOT}/{key}", "rows": rows},
    )


def _registration(workspace: Workspace, key: str) -> tuple[Mesh, dict[str, Any]]:
    registered = workspace.accepted("register", key)
    mesh = mesh_from_ply(workspace.read(registered, "mesh.ply"), f"{key}/mesh.ply")
    frame: dict[str, Any] = json.loads(workspace.read(registered, "frame.json"))
    return mesh, frame


def _put_group(store: Store, key: str, objects: Mapping[str, bytes]) -> dict[str, Output]:
    """Put a scan's group, its own metadata last, so that plain Zarr readers too see it whole or not at all."""
    folder = f"{SAMPLES_ROOT}/{key}"
    store.delete(f"{folder}/zarr.json")
    for stray in list(store.list(folder)):
        if stray.removeprefix(f"{folder}/") not in objects:
            store.delete(stray)
    shared = {"frame": "head", "units": "mm"}
    for parent in (SAMPLES_ROOT, folder.rpartition("/")[0]):  # the same bytes whichever scan writes them
        if not store.exists(f"{parent}/zarr.json"):
            store.put(f"{parent}/zarr.json", group_metadata(shared))
    made = {}
    for path in sorted(objects, key=lambda path: (path == "zarr.json", path)):
        store.put(f"{folder}/{path}", objects[path])
        made[path] = Output(path=f"{folder}/{path}", bytes=len(objects[path]), sha256=digest_bytes(objects[path]))
    return made
