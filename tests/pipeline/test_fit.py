"""Fitting a quickly trained model to heads of any pose and unit: poses, units, files and verdicts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open3d as o3d
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from model import HeadModel
from model.config import (
    DeformationConfig,
    FieldConfig,
    IdentityConfig,
    IdentityLossWeights,
    StageConfig,
    TrainingConfig,
)
from model.fit_config import FitConfig
from model.training import TrainingData, train
from pipeline.fit import ScanFitConfig, fit_scans
from pipeline.fit_document import CODES_FILE, FitDocument
from pipeline.fit_files import fit_files, scan_names
from pipeline.fit_observe import find_head, observe
from registration.mesh import Mesh, mesh_from_ply, mesh_to_ply, sample_surface, transform_points
from registration.procedural_head import draw_person, head_template
from registration.register_head import throat_plane
from registration.rendered_points import RenderedPoints, above_plane, single_view_cloud
from registration.surface import SurfaceIndex
from storage.errors import ConfigError

EXPRESSIONS = ("neutral_open", "smile")
PEOPLE = [draw_person(np.random.default_rng(seed), relief_mm=0.0) for seed in range(4)]
FIT = FitConfig(points=800, iterations=12, threads=1, rotation_deg=6, translation_mm=10)
CONFIG = ScanFitConfig(resolution=64, fit=FIT)
POINTS = 250


def _head(person: int, expression: str = "neutral_open") -> Mesh:
    return head_template().mesh.with_vertices(PEOPLE[person].vertices(expression))


class _Batches:
    """Samples of the people's heads, drawn once."""

    def __init__(self, stage: int) -> None:
        self.rng = np.random.default_rng(stage)
        self.stage, template = stage, head_template()
        self.surfaces = [SurfaceIndex(_head(p)) for p in range(len(PEOPLE))]
        self.anchors = np.stack([s.mesh.vertices[template.anchors] for s in self.surfaces]).astype(np.float32)

    def __next__(self) -> Mapping[str, Any]:
        return self._identity() if self.stage == 1 else self._deformation()

    def _identity(self) -> Mapping[str, Any]:
        names = ("surface", "normal", "near", "near_sdf", "space", "space_sdf")
        columns: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for surface in self.surfaces:
            p, face, bary = sample_surface(surface.mesh, POINTS, self.rng)
            queries = [p + self.rng.normal(size=p.shape) * 2, p + self.rng.normal(size=p.shape) * 12]
            signed = []
            for q in queries:
                foot = surface.closest(q)
                side = np.einsum("nc,nc->n", q - foot.points, surface.normals_at(foot.faces, foot.bary))
                signed.append(foot.distance_mm * np.sign(side))
            values = (p, surface.normals_at(face, bary), queries[0], signed[0], queries[1], signed[1])
            for name, value in zip(names, values, strict=True):
                columns[name].append(value.astype(np.float32))
        yes = np.ones((len(PEOPLE), POINTS), bool)
        flags = {"face": yes, "observed": yes, "near_observed": yes, "space_observed": yes}
        stacked = {name: np.stack(column) for name, column in columns.items()}
        return stacked | flags | {"subject": np.arange(len(PEOPLE)), "anchors": self.anchors}

    def _deformation(self) -> Mapping[str, Any]:
        scans = [(p, e) for p in range(len(PEOPLE)) for e in EXPRESSIONS]
        pick = self.rng.integers(len(head_template().mesh.vertices), size=(len(scans), POINTS))
        canonical = np.stack([_head(p).vertices[i] for (p, _), i in zip(scans, pick, strict=True)])
        posed = np.stack([_head(p, e).vertices[i] for (p, e), i in zip(scans, pick, strict=True)])
        subject = np.array([p for p, _ in scans])
        weight = np.ones(canonical.shape[:2], np.float32)
        numbers = {"scan": np.arange(len(scans)), "subject": subject}
        return numbers | {"canonical": canonical, "posed": posed, "weight": weight}

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        pass


@pytest.fixture(scope="module")
def head() -> HeadModel:
    template = head_template()

    def stage(steps: int) -> StageConfig:
        return StageConfig(steps=steps, learning_rate=5e-3, code_learning_rate=5e-3, code_init=0.1, warmup_steps=10)

    config = TrainingConfig(
        field=FieldConfig(
            identity=IdentityConfig(
                global_dim=8, local_dim=6, hidden=(32, 32), anchor_hidden=(16,), reach_neighbours=5, coordinate_gain=5.0
            ),
            deformation=DeformationConfig(expression_dim=4, compressed_dim=4, hidden=(48, 48), skip_layer=None),
        ),
        stage1=stage(110),
        stage2=stage(60),
        identity_losses=IdentityLossWeights(normals=0.3, grad=0.1),  # so few steps end smooth by them alone
        threads=1,
        checkpoint_every=10**6,
    )
    first, second = _Batches(1), _Batches(2)
    data = TrainingData(first, second, len(PEOPLE), 2 * len(PEOPLE), first.anchors.mean(0), template.anchor_pairs)
    trained = train(config, data, lambda name, data: None)
    names = [f"p{p}" for p in range(len(PEOPLE))]
    box = [template.mesh.vertices.min(0) - 15, template.mesh.vertices.max(0) + 15]
    plane = throat_plane(template.mesh.vertices, template)
    scans = [f"{name}/{e}" for name in names for e in EXPRESSIONS]
    return HeadModel.of(trained, config.field, names, scans, template, np.array(box), plane)


def _anywhere(seed: int) -> np.ndarray:
    T = np.eye(4)
    rng = np.random.default_rng(seed)
    T[:3, :3], T[:3, 3] = Rotation.random(random_state=seed).as_matrix(), rng.uniform(-500, 500, 3)
    return T


def _check_pose(found: Any, T: np.ndarray, within_deg: float = 4.0, within_mm: float = 6.0) -> None:
    off = np.linalg.inv(T) @ np.array(found)
    assert np.degrees(Rotation.from_matrix(off[:3, :3]).magnitude()) < within_deg
    assert np.linalg.norm(off[:3, 3]) < within_mm


def test_two_expressions_in_other_poses_and_units(head: HeadModel) -> None:
    poses = [_anywhere(1), _anywhere(2)]
    scans = [_head(0, e).transformed(T) for e, T in zip(EXPRESSIONS, poses, strict=True)]
    centimetres = scans[1].with_vertices(scans[1].vertices / 10)
    fit = fit_scans(head, [scans[0], centimetres], ["open", "smile"], CONFIG)
    documents = fit["scans"]
    assert [documents[name]["verdict"] for name in ("open", "smile")] == ["accepted", "accepted"]
    assert [documents[name]["unit_to_mm"] for name in ("open", "smile")] == [1.0, 10.0]
    for name, T in zip(("open", "smile"), poses, strict=True):
        _check_pose(documents[name]["T_world_from_head"], T)
        assert documents[name]["residual_mm"]["median"] < 2.5
    smile = fit.scans_by_name["smile"]
    assert smile.mesh is not None
    assert smile.landmarks is not None
    assert smile.template_mesh is not None
    true = centimetres.vertices[head.template.landmarks]
    assert np.median(np.linalg.norm(smile.landmarks - true, axis=1)) < 0.8  # cm
    np.testing.assert_array_equal(smile.template_mesh.faces, head.template.mesh.faces)
    above = centimetres.vertices[above_plane(_head(0, "smile").vertices, head.throat_plane)]
    assert np.median(SurfaceIndex(smile.mesh).closest(above).distance_mm) < 0.35  # cm


def test_what_is_no_head_is_rejected_with_the_reason(head: HeadModel) -> None:
    box = o3d.geometry.TriangleMesh.create_box(400, 30, 400).subdivide_midpoint(4)
    table = Mesh.of(np.asarray(box.vertices), np.asarray(box.triangles))
    in_mm = CONFIG.model_copy(update={"units_to_mm": (1.0,)})
    fit = fit_scans(head, [table, np.zeros((5, 3))], ["table", "dots"], in_mm)
    for name in ("table", "dots"):
        document = fit["scans"][name]
        assert document["verdict"] == "rejected"
        assert document["reasons"]
        assert document["codes"] is None
    assert fit.identity is None


def test_one_view_in_metres_and_a_broken_file(head: HeadModel, tmp_path: Path) -> None:
    head.save(tmp_path / "model")
    cloud = single_view_cloud(_head(1), head.throat_plane, 2500, np.random.default_rng(0))
    T = _anywhere(3)
    in_metres = transform_points(T, cloud.points_mm) / 1000
    (tmp_path / "view.ply").write_bytes(mesh_to_ply(Mesh.of(in_metres, np.zeros((0, 3)))))
    (tmp_path / "broken.ply").write_bytes(b"ply\nformat ascii 1.0\n")
    out = tmp_path / "out"
    told = fit_files(tmp_path / "model", [tmp_path / "view.ply", tmp_path / "broken.ply"], out, CONFIG)
    assert json.loads((out / "fit.json").read_text()) == told
    FitDocument.model_validate(told)
    view, broken = told["scans"]["view"], told["scans"]["broken"]
    assert (view["verdict"], view["unit_to_mm"]) == ("accepted", 1000.0)
    _check_pose(view["T_world_from_head"], T, 8.0, 10.0)
    assert broken["verdict"] == "rejected"
    assert "broken.ply" in broken["reasons"][0]
    names = {path.name for path in out.iterdir()}
    assert names == {"fit.json", CODES_FILE, "view.ply", "view.template.ply", "view.landmarks.json", "view.png"}
    picture = np.asarray(Image.open(out / "view.png").convert("RGB"))
    assert [len(np.unique(column.reshape(-1, 3), axis=0)) > 50 for column in np.split(picture, 4, 1)] == [True] * 4
    fitted = mesh_from_ply((out / "view.template.ply").read_bytes())
    true = transform_points(T, _head(1).vertices) / 1000
    assert np.median(np.linalg.norm(fitted.vertices - true, axis=1)) < 0.012
    complete = mesh_from_ply((out / "view.ply").read_bytes()).attributes
    seen = complete["observed"] > 0
    assert 0.1 < seen.mean() < 0.8
    assert np.median(complete["uncertainty_mm"][~seen]) > np.median(complete["uncertainty_mm"][seen]) > 0
    assert np.array(json.loads((out / "view.landmarks.json").read_text())).shape == (68, 3)


def test_names_of_scans() -> None:
    paths = [Path("a/smile/scan.ply"), Path("a/open/scan.ply"), Path("b/other.ply")]
    assert scan_names(paths) == ["smile_scan", "open_scan", "other"]
    with pytest.raises(ConfigError, match="two scans"):
        scan_names([Path("a/scan.ply"), Path("a/scan.ply")])


def _with_normals(cloud: RenderedPoints, T: np.ndarray, normals: np.ndarray) -> Mesh:
    named = dict(zip(("nx", "ny", "nz"), (normals @ T[:3, :3].T).astype(np.float32).T, strict=True))
    return Mesh.of(transform_points(T, cloud.points_mm), np.zeros((0, 3)), **named)


@pytest.mark.parametrize("facing", ["turned", "ignored"])
def test_normals_that_look_inwards_are_turned_and_mixed_ones_left_out(head: HeadModel, facing: str) -> None:
    cloud, T = single_view_cloud(_head(1), head.throat_plane, 1500, np.random.default_rng(0)), _anywhere(5)
    sides = np.random.default_rng(1).choice([-1.0, 1.0], (len(cloud.normals), 1)) if facing == "ignored" else -1.0
    told = _with_normals(cloud, T, sides * cloud.normals)
    found = find_head(told, None, head.template, CONFIG.model_copy(update={"units_to_mm": (1.0,)}), 0)
    assert found.alignment.accepted, found.alignment.reason
    _check_pose(found.alignment.T_world_from_head, T, 8.0, 10.0)
    seen, became = observe("view", found, head, CONFIG)
    assert became == facing
    if facing == "ignored":
        assert seen.normals is None
    else:
        true = SurfaceIndex(_head(1)).closest(seen.points_mm)
        out = SurfaceIndex(_head(1)).normals_at(true.faces, true.bary)
        assert np.einsum("nc,nc->n", seen.normals, out).mean() > 0.8


def test_a_sensor_that_does_not_go_with_its_scan_is_refused(head: HeadModel) -> None:
    points = np.random.default_rng(0).normal(size=(200, 3))
    with pytest.raises(ConfigError, match="sensor"):
        fit_scans(head, [points], ["a"], CONFIG, sensors=[np.zeros((3, 3))])
    with pytest.raises(ConfigError, match="sensor"):
        fit_scans(head, [points], ["a"], CONFIG, sensors=[])
