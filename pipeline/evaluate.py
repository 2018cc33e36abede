"""The evaluate step: a trained model against scans that it has and has not seen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.baselines import baseline_fitters
from pipeline.compared import held_out_scans, linear_fitters, read_registration
from pipeline.evaluate_config import EvaluateConfig
from pipeline.keys import subject_of, take_of
from pipeline.scan_regions import read_scan_regions
from registration.mesh import mesh_from_ply
from registration.pictures import to_png
from registration.template import REGIONS, Template
from storage.manifest import Manifest

if TYPE_CHECKING:
    from model.head_model import HeadModel
    from model.observation import HeadFitter
    from pipeline.evaluation import HeadScan
    from pipeline.workspace import Workspace


_SINGLE_VIEW = (
    "Each held-out scan: {points} points of one frontal view, noise {noise:g} mm; identity and expression fitted "
    "together from the mean, starting in the head frame of the scan's registration, with pose refinement. Distances in "
    "mm over what ten cameras around the head see; the face is what lies nearest to the registration's face."
)


def run_evaluate(workspace: Workspace, key: str) -> Manifest:
    """Evaluate a trained model and publish tables and pictures.

    Without held-out subjects the training heads alone are measured, and the figures say so.

    Args:
        workspace: with accepted results of ``train``, ``clean`` and ``register``, and of ``baselines`` where the
            settings name some.
        key: the model's name.

    Raises:
        ConfigError: the model or a result that it needs is missing.
        StorageConflict: an input is damaged.
    """
    from model.head_fitter import NphmFitter  # torch: loaded by the steps that need it alone
    from pipeline.evaluation import (
        REGIONS_COMPARED,
        evaluate_scan,
        evaluate_training_head,
        method_entry,
        summarise,
    )
    from pipeline.evaluation_pictures import scan_sheet, training_sheet
    from pipeline.evaluation_tables import csv_table, latex_table, markdown_table

    inputs = workspace.inputs("evaluate", key)
    config: EvaluateConfig = workspace.config.of_step("evaluate")  # type: ignore[assignment]
    head = load_model(workspace, key)
    template = head.template
    canonical = {s: c for s in head.subjects if (c := workspace.canonical_key(s)) is not None}
    outputs: dict[str, bytes] = {}
    held_out: list[dict[str, Any]] = []
    keys = held_out_scans(workspace, config.most_scans)
    total = len(keys) + len(canonical)
    nphm = NphmFitter(head, config.fit, config.resolution)
    fitters: list[HeadFitter] = [nphm, *baseline_fitters(workspace, key, config)]
    fitters += linear_fitters(workspace, head.subjects, template, config)
    for number, scan_key in enumerate(keys):
        workspace.tell(number, total, f"fit to {scan_key}")
        result = evaluate_scan(
            read_scan(workspace, scan_key, template), fitters, config, workspace.seed("evaluate", scan_key)
        )
        outputs[f"scan_{number:03d}.png"] = to_png(scan_sheet(result))
        held_out.append(
            {
                "key": scan_key,
                "subject": subject_of(scan_key),
                "expression": take_of(scan_key)[0],
                "picture": f"scan_{number:03d}.png",
                "methods": {name: method_entry(method) for name, method in result.methods.items()},
            }
        )
    training: list[dict[str, Any]] = []
    for number, (subject, scan_key) in enumerate(sorted(canonical.items())):
        workspace.tell(len(keys) + number, total, f"mesh {subject}")
        scan = read_scan(workspace, scan_key, template)
        mesh = head.mesh(subject, resolution=config.resolution)
        measured = evaluate_training_head(mesh, scan, config, workspace.seed("evaluate", scan_key))
        outputs[f"train_{number:03d}.png"] = to_png(training_sheet("nphm", measured, scan))
        training.append({"key": scan_key, "picture": f"train_{number:03d}.png"} | method_entry(measured))
    rng = np.random.default_rng(workspace.seed("evaluate", key))
    methods = [fitter.name for fitter in fitters] if held_out else []

    def summary(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        by_method = {name: [(entry["key"], entry["methods"][name]) for entry in entries] for name in methods}
        return {name: summarise(rows, REGIONS_COMPARED, rng) for name, rows in by_method.items()}

    expressions = sorted({entry["expression"] for entry in held_out})
    evaluation: dict[str, Any] = {
        "model": key,
        "protocol": _SINGLE_VIEW.format(points=config.points, noise=config.noise_mm),
        "held_out": held_out,
        "summary": summary(held_out),
        "training": training,
        "training_summary": summarise([(entry["key"], entry) for entry in training], REGIONS_COMPARED, rng),
        "by_expression": {one: summary([e for e in held_out if e["expression"] == one]) for one in expressions},
    }
    outputs["evaluation.json"] = json.dumps(evaluation, indent=1, sort_keys=True, allow_nan=False).encode()
    outputs["table.md"] = markdown_table(evaluation).encode()
    outputs["table.tex"] = latex_table(evaluation).encode()
    outputs["table.csv"] = csv_table(evaluation).encode()
    return workspace.commit("evaluate", key, inputs=inputs, outputs=outputs, figures=_figures(evaluation))


def _figures(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The few numbers that a verdict, a promotion and the report's first page need."""
    figures: dict[str, Any] = {
        "held_out_scans": len(evaluation["held_out"]),
        "held_out_subjects": len({entry["subject"] for entry in evaluation["held_out"]}),
        "training_heads": len(evaluation["training"]),
    }
    for method, summary in evaluation["summary"].items():
        figures[f"{method}_failures"] = summary["failures"]
        for region in ("face", "head"):
            for name in ("point_to_triangle_mm", "chamfer_l1_mm", "normal_consistency", "f_score_1mm"):
                if name in summary[region]:
                    figures[f"{method}_{region}_{name}"] = summary[region][name]["mean"]
    for region in ("face", "head"):
        of_region = evaluation["training_summary"].get(region, {})
        for short in ("median", "p95"):
            if f"accuracy_{short}_mm" in of_region:
                figures[f"train_{region}_{short}_mm"] = of_region[f"accuracy_{short}_mm"]["mean"]
    return figures


def load_model(workspace: Workspace, name: str) -> HeadModel:
    """An accepted model of the workspace."""
    from model.head_model import HeadModel

    manifest = workspace.accepted("train", name)
    names = ("model.safetensors", "codes.safetensors", "config.json", "template.npz")
    return HeadModel.from_files({file: workspace.read(manifest, file) for file in names}, where=f"models/{name}")


def read_scan(workspace: Workspace, key: str, template: Template) -> HeadScan:
    """A clean, registered scan as it is evaluated on, in the head frame."""
    from pipeline.evaluation import HeadScan

    registration, frame = read_registration(workspace, key)
    clean = mesh_from_ply(workspace.read(workspace.accepted("clean", key), "mesh.ply"), f"clean/{key}/mesh.ply")
    T_head_from_world = np.linalg.inv(np.array(frame["T_world_from_head"], np.float64))
    plane = np.array(frame["throat_plane"], np.float64)
    regions = read_scan_regions(workspace, key, len(clean.vertices))
    hair = regions == REGIONS.index("hair")
    return HeadScan(key, clean.transformed(T_head_from_world), registration, template.face_mask, plane, hair)
