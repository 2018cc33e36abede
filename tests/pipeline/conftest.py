"""Tiny sessions of a ball on a stick, in all three layouts, and steps that cost nothing."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import ingest
from pipeline.config import PipelineConfig, config_to_toml
from pipeline.opening import CONFIG_PATH
from pipeline.stepspec import Need, StepSpec
from pipeline.workspace import Workspace
from storage.errors import ScanRejected
from storage.manifest import Manifest
from storage.ply import write_ply
from storage.store import LocalStore

WIDTH, HEIGHT, FOCAL = 32, 24, 30.0
BALL_MM, DISTANCE_MM = 100.0, 400.0


def ball_views(count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Depth images (h, w) in mm of a ball at the origin, and their poses: camera to world, OpenGL axes, mm."""
    rng = np.random.default_rng(seed)
    views = []
    for i in range(count):
        angle = 2 * np.pi * i / count + rng.normal(0, 0.01)
        back = np.array([np.sin(angle), 0.1, np.cos(angle)])
        back /= np.linalg.norm(back)
        right = np.cross([0, 1, 0], back)
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3, :3] = np.stack([right, np.cross(back, right), back], 1)
        pose[:3, 3] = back * DISTANCE_MM
        u, v = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
        ray = np.stack([(u - WIDTH / 2) / FOCAL, (v - HEIGHT / 2) / FOCAL, np.ones_like(u)], -1)
        a, b, c = (ray**2).sum(-1), -2 * ray[..., 2] * DISTANCE_MM, DISTANCE_MM**2 - BALL_MM**2
        inside = b * b - 4 * a * c
        depth = np.where(
            inside > 0, (-b - np.sqrt(np.maximum(inside, 0))) / (2 * a) + rng.uniform(-0.1, 0.1, a.shape), 0
        )
        views.append((depth, pose))
    return views


def world_points(depth: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Points (n, 3) in mm of a depth image."""
    u, v = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    camera = np.stack([(u - WIDTH / 2) / FOCAL * depth, -(v - HEIGHT / 2) / FOCAL * depth, -depth], -1)[depth > 0]
    return camera @ pose[:3, :3].T + pose[:3, 3]


def png16(depth_mm: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.round(depth_mm * 10).astype(np.uint16)).save(out, "png")
    return out.getvalue()


def write_scan(folder: Path, layout: str, seed: int, unit_mm: float = 1.0, views: int = 5) -> None:
    folder.mkdir(parents=True)
    shown = ball_views(views, seed)
    if layout == "depth_frames":
        (folder / "depth").mkdir()
        (folder / "color").mkdir()
        frames = []
        for i, (depth, pose) in enumerate(shown):
            metres = pose.copy()
            metres[:3, 3] /= 1000
            (folder / f"depth/{i:03d}.png").write_bytes(png16(depth))
            Image.new("RGB", (WIDTH, HEIGHT), (200, 150, 120)).save(folder / f"color/{i:03d}.jpg")
            names = {"file_path": f"color/{i:03d}.jpg", "depth_file_path": f"./depth/{i:03d}.png"}
            frames.append({**names, "transform_matrix": metres.tolist()})
        camera = {"w": WIDTH, "h": HEIGHT, "fl_x": FOCAL, "fl_y": FOCAL, "cx": WIDTH / 2, "cy": HEIGHT / 2}
        told = {"camera_model": "PINHOLE", **camera, "depth_unit_scale_factor": 1e-4, "frames": frames}
        (folder / "transforms.json").write_text(json.dumps(told))
    elif layout == "view_clouds":
        (folder / "views").mkdir()
        for i, (depth, pose) in enumerate(shown):
            points = world_points(depth, pose) / unit_mm
            (folder / f"views/{i:03d}.ply").write_bytes(write_ply(dict(zip("xyz", points.T, strict=True))))
    else:
        points = np.concatenate([world_points(*view) for view in shown]) / unit_mm
        faces = np.arange(len(points) // 3 * 3, dtype=np.int32).reshape(-1, 3)
        (folder / "scan.ply").write_bytes(write_ply(dict(zip("xyz", points.T, strict=True)), faces))


@pytest.fixture
def make_session(tmp_path) -> Callable[..., Path]:
    """A function that writes a session of tiny scans and returns its folder."""
    return session_maker(tmp_path)


@pytest.fixture(scope="session")
def finished_workspace(tmp_path_factory) -> Path:
    """The folder of a workspace that is up to date, to be copied: see ``release_rig.finish_workspace``."""
    from tests.pipeline.release_rig import finish_workspace  # torch: imported where it is wanted alone

    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        finish_workspace(folder / "workspace", session_maker(folder))
    return folder / "workspace"


def session_maker(folder: Path) -> Callable[..., Path]:
    """A function that writes sessions into a folder."""

    def make(
        name: str = "session",
        subjects: Mapping[str, list[str]] | None = None,
        layout: str = "depth_frames",
        *,
        unit: str = "mm",
        seed: int = 0,
        **told: Any,
    ) -> Path:
        root = folder / name
        subjects = {"001": ["neutral", "smile"]} if subjects is None else subjects
        per_unit = {"mm": 1.0, "cm": 10.0, "m": 1000.0}[unit]
        for subject, expressions in subjects.items():
            for place, expression in enumerate(expressions):
                if not (root / subject / expression).exists():
                    own = seed * 1000 + 10 * sum(subject.encode()) + place
                    write_scan(root / subject / expression, layout, own, per_unit)
        consent = {"given": True, "scope": ["research"], "date": "2026-01-01"}
        note = {
            "schema_version": 1,
            "session_id": f"id-{name}",
            "captured_at": "2026-01-02T10:00:00Z",
            "rig": "ball",
            "layout": layout,
            "unit": unit,
            "canonical_expression": "neutral",
            "licence": "CC0",
            "room": "B12",
            "subjects": [
                {"id": s, "hair": "none", "expressions": [e for e in es if "@" not in e], "consent": consent, "age": 40}
                for s, es in subjects.items()
            ],
        } | told
        (root / "session.json").write_text(json.dumps(note))
        return root

    return make


def _run_clean(workspace: Workspace, key: str) -> Manifest:
    inputs = workspace.inputs("clean", key)
    capture = ingest.load_capture(workspace, key)
    seen = float(sum(view.depth_mm.mean() for view in capture.depth_views))
    outputs = {"mesh.ply": f"clean {key} {seen:.6f} {workspace.seed('clean', key)}".encode(), "sheet.png": b"picture"}
    return workspace.commit("clean", key, inputs=inputs, outputs=outputs, figures={"coverage": 0.8})


def _run_register(workspace: Workspace, key: str) -> Manifest:
    inputs = workspace.inputs("register", key)
    mesh = workspace.read(workspace.accepted("clean", key), "mesh.ply")
    canonical = workspace.canonical_key(key.split("/")[0])
    start = b"template"
    if canonical != key:
        manifest = None if canonical is None else workspace.manifest("register", canonical)
        if manifest is None or not manifest.accepted:
            raise ScanRejected(f"{key}: its canonical scan {canonical} was rejected; capture it again")
        start = workspace.read(manifest, "mesh.ply")
    outputs = {"mesh.ply": b"registered " + mesh + b" from " + start}
    return workspace.commit("register", key, inputs=inputs, outputs=outputs, figures={"residual_mm": 0.3})


def _run_sample(workspace: Workspace, key: str) -> Manifest:
    inputs = workspace.inputs("sample", key)
    mesh = workspace.read(workspace.accepted("register", key), "mesh.ply")
    return workspace.commit("sample", key, inputs=inputs, outputs={"shard": mesh[::-1]})


def _run_train(workspace: Workspace, key: str) -> Manifest:
    inputs = workspace.inputs("train", key)
    return workspace.commit("train", key, inputs=inputs, outputs={"model.safetensors": repr(inputs).encode()})


def _run_report(workspace: Workspace, key: str) -> Manifest:
    inputs = workspace.inputs("report", key)
    return workspace.commit("report", key, inputs=inputs, outputs={"index.html": repr(inputs).encode()})


def _judge_clean(figures: Mapping[str, Any], thresholds: Any) -> list[str]:
    return [] if figures["coverage"] >= LIMITS["coverage"] else [f"coverage {figures['coverage']} is too low"]


def _judge_nothing(figures: Mapping[str, Any], thresholds: Any) -> list[str]:
    return []


LIMITS = {"coverage": 0.5}


@pytest.fixture
def limits() -> Any:
    """The fake thresholds, which a test may change."""
    before = dict(LIMITS)
    yield LIMITS
    LIMITS.update(before)


FAKE_STEPS = {
    spec.name: spec
    for spec in (
        StepSpec("ingest", "ingest", ingest.STEP_VERSION, None, ingest.judge_ingest),
        StepSpec("clean", "clean", 1, _run_clean, _judge_clean, needs=(Need("ingest"),), heeds=("accept",)),
        StepSpec(
            "register", "registrations", 1, _run_register, _judge_nothing,
            needs=(Need("clean"), Need("register", "canonical")), uses_template=True, heeds=("accept", "reject"),
        ),
        StepSpec(
            "sample", "samples", 1, _run_sample, _judge_nothing,
            needs=(Need("register"), Need("clean"), Need("register", "canonical")),
        ),
        StepSpec(
            "train", "models", 1, _run_train, _judge_nothing, "model", (Need("sample", "train"),), own_folder=False
        ),
        StepSpec(
            "report", "reports", 1, _run_report, _judge_nothing, "model",
            (Need("train", "model"), Need("clean", "all", rejected_too=True)),
        ),
    )
}  # fmt: skip


@pytest.fixture
def fake_steps() -> dict[str, StepSpec]:
    """Steps that write small fixed outputs through the real store."""
    return dict(FAKE_STEPS)


@pytest.fixture
def workspace(tmp_path, fake_steps) -> Workspace:
    """An empty workspace with the fake steps and a template that nobody decodes."""
    store = LocalStore(tmp_path / "workspace")
    config = PipelineConfig(preset="demo")
    store.put(CONFIG_PATH, config_to_toml(config))
    store.put(config.template, b"template")
    return Workspace(store, config, fake_steps)
