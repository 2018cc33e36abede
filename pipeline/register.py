"""The register step: the template on every clean scan, a person's canonical scan first, the others from that."""

from __future__ import annotations

import json

import numpy as np

from pipeline.keys import subject_of
from pipeline.register_config import RegisterConfig
from pipeline.workspace import Workspace
from registration.mesh import Mesh, mesh_from_ply, mesh_to_ply
from registration.pictures import to_png
from registration.register_head import Registration, register_canonical, register_expression
from registration.register_pictures import overlay_sheet
from registration.template import Template
from storage.errors import ScanRejected, one_line
from storage.manifest import Manifest


def register_scan(
    clean: Mesh, canonical: Registration | None, template: Template, config: RegisterConfig, seed: int = 0
) -> Registration:
    """Register one scan: from the template, or from the person's canonical registration where there is one.

    Raises:
        ScanRejected: no head is found, or its size contradicts the told unit.
    """
    if canonical is None:
        return register_canonical(clean, template, config.misfit_mm, config.misfit_range_mm, seed)
    return register_expression(clean, canonical, template, config.misfit_mm, config.misfit_range_mm, seed)


def registration_to_files(registration: Registration, template: Template) -> dict[str, bytes]:
    """``mesh.ply`` and ``frame.json`` of a registration."""
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
    return {"mesh.ply": mesh_to_ply(mesh), "frame.json": json.dumps(frame, indent=1).encode()}


def registration_from_files(mesh_ply: bytes, frame_json: bytes, where: str) -> Registration:
    """Read a registration back."""
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
    clean = mesh_from_ply(workspace.read(workspace.accepted("clean", key), "mesh.ply"), f"clean/{key}/mesh.ply")
    canonical = _canonical(workspace, key)
    found = register_scan(clean, canonical, template, config, workspace.seed("register", key))
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
        why = f"canonical scan {canonical_key} is missing or rejected"
        raise ScanRejected(one_line("has no head to start from", key, why, "capture the canonical expression again"))
    return registration_from_files(
        workspace.read(manifest, "mesh.ply"), workspace.read(manifest, "frame.json"), f"registrations/{canonical_key}"
    )
