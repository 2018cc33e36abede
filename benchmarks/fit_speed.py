"""Time from a view of a person who was not trained on to a complete head, beside the paper's own fit.

Both fit the same 2,500 points of one view with the same model of the paper's sizes. Ours is timed whole: codes, pose
and the mesh. Of the plain one are measured: the iterations until half of the points lie as near to its surface as to
ours, counted with our evaluation of the same function; the seconds of ten such iterations by the plain evaluation; and
the seconds a point of the plain evaluation, for its dense mesh. Its time is extrapolated from these. Where its thousand
iterations do not come as near, `fit_plain_reached` is 0 and the ratio is a lower bound.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.field_data import kept
from benchmarks.fit_meshing import PLAIN_POINTS, lattice_points, plain_seconds_a_point
from benchmarks.paper_head import HELD_OUT, QUICK_HELD_OUT, paper_head, people
from benchmarks.plain_field import PlainDeformation, PlainIdentity
from benchmarks.plain_fit import STEPS, PlainFit
from benchmarks.timing import shown
from model import HeadModel
from model.fit_config import FitConfig
from model.head_fields import HeadFields
from model.head_fitter import NphmFitter
from model.observation import Observation
from model.threads import fixed_threads
from model.units import to_mm, to_units
from pipeline.workspace import Workspace
from registration.mesh import mesh_from_ply, transform_points
from registration.rendered_points import single_view_cloud

EXPRESSION = "smile"
POINTS = 2500
RESOLUTION, QUICK_RESOLUTION = 256, 64
TIMED = 10
LOOK_EVERY = 10
THREADS = 2


def speed_rows(work: Path, quick: bool) -> dict[str, float]:
    """Seconds of both fits, and their ratio."""
    head, (workspace, _) = paper_head(work, quick), people(work, quick)
    key = f"{(QUICK_HELD_OUT if quick else HELD_OUT)[0]}/{EXPRESSION}"
    view = one_view(workspace, head, key)
    resolution = QUICK_RESOLUTION if quick else RESOLUTION
    with fixed_threads(THREADS):
        start = time.perf_counter()
        fitter = NphmFitter(head, FitConfig(points=POINTS, threads=THREADS))
        codes = fitter.codes([view], seed=0)
        mesh = head.mesh(codes.identity, resolution=resolution)
        head.pose(mesh.vertices, codes.identity, codes.expressions[0])
        ours = time.perf_counter() - start
        T_head_from_told = np.linalg.inv(codes.T_told_from_head[0])
        posed = units(transform_points(T_head_from_told, view.points_mm))
        z_id, z_ex = (torch.as_tensor(code)[None] for code in (codes.identity, codes.expressions[0]))
        goal = residual_mm(head, posed, z_id, z_ex)
        name = f"fit-plain-{head.template.digest()[:8]}-{len(head.subjects)}-{key.replace('/', '-')}-{goal:.4f}.json"
        row = work / "rows" / name
        counted = kept(row, lambda: iterations(head, units(view.points_mm), goal, 20 if quick else STEPS, row))
        each = seconds_an_iteration(head, units(view.points_mm))
        points = lattice_points(head, resolution)
        mesh_seconds = plain_seconds_a_point(head, head.subjects[0], points.drawn(PLAIN_POINTS)) * points.count
    plain = counted["iterations"] * each + mesh_seconds
    return shown(
        {
            "fit_paper_seconds": ours,
            "fit_paper_residual_mm": goal,
            "fit_plain_residual_mm": counted["residual_mm"],
            "fit_plain_reached": float(counted["residual_mm"] <= goal),
            "fit_plain_iterations": counted["iterations"],
            "fit_plain_iteration_seconds": each,
            "fit_plain_mesh_seconds": mesh_seconds,
            "fit_speed_plain": plain / ours,
        }
    )


def one_view(workspace: Workspace, head: HeadModel, key: str) -> Observation:
    """What one camera in front of a scan sees, in the head frame that registration found."""
    scan = mesh_from_ply(workspace.read(workspace.accepted("clean", key), "mesh.ply"))
    T_world_from_head = np.array(workspace.accepted("register", key).extra("T_world_from_head"))
    in_head = scan.transformed(np.linalg.inv(T_world_from_head))
    cloud = single_view_cloud(in_head, head.throat_plane, POINTS, np.random.default_rng(0), where=key)
    return Observation(key, np.asarray(cloud.points_mm, np.float64))


def units(points_mm: np.ndarray) -> Tensor:
    """Points as the fields take them."""
    return to_units(torch.as_tensor(np.ascontiguousarray(points_mm, np.float32)))


@torch.no_grad()
def residual_mm(head: HeadModel, posed: Tensor, z_id: Tensor, z_ex: Tensor) -> float:
    """Median distance of posed points from the surface; a point without a canonical place is infinitely far."""
    bound = HeadFields(head.identity_field, head.deformation_field).bind(z_id, z_ex)
    places = bound.canonical(posed)
    distance = to_mm(bound.distance(posed, places.place).abs())
    return float(torch.where(places.found, distance, torch.inf).median())


def iterations(head: HeadModel, posed: Tensor, goal_mm: float, most: int, row: Path) -> dict[str, float]:
    """Steps of the plain fit until its residual is the goal, or all of them; counted with our evaluation.

    What was reached is kept beside the row, so that a count that was cut off goes on.
    """
    fit = plain_fit(head, head.identity_field, head.deformation_field, posed, quick=True)
    kept_state = row.with_suffix(".safetensors")
    if kept_state.exists():
        fit.restore(load_file(kept_state))
    reached = np.inf
    while fit.done < most and reached > goal_mm:
        fit.step()
        if fit.done % LOOK_EVERY == 0:
            reached = residual_mm(head, posed, fit.z_id.detach(), fit.z_ex.detach())
            print(f"  plain fit, {fit.done} iterations: {reached:.3f} mm, ours {goal_mm:.3f}", flush=True)
            kept_state.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: value.contiguous() for name, value in fit.state().items()}, kept_state)
    return {"iterations": fit.done, "residual_mm": reached}


def seconds_an_iteration(head: HeadModel, posed: Tensor) -> float:
    """Mean of ten steps by the plain evaluation, after one that warms up."""
    fit = plain_fit(head, PlainIdentity(head.identity_field), PlainDeformation(head.deformation_field), posed)
    fit.step()
    start = time.perf_counter()
    for _ in range(TIMED):
        fit.step()
    return (time.perf_counter() - start) / TIMED


def plain_fit(
    head: HeadModel, identity: torch.nn.Module, deformation: torch.nn.Module, posed: Tensor, quick: bool = False
) -> PlainFit:
    """The plain fit with given fields, which it does not train."""
    identity.requires_grad_(False)
    deformation.requires_grad_(False)
    size = head.config.deformation.expression_dim
    return PlainFit(identity, deformation, head.identity_field.layout, size, posed, quick)
