"""The report step: gather what the steps left behind, and publish it as one page."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pipeline.drift import drift
from pipeline.evaluation_tables import protocol_cells
from pipeline.keys import subject_of, subjects_of
from pipeline.rejected import list_rejected
from pipeline.report_page import (
    Evaluated,
    Pictured,
    ProtocolTable,
    Rejection,
    ReportInputs,
    ScanFigures,
    StepCount,
    Subject,
    build_report,
)
from pipeline.snapshot import Snapshot, take_snapshot
from pipeline.workspace import Workspace
from storage.manifest import Manifest

MOST_SUBJECTS = 24
"""Subjects that are pictured; a page with all of a large data set could not be opened."""

_METHOD_NAMES = {
    "nphm": "ours",
    "npm": "NPM",
    "npm_4x": "NPM, four times the steps",
    "imface": "ImFace, face only",
    "pca": "PCA",
    "bfm": "PCA of identity alone, like BFM",
    "flame": "PCA with a jaw, like FLAME",
}
_OVERLAY = "the template in the scan; error from blue to red, grey where nothing was seen"
_STAGES = (
    ("clean", "sheet.png", "Captured and cleaned", "what the views saw, and the fused mesh"),
    ("register", "overlay.png", "Registered", _OVERLAY),
    ("sample", "distances.png", "Sampled", "signed distances from blue (inside) to red, and regions"),
)
_FIT = "points of one view, the scan, and each method's head with its error"
_TRAINED = "the scan, the head from its code, and its error"


def run_report(workspace: Workspace, key: str) -> Manifest:
    """Build the report on a model and publish it as ``index.html``.

    Raises:
        StorageConflict: an input is damaged.
    """
    inputs = workspace.inputs("report", key)
    told = collect_report(workspace, key)
    page = build_report(told)
    figures = {"page_bytes": len(page), "subjects_pictured": len(told.subjects)}
    return workspace.commit("report", key, inputs=inputs, outputs={"index.html": page}, figures=figures)


def collect_report(workspace: Workspace, model_name: str) -> ReportInputs:
    """Read manifests, pictures, curve and evaluation; what was not computed is left out of the page.

    Raises:
        StorageConflict: an input is damaged.
    """
    book = take_snapshot(workspace)
    trained, evaluated = (book.manifest(step, model_name) for step in ("train", "evaluate"))
    evaluation = _json(workspace, evaluated, "evaluation.json") if evaluated else {}
    scan_steps = [name for name, spec in book.steps.items() if spec.scope == "scan"]
    subjects = subjects_of(book.scans())
    return ReportInputs(
        model_name=model_name,
        facts=_facts(workspace, book, trained, subjects),
        steps=[_count(book, step) for step in scan_steps],
        rejected=[Rejection(r["key"], r["step"], r["reason"]) for r in list_rejected(book)],
        scans=[
            ScanFigures(step, key, manifest.verdict, manifest.figures)
            for step in scan_steps
            for key in book.scans()
            if (manifest := book.manifest(step, key)) is not None
        ],
        curve=_curve(workspace, trained),
        evaluation=_evaluated(evaluation),
        evaluation_note=evaluation.get("protocol", ""),
        protocols=_protocols(workspace, book.manifest("protocols", model_name)),
        subjects=_subjects(workspace, book, subjects, evaluated, evaluation),
        subjects_left_out=max(0, len(subjects) - MOST_SUBJECTS),
        drift=drift(book),
        footer=_footer(workspace, trained),
    )


def _count(book: Snapshot, step: str) -> StepCount:
    verdicts = Counter(manifest.verdict for key in book.scans() if (manifest := book.manifest(step, key)) is not None)
    return StepCount(step, verdicts["accepted"], verdicts["rejected"])


def _facts(
    workspace: Workspace, book: Snapshot, trained: Manifest | None, subjects: list[str]
) -> dict[str, dict[str, str]]:
    template = workspace.template()
    held_out = [subject for subject in subjects if book.split(subject) == "held_out"]
    data = {
        "Template": f"{template.name}, {len(template.mesh.vertices):,} vertices",
        "Subjects": str(len(subjects)),
        "Scans": str(len(book.scans())),
        "Held-out subjects": ", ".join(held_out) or "none",
    }
    model = {
        "Preset": workspace.config.preset,
        "Anchors": f"{len(template.anchors)}, of them {template.anchor_pairs} mirrored pairs",
        "Seed": str(workspace.config.seed),
    }
    for name, value in (trained.figures if trained else {}).items():
        if isinstance(value, (int, float)):
            model["Training " + name.replace("_", " ")] = f"{value:g}"
    return {"Model": model, "Data": data}


def _curve(workspace: Workspace, trained: Manifest | None) -> list[dict[str, Any]]:
    if trained is None or "curve.jsonl" not in trained.outputs:
        return []
    return [json.loads(line) for line in workspace.read(trained, "curve.jsonl").splitlines()]


def _json(workspace: Workspace, manifest: Manifest, name: str) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(workspace.read(manifest, name)) if name in manifest.outputs else {}
    return decoded


def _evaluated(evaluation: Mapping[str, Any]) -> list[Evaluated]:
    rows = []
    for method, summary in evaluation.get("summary", {}).items():
        for region in ("face", "head"):
            means = {name: of["mean"] for name, of in summary.get(region, {}).items()}
            if means:
                rows.append(Evaluated(_METHOD_NAMES.get(method, method), region, means))
    for scan in evaluation.get("held_out", []):
        for method, entry in scan["methods"].items():
            for region, figures in entry["regions"].items():
                rows.append(Evaluated(_METHOD_NAMES.get(method, method), region, figures, scan["key"]))
    return rows


def _protocols(workspace: Workspace, measured: Manifest | None) -> list[ProtocolTable]:
    if measured is None:
        return []
    documents = [_json(workspace, measured, name) for name in measured.outputs if name.endswith("/protocol.json")]
    return [ProtocolTable(told["protocol"], told["what"], protocol_cells(told)) for told in documents]


def _subjects(
    workspace: Workspace,
    book: Snapshot,
    subjects: list[str],
    evaluated: Manifest | None,
    evaluation: Mapping[str, Any],
) -> list[Subject]:
    """Held-out subjects first, then those that were trained on, each with its canonical scan's pictures."""
    order = sorted(subjects, key=lambda subject: (book.split(subject) != "held_out", subject))
    shown = []
    for subject in order[:MOST_SUBJECTS]:
        pictures = []
        canonical = workspace.canonical_key(subject)
        for step, name, title, caption in _STAGES:
            manifest = book.manifest(step, canonical) if canonical else None
            if manifest is not None and name in manifest.outputs:
                pictures.append(Pictured(title, f"{canonical}: {caption}", workspace.read(manifest, name)))
        for part, title, caption in (("training", "Reconstructed", _TRAINED), ("held_out", "Fitted", _FIT)):
            for entry in evaluation.get(part, []):
                if evaluated is not None and subject_of(entry["key"]) == subject:
                    png = workspace.read(evaluated, entry["picture"])
                    pictures.append(Pictured(title, f"{entry['key']}: {caption}", png))
        if pictures:
            split = "held out" if book.split(subject) == "held_out" else "trained on"
            shown.append(Subject(subject, split, pictures))
    return shown


def _footer(workspace: Workspace, trained: Manifest | None) -> str:
    parts = [f"template {workspace.template_digest()[:12]}"]
    if trained is not None:
        parts.append(f"training config {trained.config_digest[:12]}")
        parts.append(f"model {trained.outputs_digest()[:12]}")
    return " · ".join(parts)
