"""The evaluation on ellipsoid people: known errors come out, failures are counted, the workspace gets its tables."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import open3d as o3d
import pytest
import torch
from pydantic import BaseModel, ConfigDict

from model import HeadModel
from model.config import DeformationConfig, FieldConfig, IdentityConfig
from model.deformation_field import DeformationField
from model.fit_config import FitConfig, PcaConfig
from model.identity_field import IdentityField
from model.observation import FittedHead, Observation
from model.units import to_units
from pipeline import protocols
from pipeline.compared import linear_fitters
from pipeline.config import PipelineConfig, SplitShares
from pipeline.evaluate import run_evaluate
from pipeline.evaluate_config import STEP_VERSION, EvaluateConfig, EvaluateThresholds, judge_evaluate
from pipeline.evaluation import (
    REGIONS_COMPARED,
    HeadScan,
    Look,
    evaluate_scan,
    evaluate_together,
    evaluate_training_head,
    method_entry,
    summarise,
)
from pipeline.evaluation_pictures import scan_sheet, training_sheet
from pipeline.evaluation_tables import latex_table, protocol_latex, protocol_markdown
from pipeline.protocols import WHAT, cases, run_protocols
from pipeline.protocols_config import Protocol, ProtocolsConfig
from pipeline.steps import PROTOCOLS
from pipeline.stepspec import Need, StepSpec
from pipeline.workspace import Workspace
from registration.mesh import Mesh, mesh_to_ply
from registration.template import REGIONS, Template
from storage.errors import ConfigError
from storage.store import LocalStore

PLANE = np.array([0.0, 1.0, 0.0, 70.0])
RADII_MM = {"001": (60.0, 80.0, 75.0), "002": (75.0, 90.0, 70.0), "003": (68.0, 85.0, 72.0)}
SMALL = EvaluateConfig(
    points=400,
    samples=3000,
    render_scale=0.1,
    resolution=24,
    fit=FitConfig(points=200, iterations=3, threads=1),
    pca=PcaConfig(iterations=8),
)


@cache
def _ball() -> Mesh:
    ball = o3d.geometry.TriangleMesh.create_sphere(1.0, 24)
    return Mesh.of(np.asarray(ball.vertices), np.asarray(ball.triangles))


def _head(subject: str, grown_mm: float = 0.0, smile: bool = False) -> Mesh:
    vertices = _ball().vertices * (np.array(RADII_MM[subject]) + grown_mm)
    return _ball().with_vertices(vertices + [0, -4.0, 0] * (vertices[:, 1:2] < 0) if smile else vertices)


@cache
def _template() -> Template:
    mesh = _ball().with_vertices(_ball().vertices * 75)
    x, y, z = _ball().vertices.T
    n = len(x)
    regions = np.where(z > 0.5, REGIONS.index("face"), REGIONS.index("scalp")).astype(np.uint8)
    mirrored = mesh.vertices * [-1, 1, 1]
    mirror = np.linalg.norm(mesh.vertices[None] - mirrored[:, None], axis=2).argmin(1).astype(np.int32)
    ends = [x.argmin(), x.argmax(), z.argmax(), y.argmax()]
    none = np.zeros((0, n, 3), np.float32)
    return Template(
        "ball", mesh, np.full(68, z.argmax(), np.int32), np.array(ends, np.int32), 1, regions, z > 0.5, mirror,
        np.arange(3, dtype=np.int32), none, none,
    )  # fmt: skip


def _scan(subject: str = "001") -> HeadScan:
    mesh = _head(subject)
    return HeadScan(f"{subject}/neutral", mesh, mesh, _template().face_mask, PLANE)


@dataclass
class _Grown:
    """A method that gives the true head, grown by some millimetres."""

    name: str
    grown_mm: float

    def fit(self, observations: Sequence[Observation], seed: int) -> tuple[FittedHead, ...]:
        assert all(len(observation.points_mm) == SMALL.points for observation in observations)
        return tuple(FittedHead(_head("001", self.grown_mm), np.eye(4), np.full(5, 0.3)) for _ in observations)


class _Nothing:
    """A method that finds no surface."""

    name = "nothing"

    def fit(self, observations: Sequence[Observation], seed: int) -> tuple[FittedHead, ...]:
        nothing = Mesh.of(np.zeros((0, 3)), np.zeros((0, 3)))
        return tuple(FittedHead(nothing, np.eye(4), np.full(3, np.nan)) for _ in observations)


class _Diverged:
    """A method whose codes are not finite."""

    name = "diverged"

    def fit(self, observations: Sequence[Observation], seed: int) -> tuple[FittedHead, ...]:
        head = _head("001")
        return (FittedHead(head.with_vertices(head.vertices * np.nan), np.eye(4), np.full(3, np.nan)),)


def test_known_errors_come_out() -> None:
    result = evaluate_scan(_scan(), [_Grown("same", 0.0), _Grown("grown", 3.0)], SMALL, seed=1)
    same, grown = result.methods["same"], result.methods["grown"]
    assert same.errors["head"].point_to_triangle_mm == pytest.approx(0, abs=1e-3)
    for region in ("face", "head"):
        assert grown.errors[region].point_to_triangle_mm == pytest.approx(3.0, abs=0.2)
        assert grown.errors[region].f_score[10.0] > 0.99
    assert same.failure == grown.failure == ""
    picture = scan_sheet(result, 64)
    assert picture.shape == (2 * (64 + 18), 6 * 64, 3)
    assert picture[:64].std(axis=(0, 1)).min() > 10


class _Face(_Grown):
    """A method that models faces alone."""

    def fit(self, observations: Sequence[Observation], seed: int) -> tuple[FittedHead, ...]:
        return tuple(replace(head, regions=("face",)) for head in super().fit(observations, seed))


def test_a_method_that_models_faces_is_measured_on_faces_and_has_not_failed() -> None:
    result = evaluate_scan(_scan(), [_Face("imface", 3.0)], SMALL, seed=1).methods["imface"]
    assert list(result.errors) == ["face"]
    assert result.failure == ""
    summary = summarise([("001/neutral", method_entry(result))], REGIONS_COMPARED, np.random.default_rng(0))
    evaluation = {"summary": {"imface": summary}, "held_out": [], "model": "", "protocol": ""}
    rows = [line for line in latex_table(evaluation).splitlines() if "imface" in line]
    assert [row.split(" & ")[0] for row in rows] == ["face"]


def test_a_rig_of_any_name_keeps_the_tables_whole() -> None:
    figures = {"chamfer_l1_mm": {"mean": 1.5}}
    summary = {"pca": {"face": figures, "face_scans": 2, "head_scans": 0, "hair_scans": 0, "failures": 0}}
    document = {"model": "m", "protocol": "rig", "what": "", "levels": {"A & B | 50 % #2\\{x_y}$": summary}}
    paper = [line for line in protocol_latex(document).splitlines() if line.endswith("\\\\")]
    assert [len(re.findall(r"(?<!\\)&", line)) for line in paper] == [13, 13]
    assert paper[1].startswith("A \\& B | 50 \\% \\#2\\textbackslash{}\\{x\\_y\\}\\$ & face & pca & 2")
    assert "chamfer L2 mm$^2$" in paper[0]
    lines = [line for line in protocol_markdown(document).splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines] == [15, 15, 15]
    assert lines[2].startswith("| A & B \\| 50 % #2\\\\{x_y}$ | face | pca | 2")


def test_a_face_that_is_far_off_does_not_escape() -> None:
    result = evaluate_scan(_scan(), [_Grown("grown", 12.0)], SMALL, seed=1)
    assert result.methods["grown"].errors["face"].point_to_triangle_mm == pytest.approx(12.0, abs=0.5)


def test_the_same_seed_gives_the_same_view_to_every_method() -> None:
    first = evaluate_scan(_scan(), [_Grown("grown", 3.0)], SMALL, seed=1)
    second = evaluate_scan(_scan(), [_Grown("grown", 3.0)], SMALL, seed=1)
    np.testing.assert_array_equal(first.cloud.points_mm, second.cloud.points_mm)
    assert method_entry(first.methods["grown"]) == method_entry(second.methods["grown"])


def test_failures_are_counted_and_never_dropped() -> None:
    rows = []
    for number, fitter in enumerate((_Grown("m", 1.0), _Grown("m", 2.0), _Grown("m", 3.0), _Nothing(), _Diverged())):
        result = evaluate_scan(_scan(), [fitter], SMALL, seed=number)
        rows.append((f"00{number}/neutral", method_entry(result.methods[fitter.name])))
        assert scan_sheet(result, 32).shape[1] == 4 * 32
    assert [entry["failure"] is None for _, entry in rows] == [True, True, True, False, False]
    summary = summarise(rows, ("face", "head"), np.random.default_rng(0))
    assert (summary["scans"], summary["failures"]) == (5, 2)
    distance, score = summary["face"]["point_to_triangle_mm"], summary["face"]["f_score_20mm"]
    assert distance["mean"] == pytest.approx(2.0, abs=0.1)
    assert distance["median"] == pytest.approx(3.0, abs=0.1)  # the third of five, two of them infinitely far
    assert distance["worst_5_percent"] is None
    assert score["mean"] == pytest.approx(0.6)
    json.dumps(summary, allow_nan=False)


def test_nothing_but_failures_is_no_crash() -> None:
    entry = method_entry(evaluate_scan(_scan(), [_Nothing()], SMALL, seed=0).methods["nothing"])
    assert summarise([("a/b", entry)], ("face",), np.random.default_rng(0))["face"] == {}


def test_a_scan_that_no_camera_sees_is_a_failure_of_its_own() -> None:
    below = np.array([0.0, 1.0, 0.0, -1000.0])  # a throat plane above the head
    scans = [replace(_scan(), key="001/smile", throat_plane=below), _scan()]
    for look in (Look(SMALL.points), Look(SMALL.points, whole=True)):
        unseen, seen = evaluate_together(scans, [_Grown("g", 3.0)], look, SMALL, [1, 2])
        assert "look at the clean mesh" in unseen.methods["g"].failure
        assert method_entry(unseen.methods["g"])["regions"] == {}
        assert seen.methods["g"].failure == ""
    assert scan_sheet(unseen, 32).shape[1] == 4 * 32
    rows = [(one.scan.key, method_entry(one.methods["g"])) for one in (unseen, seen)]
    summary = summarise(rows, REGIONS_COMPARED, np.random.default_rng(0))
    assert (summary["failures"], summary["face_scans"], summary["hair_scans"]) == (1, 2, 0)
    assert evaluate_scan(scans[0], [_Grown("g", 3.0)], SMALL, 1).methods["g"].failure


def test_training_heads_against_their_scans() -> None:
    measured = evaluate_training_head(_head("001", 1.0), _scan(), SMALL, 0)
    assert measured.errors["face"].accuracy_median_mm == pytest.approx(1.0, abs=0.1)
    assert training_sheet("nphm", measured, _scan(), 32).shape == (2 * (32 + 18), 3 * 32, 3)


def test_limits_judge() -> None:
    limits = EvaluateThresholds(worst_face_point_to_triangle_mm=2.0)
    assert judge_evaluate({"held_out_scans": 0, "train_face_median_mm": 0.5}, limits) == []
    assert (
        judge_evaluate({"held_out_scans": 4, "nphm_failures": 0, "nphm_face_point_to_triangle_mm": 1.5}, limits) == []
    )
    reasons = judge_evaluate(
        {"held_out_scans": 4, "nphm_failures": 2, "nphm_face_point_to_triangle_mm": 2.5, "train_face_median_mm": 4.0},
        limits,
    )
    assert len(reasons) == 3


class _Thresholds(BaseModel):
    model_config = ConfigDict(frozen=True)
    evaluate: EvaluateThresholds = EvaluateThresholds(
        most_failures_share=1, worst_face_point_to_triangle_mm=1e3, worst_train_face_median_mm=1e3
    )


class _Config(PipelineConfig):
    evaluate: EvaluateConfig = SMALL
    thresholds: _Thresholds = _Thresholds()  # type: ignore[assignment]


def _model(subjects: tuple[str, ...]) -> HeadModel:
    """Fields whose background network was set to the distance from a sphere of 75 mm: a round mean head."""
    generator = torch.Generator().manual_seed(0)
    anchors = torch.tensor(to_units(_template().mesh.vertices[_template().anchors]))
    config = FieldConfig(
        identity=IdentityConfig(global_dim=4, local_dim=2, hidden=(8, 8), anchor_hidden=(8,)),
        deformation=DeformationConfig(expression_dim=3, compressed_dim=4, hidden=(8, 8), skip_layer=None),
    )
    identity = IdentityField(config.identity, anchors, 1, generator)
    deformation = DeformationField(config.deformation, identity.layout.size, len(anchors), generator)
    points = to_units(torch.rand(600, 3, generator=generator) * 240 - 120)
    wanted = points.norm(dim=1) - to_units(75.0)
    codes = torch.randn(len(subjects), identity.layout.size, generator=generator) * 0.1
    optimiser = torch.optim.Adam(identity.parameters(), 1e-2)
    for _ in range(150):
        optimiser.zero_grad()
        (identity.sdf(identity.prepare(codes[:1]), points) - wanted).abs().mean().backward()
        optimiser.step()
    for field in (identity, deformation):
        field.requires_grad_(False)
    scans = tuple(f"{subject}/smile" for subject in subjects)
    expressions = np.random.default_rng(0).normal(size=(len(scans), 3)).astype(np.float32) * 0.1
    box = np.array([[-100.0, -100, -100], [100, 100, 100]])
    return HeadModel(
        identity, deformation, config, subjects, scans, codes.numpy(), expressions, _template(), box, PLANE
    )


def _workspace(root: Path, held_out: tuple[str, ...]) -> Workspace:
    def unused(workspace: Workspace, key: str) -> Any:
        raise AssertionError

    def spec(name: str, folder: str, scope: Any = "scan") -> StepSpec:
        return StepSpec(name, folder, 1, unused, lambda figures, thresholds: [], scope=scope)

    needs = (Need("train", "model"), Need("clean", "all"), Need("register", "all"))
    evaluate = StepSpec(
        "evaluate", "evaluations", STEP_VERSION, run_evaluate, judge_evaluate, scope="model", needs=needs
    )
    steps = [spec("ingest", "ingest"), spec("clean", "clean"), spec("register", "registrations")]
    steps += [spec("train", "models", "model"), evaluate]
    store = LocalStore(root)
    store.put("template.npz", _template().to_bytes())
    config = _Config(splits=SplitShares(held_out_ids=held_out)) if held_out else _Config()
    workspace = Workspace(store, config, {one.name: one for one in steps})
    T_world_from_head = np.eye(4)
    T_world_from_head[:3] = [[0, 0, 1, 30], [1, 0, 0, -500], [0, 1, 0, 7]]
    for subject in RADII_MM:
        for expression in ("neutral", "smile"):
            key = f"{subject}/{expression}"
            head = _head(subject, smile=expression == "smile")
            rig = "dome" if subject in held_out else "studio"
            told = {"canonical_expression": "neutral", "content_digest": "0", "rig": rig}
            workspace.commit("ingest", key, inputs={}, outputs={"taken.json": b"{}"}, extra=told)
            clean = mesh_to_ply(head.transformed(T_world_from_head))
            workspace.commit("clean", key, inputs={}, outputs={"mesh.ply": clean})
            frame = {"T_world_from_head": T_world_from_head.tolist(), "throat_plane": PLANE.tolist()}
            outputs = {"mesh.ply": mesh_to_ply(head), "frame.json": json.dumps(frame).encode()}
            outputs["scan_regions.npz"] = _regions(head, hair=subject in held_out)
            workspace.commit("register", key, inputs={}, outputs=outputs)
    trained = tuple(subject for subject in RADII_MM if subject not in held_out)
    workspace.commit("train", "first", inputs={}, outputs=dict(_model(trained).to_files()))
    return workspace


def _regions(head: Mesh, hair: bool) -> bytes:
    """The upper part of a head as hair, the rest as face."""
    upper = (head.vertices[:, 1] > 30) & hair
    out = io.BytesIO()
    np.savez_compressed(out, region=np.where(upper, REGIONS.index("hair"), REGIONS.index("face")).astype(np.uint8))
    return out.getvalue()


def _cell(evaluation: dict[str, Any], method: str) -> str:
    face = evaluation["by_expression"]["smile"][method].get("face", {})
    return f"{face['point_to_triangle_mm']['mean']:.3f}" if face else "-"


def test_a_workspace_gets_tables_figures_and_pictures(tmp_path: Path) -> None:
    workspace = _workspace(tmp_path, held_out=("003",))
    manifest = run_evaluate(workspace, "first")
    assert manifest.accepted
    figures = manifest.figures
    assert (figures["held_out_scans"], figures["held_out_subjects"], figures["training_heads"]) == (2, 1, 2)
    assert figures["pca_failures"] == 0
    assert figures["pca_face_point_to_triangle_mm"] < 5
    assert figures["nphm_failures"] in (0, 1, 2)
    assert {"evaluation.json", "table.md", "table.csv", "scan_000.png", "train_001.png"} <= set(manifest.outputs)
    evaluation = json.loads(workspace.read(manifest, "evaluation.json"))
    assert [entry["key"] for entry in evaluation["held_out"]] == ["003/neutral", "003/smile"]
    assert set(evaluation["held_out"][0]["methods"]) == {"nphm", "pca"}
    lines = workspace.read(manifest, "table.csv").decode().splitlines()
    assert len(lines) == 1 + 2 * 2 * 3
    assert sum(",hair," in line for line in lines) == 2 * 2
    assert "| face | pca | 2 | 0 |" in workspace.read(manifest, "table.md").decode()
    assert list(evaluation["by_expression"]) == ["neutral", "smile"]
    of_smile = evaluation["by_expression"]["smile"]["pca"]["face"]["point_to_triangle_mm"]["mean"]
    assert f"| smile | {_cell(evaluation, 'nphm')} | {of_smile:.3f} |" in workspace.read(manifest, "table.md").decode()
    paper = workspace.read(manifest, "table.tex").decode().splitlines()
    assert [line.count(" & ") for line in paper if line.endswith("\\\\")] == [12] * (1 + 2 * 3)
    again = run_evaluate(workspace, "first")
    assert {n: o.sha256 for n, o in again.outputs.items()} == {n: o.sha256 for n, o in manifest.outputs.items()}


def test_without_held_out_subjects_the_figures_say_so(tmp_path: Path) -> None:
    manifest = run_evaluate(_workspace(tmp_path, held_out=()), "first")
    assert manifest.accepted
    assert manifest.figures["held_out_scans"] == manifest.figures["held_out_subjects"] == 0
    assert manifest.figures["training_heads"] == 3
    assert manifest.figures["train_face_median_mm"] > 0


def test_scans_without_hair_do_not_count_there() -> None:
    bald, upper = _scan(), _scan().clean.vertices[:, 1] > 20
    haired = replace(bald, key="002/neutral", hair=np.asarray(upper))
    rows = [(s.key, method_entry(evaluate_scan(s, [_Grown("g", 3.0)], SMALL, 1).methods["g"])) for s in (bald, haired)]
    summary = summarise(rows, ("face", "hair"), np.random.default_rng(0))
    assert (summary["face_scans"], summary["hair_scans"], summary["failures"]) == (2, 1, 0)
    assert summary["hair"]["point_to_triangle_mm"]["mean"] == pytest.approx(3.0, abs=0.3)


def test_noisy_clouds_come_without_the_clean_normals() -> None:
    seen: list[Observation] = []

    class _Looking(_Grown):
        def fit(self, observations: Any, seed: int) -> Any:
            seen.extend(observations)
            return super().fit(observations, seed)

    for noise in (0.0, 1.0):
        evaluate_scan(_scan(), [_Looking("g", 3.0)], SMALL.model_copy(update={"noise_mm": noise}), 1)
    assert seen[0].normals is not None
    assert seen[1].normals is None
    assert 0.5 < np.abs(seen[1].points_mm - seen[0].points_mm).max() < 6


def _with_protocols(workspace: Workspace, *names: Any, scans: int = 6) -> Workspace:
    settings = ProtocolsConfig(names=names, scans=scans)
    config = workspace.config.model_copy(update={"protocols": settings})
    return Workspace(workspace.store, config, {**workspace.steps, "protocols": PROTOCOLS})


def test_protocols_are_measured_once_and_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = _workspace(tmp_path, held_out=("003",))
    real, calls = protocols._measured, 0

    def cut_off(*told: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return real(*told)

    monkeypatch.setattr(protocols, "_measured", cut_off)
    workspace = _with_protocols(plain, "rig")
    with pytest.raises(KeyboardInterrupt):
        run_protocols(workspace, "first")
    assert workspace.manifest("protocols", "first") is None
    manifest = run_protocols(workspace, "first")
    assert calls == 3  # the first scan was not fitted again
    assert manifest.figures == {"rig": {"fits": 4, "failures": 0}}
    assert workspace.store.list("checkpoints") == []
    document = json.loads(workspace.read(manifest, "rig/protocol.json"))
    assert [(row["level"], row["key"]) for row in document["rows"]] == [("dome", "003/neutral"), ("dome", "003/smile")]
    assert set(document["levels"]["dome"]) == {"nphm", "pca"}
    assert "| dome | face | pca | 2 | 0 |" in workspace.read(manifest, "rig/table.md").decode()
    lines = workspace.read(manifest, "rig/table.csv").decode().splitlines()
    assert len(lines) == 1 + 2 * 2 * 3
    assert lines[0].startswith("level,key,method,region,failure,")
    assert workspace.read(manifest, "rig/table.tex").decode().count("dome & ") == 2 * 3

    run_protocols(_with_protocols(plain, "rig", "canonical"), "first")
    assert calls == 5  # its two levels alone
    outputs = run_protocols(workspace, "first").outputs
    assert calls == 5
    assert outputs["rig/protocol.json"] == manifest.outputs["rig/protocol.json"]


def test_what_protocols_look_at(tmp_path: Path) -> None:
    workspace = _with_protocols(_workspace(tmp_path, held_out=("003",)))
    for name, levels in (("points", 6), ("noise", 4), ("yaw", 5)):
        found = cases(workspace, name)  # type: ignore[arg-type]
        assert len(found) == 2 * levels
        assert len({case.level for case in found}) == levels
    assert [case.keys for case in cases(workspace, "canonical")] == [("003/neutral",)] * 2
    with pytest.raises(ConfigError, match="joint"):
        cases(workspace, "joint")  # two expressions are too few
    assert {case.keys for case in cases(_with_protocols(workspace, scans=1), "yaw")} == {("003/neutral",)}
    assert set(get_args(Protocol)) == set(WHAT)


def test_looks_of_a_protocol_differ_in_what_it_varies_alone(tmp_path: Path) -> None:
    workspace = _with_protocols(_workspace(tmp_path, held_out=("003",)))
    noisy = workspace.config.model_copy(update={"evaluate": SMALL.model_copy(update={"noise_mm": 0.75})})
    workspace = Workspace(workspace.store, noisy, workspace.steps)
    varied = {"points": {"points"}, "noise": {"noise_mm"}, "yaw": {"yaw_deg"}, "canonical": {"whole"}, "rig": set()}
    for name, fields in varied.items():
        looks = [asdict(case.look) for case in cases(workspace, name)]  # type: ignore[arg-type]
        assert {field for field in looks[0] if len({look[field] for look in looks}) > 1} == fields
        assert name == "noise" or {look["noise_mm"] for look in looks} == {0.75}


def test_all_round_has_noise_too() -> None:
    clean, noisy = (Look(500, mm, whole=True).of(_scan(), SMALL, np.random.default_rng(0)) for mm in (0.0, 2.0))
    moved = np.linalg.norm(noisy.points_mm - clean.points_mm, axis=1)
    assert moved.std() > 0.5
    np.testing.assert_array_equal(noisy.normals, clean.normals)


def test_scans_of_one_person_are_fitted_together() -> None:
    told: list[int] = []

    class _Counting(_Grown):
        def fit(self, observations: Any, seed: int) -> Any:
            told.append(len(observations))
            return tuple(super(_Counting, self).fit([one], seed)[0] for one in observations)

    scans = [_scan(), replace(_scan(), key="001/smile")]
    results = evaluate_together(scans, [_Counting("g", 3.0)], Look(SMALL.points), SMALL, [1, 2])
    assert told == [2]
    assert [result.scan.key for result in results] == ["001/neutral", "001/smile"]
    assert not np.array_equal(results[0].cloud.points_mm, results[1].cloud.points_mm)


def test_a_look_from_the_left_sees_the_left(tmp_path: Path) -> None:
    seen = Look(500, yaw_deg=90.0).of(_scan(), SMALL, np.random.default_rng(0)).points_mm
    assert seen[:, 0].min() > -20
    behind = Look(500, yaw_deg=180.0).of(_scan(), SMALL, np.random.default_rng(0)).points_mm
    assert behind[:, 2].max() < 20
    whole = Look(500, whole=True).of(_scan(), SMALL, np.random.default_rng(0)).points_mm
    assert whole[:, 2].max() > 40
    assert whole[:, 2].min() < -40


def test_another_flame_file_than_the_settings_mean_is_refused(tmp_path: Path) -> None:
    workspace = _workspace(tmp_path, held_out=("003",))
    config = SMALL.model_copy(update={"linear": ("flame",), "flame_file": "flame.pkl", "flame_sha256": "0" * 64})
    told = workspace, ("001", "002"), _template(), config
    with pytest.raises(ConfigError, match="FLAME file is missing"):
        linear_fitters(*told)
    workspace.store.put("flame.pkl", b"something else")
    with pytest.raises(ConfigError, match="is another FLAME file"):
        linear_fitters(*told)
    (learnt,) = linear_fitters(*told[:3], SMALL.model_copy(update={"linear": ("flame",)}))
    assert learnt.name == "flame"
    assert learnt.head.jaw is not None
