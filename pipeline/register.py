"""The register step: the template on every clean scan, a person's canonical scan first, the others from that."""

from __future__ import annotations

import io
import json

import numpy as np
from numpy.typing import NDArray

from pipeline.keys import subject_of
from pipeline.register_config import RegisterConfig
from pipeline.workspace import Workspace
from registration.landmarks import Landmarks, landmarks_from_json
from registration.mesh import Mesh, mesh_from_ply, mesh_to_ply
from registration.pictures import to_png
from registration.register_head import Registration, register_canonical, register_expression
from registration.register_pictures import overlay_sheet
from registration.template import Template
from storage.errors import ScanRejected, one_line
from storage.manifest import Manifest


def register_scan(
    clean: Mesh,
    canonical: Registration | None,
    template: Template,
    config: RegisterConfig,
    seed: int = 0,
    start: NDArray[np.floating] | None = None,
    threads: int = 1,
    landmarks: Landmarks | None = None,
) -> Registration:
    """Register one scan: from the template, or from the person's canonical registration where there is one.

    Args:
        clean: world frame, mm.
        canonical: the person's, or None where this scan is the canonical one.
        template: the head to register.
        config: of the step.
        seed: of the search for the head, which happens only where ``start`` leads to none.
        start: (4, 4) ``T_world_from_head`` where cleaning found the head.
        threads: for queries of the scan; the result does not depend on it.
        landmarks: of the scan, world frame, mm.

    Raises:
        ScanRejected: no head is found, or its size contradicts the told unit.
    """
    lacks = (config.misfit_mm, config.misfit_range_mm)
    if canonical is None:
        return register_canonical(clean, template, *lacks, seed, threads, landmarks, start)
    return register_expression(clean, canonical, template, *lacks, seed, threads, landmarks, start)


def registration_to_files(registration: Registration, template: Template) -> dict[str, bytes]:
    """``mesh.ply``, ``frame.json`` and ``scan_regions.npz`` of a registration.

    The last holds ``region`` (v,) uint8, an index into ``REGIONS`` for each vertex of the clean scan's ``mesh.ply``.
    """
    mesh = Mesh.of(
        registration.vertices_head_mm,
        template.mesh.faces,
        observed=registration.observed.astype(np.uint8),
        residual_mm=registration.residual_mm.astype(np.float32),
    )
    frame = {
        "T_world_from_head": registration.T_world_from_head.tolist(),
        "throat_plane": registration.throat_plane.tolist(),
        "expression": registration.expression.tolist(),
    }
    regions = io.BytesIO()
    np.savez_compressed(regions, region=registration.scan_region)
    return {
        "mesh.ply": mesh_to_ply(mesh),
        "frame.json": json.dumps(frame, indent=1).encode(),
        "scan_regions.npz": regions.getvalue(),
    }


def registration_from_files(mesh_ply: bytes, frame_json: bytes, where: str) -> Registration:
    """Read a registration back, without the regions of its scan."""
    mesh, frame = mesh_from_ply(mesh_ply, where), json.loads(frame_json)
    return Registration(
        mesh.vertices.astype(np.float64),
        np.array(frame["T_world_from_head"], np.float64),
        mesh.attributes["residual_mm"].astype(np.float64),
        mesh.attributes["observed"] > 0,
        np.array(frame["throat_plane"], np.float64),
        np.array(frame["expression"], np.float64),
    )


def run_register(workspace: Workspace, key: str) -> Manifest:
    """Register one clean scan of a workspace and publish it.

    Raises:
        ScanRejected: it can't be registered, or its subject has no accepted canonical registration.
        StorageConflict: the clean scan was changed since.
    """
    inputs = workspace.inputs("register", key)
    config: RegisterConfig = workspace.config.of_step("register")  # type: ignore[assignment]
    template = workspace.template()
    cleaned = workspace.accepted("clean", key)
    clean = mesh_from_ply(workspace.read(cleaned, "mesh.ply"), f"clean/{key}/mesh.ply")
    start = np.array(cleaned.extra("T_world_from_head"), np.float64)
    landmarks = None
    if "landmarks.json" in cleaned.outputs:
        landmarks = landmarks_from_json(workspace.read(cleaned, "landmarks.json"), f"clean/{key}/landmarks.json")
    seed = workspace.seed("register", key)
    found = register_scan(clean, _canonical(workspace, key), template, config, seed, start, landmarks=landmarks)
    return workspace.commit(
        "register",
        key,
        inputs=inputs,
        outputs=registration_to_files(found, template) | {"overlay.png": to_png(overlay_sheet(clean, found, template))},
        figures=found.figures,
        extra={"T_world_from_head": found.T_world_from_head, "throat_plane": found.throat_plane},
    )


def _canonical(workspace: Workspace, key: str) -> Registration | None:
    """The subject's canonical registration, or None where this scan is the canonical one."""
    canonical_key = workspace.canonical_key(subject_of(key))
    if canonical_key == key:
        return None
    manifest = None if canonical_key is None else workspace.manifest("register", canonical_key)
    if manifest is None or not manifest.accepted:
        named = workspace.accepted("ingest", key).extra("canonical_expression")
        why = f"canonical scan {canonical_key or f'{subject_of(key)}/{named}'} is missing or rejected"
        raise ScanRejected(one_line("has no head to start from", key, why, "capture the canonical expression again"))
    return registration_from_files(
        workspace.read(manifest, "mesh.ply"), workspace.read(manifest, "frame.json"), f"registrations/{canonical_key}"
    )
