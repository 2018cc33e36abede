"""The register step: the template on every clean scan, a person's canonical scan first, the others from that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from pipeline.keys import subject_of
from pipeline.workspace import Workspace
from registration.mesh import Mesh, mesh_from_ply, mesh_to_ply
from registration.pictures import to_png
from registration.register_head import Registration, register_canonical, register_expression
from registration.register_pictures import overlay_sheet
from registration.template import Template
from storage.errors import ScanRejected, one_line
from storage.manifest import Manifest

STEP_VERSION = 1


class RegisterConfig(BaseModel):
    """How the template is brought onto a scan."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    misfit_mm: float = Field(default=0.8, gt=0, description="what the template's linear modes lack of a person, mm")
    misfit_range_mm: float = Field(default=30.0, gt=0, description="distance over which that varies, mm")


class RegisterThresholds(BaseModel):
    """What a registration must reach."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_face_median_mm: float = Field(default=0.8, gt=0, description="median distance of the face to the scan, mm")
    max_face_p95_mm: float = Field(default=2.0, gt=0, description="95 % of the same, mm")
    min_face_observed: float = Field(default=0.5, ge=0, le=1, description="share of the face that the scan shows")
    max_fit_cost: float = Field(default=0.45, gt=0, le=1, description="loss of the linear fit; 1 is no match at all")
    max_flipped_share: float = Field(default=0.02, ge=0, le=1, description="face triangles turned over")
    max_stretched_share: float = Field(default=0.05, ge=0, le=1, description="face edges over 3 times or under a third")
    max_skull_mm: float = Field(
        default=1.5, gt=0, description="median distance of the canonical skull to another expression's scan, mm"
    )


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


def judge_register(figures: Mapping[str, Any], thresholds: RegisterThresholds) -> list[str]:
    """What speaks against a registration; empty if nothing does."""
    reasons = []
    median, p95 = figures["face_residual_median_mm"], figures["face_residual_p95_mm"]
    if figures["face_observed"] < thresholds.min_face_observed:
        share, limit = figures["face_observed"], thresholds.min_face_observed
        reasons.append(f"the scan shows {share:.0%} of the face, at least {limit:.0%} are wanted")
    if median is not None and median > thresholds.max_face_median_mm:
        reasons.append(f"the face lies {median:.2f} mm off in the median, at most {thresholds.max_face_median_mm:g} mm")
    if p95 is not None and p95 > thresholds.max_face_p95_mm:
        reasons.append(f"5 % of the face lie over {p95:.2f} mm off, at most {thresholds.max_face_p95_mm:g} mm")
    for name, limit, what in (
        ("fit_cost", thresholds.max_fit_cost, "the linear fit misses the scan"),
        ("flipped_share", thresholds.max_flipped_share, "triangles of the face are turned over"),
        ("stretched_share", thresholds.max_stretched_share, "edges of the face are stretched or crushed"),
    ):
        if figures[name] > limit:
            reasons.append(f"{what}: {figures[name]:.1%}, at most {limit:.1%}")
    skull = figures.get("skull_disagreement_mm")
    if skull is not None and skull > thresholds.max_skull_mm:
        limit = thresholds.max_skull_mm
        reasons.append(f"the skull is {skull:.2f} mm off the canonical scan's, at most {limit:g} mm: another person?")
    return reasons


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
