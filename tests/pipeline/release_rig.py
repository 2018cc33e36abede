"""A small workspace that has everything a release or a withdrawal meets: real meshes, real shards, codes, a report."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

from model.checkpoint import encode
from pipeline import ingest
from pipeline.config import PipelineConfig, config_from_toml, config_to_toml
from pipeline.execute import execute_in
from pipeline.ingest import ingest_session
from pipeline.keys import subject_of
from pipeline.models import promote_first
from pipeline.opening import CONFIG_PATH
from pipeline.planner import plan
from pipeline.rejected import write_rejected
from pipeline.sample_format import SAMPLES_ROOT, DeformationSamples, encode_samples, quantise_samples
from pipeline.snapshot import take_snapshot
from pipeline.stepspec import Need, StepSpec
from pipeline.workspace import Workspace
from storage.digest import canonical_json
from storage.manifest import Manifest, describe
from storage.ply import write_ply
from storage.shards import group_metadata
from storage.store import LocalStore, Store

PEOPLE = ("xq-17", "bd-03", "yo-44", "mv-58")
COST = {"clean": {"results": 8, "seconds": 3.0, "bytes": 9_000}}
"""What the log of a run says."""
CONSENT = {"given": True, "scope": ["research", "release"], "date": "2026-01-01"}


def _mesh(key: str, note: str) -> bytes:
    points = np.random.default_rng(list(key.encode())).normal(size=(30, 3)).astype(np.float32)
    ply = write_ply(dict(zip("xyz", points.T, strict=True)), np.arange(30, dtype=np.int32).reshape(-1, 3))
    return ply.replace(b"element vertex", f"comment {note} of {key}\nelement vertex".encode(), 1)


def _run_clean(workspace: Workspace, key: str) -> Manifest:
    inputs = workspace.inputs("clean", key)
    outputs = {name: _mesh(key, name) for name in ("mesh.ply", "watertight.ply")} | {"sheet.png": b"a face"}
    figures = {"face_coverage": 0.9 + len(key) / 100, "faces": 10, "stages": {"fused": 1}}
    return workspace.commit("clean", key, inputs=inputs, outputs=outputs, figures=figures)


def _run_register(workspace: Workspace, key: str) -> Manifest:
    inputs = workspace.inputs("register", key)
    frame = json.dumps({"T_world_from_head": np.eye(4).tolist(), "throat_plane": [0, 1, 0, 90]}).encode()
    outputs = {"mesh.ply": _mesh(key, "template"), "frame.json": frame, "overlay.png": b"a face"}
    return workspace.commit("register", key, inputs=inputs, outputs=outputs, figures={"face_residual_median_mm": 0.1})


def _run_sample(workspace: Workspace, key: str) -> Manifest:
    inputs = workspace.inputs("sample", key)
    rng = np.random.default_rng(list(key.encode()))
    points = rng.uniform(-90, 90, (200, 3)).astype(np.float32)
    region, weight = np.zeros(200, np.uint8), np.ones(200, np.float32)
    stored = quantise_samples(DeformationSamples(points, points, region, weight), key)
    canonical = workspace.canonical_key(subject_of(key))
    told = {"key": key, "canonical_key": canonical, "frame": "head", "units": "mm", "rows": {"pairs": 200}}
    store, folder, made = workspace.store, f"{SAMPLES_ROOT}/{key}", {}
    for parent in (SAMPLES_ROOT, f"{SAMPLES_ROOT}/{subject_of(key)}"):
        store.put(f"{parent}/zarr.json", group_metadata({"frame": "head", "units": "mm"}))
    for path, data in encode_samples(stored, told).items():
        store.put(f"{folder}/{path}", data)
        made[path] = describe(f"{folder}/{path}", data)
    return workspace.commit("sample", key, inputs=inputs, outputs=made, figures={"pair_count": 200})


def _run_train(workspace: Workspace, key: str) -> Manifest:
    inputs = workspace.inputs("train", key)
    scans = sorted(source.removeprefix("sample/") for source in inputs if source.startswith("sample/"))
    subjects = sorted({subject_of(scan) for scan in scans})
    codes = {"identity": code_rows(subjects), "expression": code_rows(scans)}
    config = {"subjects": subjects, "scans": scans, "format": 1}
    outputs = {
        "model.safetensors": encode({"w": torch.zeros(3)}),
        "codes.safetensors": encode(codes),
        "config.json": json.dumps(config, indent=1, sort_keys=True).encode(),
        "template.npz": workspace.template_bytes(),
        "metrics.json": json.dumps({"subjects": len(subjects)}).encode(),
    }
    checkpoint = encode(codes | {"adam.moments": code_rows(subjects)})
    workspace.store.put(f"checkpoints/{key}/0123/stage1-0000010.safetensors", checkpoint)
    return workspace.commit("train", key, inputs=inputs, outputs=outputs, figures={"face_median_mm": 0.2})


def _run_report(workspace: Workspace, key: str) -> Manifest:
    inputs = workspace.inputs("report", key)
    outputs = {"index.html": f"<p>{sorted(inputs)}</p>".encode(), "scan_000.png": b"a face"}
    return workspace.commit("report", key, inputs=inputs, outputs=outputs)


def code_rows(names: list[str]) -> torch.Tensor:
    """A row of codes for each name, told by the name alone."""
    return torch.stack([torch.tensor(np.random.default_rng(list(n.encode())).normal(size=4)) for n in names]).float()


def _judge(figures: Mapping[str, Any], thresholds: Any) -> list[str]:
    return []


STEPS = {
    spec.name: spec
    for spec in (
        StepSpec("ingest", "ingest", ingest.STEP_VERSION, None, ingest.judge_ingest),
        StepSpec("clean", "clean", 1, _run_clean, _judge, needs=(Need("ingest"),), heeds=("accept",)),
        StepSpec("register", "registrations", 1, _run_register, _judge, needs=(Need("clean"),)),
        StepSpec("sample", "samples", 1, _run_sample, _judge, needs=(Need("register"),)),
        StepSpec("train", "models", 1, _run_train, _judge, "model", (Need("sample", "train"),)),
        StepSpec(
            "report", "reports", 1, _run_report, _judge, "model",
            (Need("train", "model"), Need("clean", "all", rejected_too=True)),
        ),
    )
}  # fmt: skip


def new_workspace(store: Store, **settings: Any) -> Workspace:
    """An empty workspace."""
    config = PipelineConfig.model_validate({"preset": "demo", "splits": {"held_out_ids": ["mv-58"]}} | settings)
    store.put(CONFIG_PATH, config_to_toml(config))
    store.put(config.template, b"template")
    return Workspace(store, config, STEPS)


def finish_workspace(folder: Path, make_session: Callable[..., Path]) -> None:
    """A workspace of four people: one is held out, one did not consent to release."""
    workspace = new_workspace(LocalStore(folder))
    people = {name: {} for name in PEOPLE} | {"yo-44": {"consent": CONSENT | {"scope": ["research"]}}}
    ingest_session(workspace, session_of(make_session, "first", people, rig="SN-900817", session_id="day-2026-01"))
    bring_up(workspace)


def opened(folder: Path) -> Workspace:
    """The workspace in a folder."""
    store = LocalStore(folder)
    return Workspace(store, config_from_toml(store.get(CONFIG_PATH)), STEPS)


def session_of(
    make_session: Callable[..., Path], name: str, people: Mapping[str, Mapping[str, Any]], **told: Any
) -> Path:
    """A session of people with a licence and consent for release, unless told otherwise; None takes a key away."""
    plain = {"hair": "short", "expressions": ["neutral", "smile"], "licence": "CC-BY-4.0", "consent": CONSENT}
    subjects = [{"id": who, **plain, **of} for who, of in people.items()]
    scans = {subject["id"]: subject["expressions"] for subject in subjects}
    root = make_session(name, scans, "fused_mesh", **told)
    note = json.loads((root / "session.json").read_text())
    note["subjects"] = [{key: value for key, value in subject.items() if value is not None} for subject in subjects]
    (root / "session.json").write_text(json.dumps(note))
    return root


def bring_up(workspace: Workspace) -> None:
    """Do whatever is stale, and write the logs that a run writes."""
    jobs = []
    while ready := [action for action in plan(take_snapshot(workspace)) if action.ready]:
        for action in ready:
            execute_in(workspace, action.step, action.key)
            jobs.append({"step": action.step, "key": action.key, "why": action.why})
    snapshot = take_snapshot(workspace)
    write_rejected(workspace, snapshot)
    promote_first(workspace, next(key for step, key in snapshot.manifests if step == "train"))
    workspace.store.put("runs/20260102.jsonl", b"".join(canonical_json(job) + b"\n" for job in jobs))
    workspace.store.put("runs/20260102.json", canonical_json({"cost": COST, "jobs": jobs}))


def names_in(folder: Path, word: str) -> list[str]:
    """Every place under a folder, paths and compressed contents included, where a word stands."""
    found = []
    for path in sorted(folder.rglob("*")):
        place = str(path.relative_to(folder))
        if word in place:
            found.append(f"{place} (path)")
        if path.is_file() and word.encode() in _unpacked(path.read_bytes()):
            found.append(place)
    if (folder / SAMPLES_ROOT / "zarr.json").exists():
        for name, node in zarr.open_group(str(folder / SAMPLES_ROOT), mode="r").members(max_depth=None):
            inside = np.asarray(node[...]).tobytes() if isinstance(node, zarr.Array) else b""
            if word.encode() in inside or word in json.dumps(dict(node.attrs)) or word in name:
                found.append(f"{name} (zarr)")
    return found


def _unpacked(data: bytes) -> bytes:
    if not zipfile.is_zipfile(BytesIO(data)):
        return data
    with zipfile.ZipFile(BytesIO(data)) as archive:
        return data + b"".join(archive.read(name) for name in archive.namelist())


def tree(store: LocalStore) -> dict[str, bytes]:
    """All objects of a store but locks."""
    return {path: store.get(path) for path in store.list() if not path.startswith("locks/")}
