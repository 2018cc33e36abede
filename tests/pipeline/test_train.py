"""The train step over a workspace of two ellipsoids: a model folder comes out, whatever happens on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from model import HeadModel
from model.config import (
    ColorConfig,
    DeformationConfig,
    FieldConfig,
    IdentityConfig,
    StageConfig,
    TrainingConfig,
    ValidationConfig,
)
from pipeline.config import PipelineConfig
from pipeline.sample_format import (
    SAMPLES_ROOT,
    SETS,
    DeformationSamples,
    IdentitySamples,
    encode_rows,
    encode_samples,
    quantise_samples,
)
from pipeline.stepspec import Need, StepSpec
from pipeline.train import is_for_validation, retrain, run_train
from pipeline.train_config import STEP_VERSION, TrainConfig, TrainThresholds, judge_train
from pipeline.training_scans import mean_plane
from pipeline.workspace import Workspace
from registration.mesh import Mesh, mesh_to_ply
from registration.template import Template
from storage.digest import digest_bytes
from storage.errors import ConfigError
from storage.manifest import Output
from storage.store import LocalStore

RADII_MM = {"001": (60.0, 80.0, 75.0), "002": (75.0, 90.0, 70.0)}
ANCHORS = np.array([[-1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]], np.float32)


def small_training() -> TrainConfig:
    def stage(steps: int) -> StageConfig:
        return StageConfig(steps=steps, learning_rate=5e-3, code_learning_rate=5e-3, code_init=0.1, warmup_steps=3)

    training = TrainingConfig(
        field=FieldConfig(
            identity=IdentityConfig(global_dim=6, local_dim=4, hidden=(12, 12), anchor_hidden=(12,)),
            deformation=DeformationConfig(expression_dim=4, compressed_dim=4, hidden=(12, 12), skip_layer=None),
        ),
        stage1=stage(40),
        stage2=stage(20),
        threads=1,
        record_every=10,
        checkpoint_every=7,
    )
    points = {"surface_points": 100, "near_points": 100, "space_points": 50, "pair_points": 60}
    # neither subjects nor scans end an epoch with a checkpoint
    return TrainConfig(training=training, subjects_per_step=1, scans_per_step=3, **points)


class _Thresholds(BaseModel):
    model_config = ConfigDict(frozen=True)
    train: TrainThresholds = TrainThresholds(most_face_median_mm=50, most_posed_mean_mm=50)


class _Config(PipelineConfig):
    train: TrainConfig = small_training()
    thresholds: _Thresholds = _Thresholds()  # type: ignore[assignment]


def _unused(workspace: Workspace, key: str) -> Any:
    raise AssertionError


def _template() -> Template:
    none = np.zeros((0, 4, 3), np.float32)
    return Template(
        "four points",
        Mesh.of(ANCHORS * 70, [[0, 1, 2], [0, 1, 3]]),
        np.zeros(68, np.int32),
        np.arange(4, dtype=np.int32),
        1,
        np.zeros(4, np.uint8),
        np.ones(4, bool),
        np.array([1, 0, 2, 3], np.int32),
        np.arange(3, dtype=np.int32),
        none,
        none,
    )


def _shift(expression: str) -> NDArray[np.float32]:
    return np.array([0, 0 if expression == "neutral" else 5, 0], np.float32)


def _samples(subject: str, expression: str, every_scan: bool) -> list[IdentitySamples | DeformationSamples]:
    rng = np.random.default_rng([int(subject), len(expression)])
    radii = np.array(RADII_MM[subject])
    pairs = rng.uniform(-80, 80, (500, 3)).astype(np.float32)
    shift = _shift(expression)
    moved = DeformationSamples(pairs, pairs + shift, np.zeros(500, np.uint8), np.ones(500, np.float32))
    if expression != "neutral" and not every_scan:
        return [moved]
    unit = rng.normal(size=(800, 3))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    surface, normal = unit * radii, unit / radii
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    offset = rng.normal(size=800) * 3
    space = rng.uniform(-110, 110, (400, 3))
    scaled = np.linalg.norm(space / radii, axis=1)
    yes, kind = np.ones(800, bool), np.zeros(800, np.uint8)
    shape = IdentitySamples(
        (surface + shift).astype(np.float32),
        normal.astype(np.float32),
        kind,
        yes,
        yes,
        (surface + shift + offset[:, None] * normal).astype(np.float32),
        offset.astype(np.float32),
        yes,
        space.astype(np.float32),
        ((scaled - 1) * np.linalg.norm(space, axis=1) / scaled).astype(np.float32),
        yes[:400],
        (ANCHORS * radii).astype(np.float32),
    )
    return [shape, moved]


def sampled_workspace(root: Path, config: PipelineConfig | None = None, rich: bool = False) -> Workspace:
    """A workspace with samples; a rich one has distances in every scan, and colour of its first subject."""

    def spec(name: str, folder: str) -> StepSpec:
        return StepSpec(name, folder, 1, _unused, lambda figures, thresholds: [])

    needs = (Need("sample", "train"), Need("register", "train"))
    train = StepSpec(
        "train", "models", STEP_VERSION, run_train, judge_train, scope="model", needs=needs, uses_template=True
    )
    steps = [spec("ingest", "ingest"), spec("clean", "clean"), spec("register", "registrations")]
    steps += [spec("sample", "samples"), train]
    store = LocalStore(root)
    store.put("template.npz", _template().to_bytes())
    workspace = Workspace(store, config or _Config(), {one.name: one for one in steps})
    for subject in RADII_MM:
        for expression in ("neutral", "smile"):
            key = f"{subject}/{expression}"
            told = {"canonical_expression": "neutral", "content_digest": "0"}
            workspace.commit("ingest", key, inputs={}, outputs={"taken.json": b"{}"}, extra=told)
            workspace.commit("clean", key, inputs={}, outputs={"mesh.ply": b""})
            frame = json.dumps({"throat_plane": [0, 1, 0, 60 + int(subject)]}).encode()
            registered = Mesh.of(ANCHORS * RADII_MM[subject] + _shift(expression), _template().mesh.faces)
            outputs_of = {"frame.json": frame, "mesh.ply": mesh_to_ply(registered)}
            workspace.commit("register", key, inputs={}, outputs=outputs_of)
            stored: dict[str, Any] = {}
            for one in _samples(subject, expression, rich):
                stored |= quantise_samples(one, key)
            if rich and key == "001/neutral":
                red = np.array([[250, 10, 10]], np.uint8).repeat(400, 0)
                stored |= encode_rows("color", {"colored": ANCHORS.repeat(100, 0) * 70, "color": red}, key)
            rows = {part: len(stored[columns[0]]) for part, columns in SETS.items() if columns[0] in stored}
            outputs: dict[str, bytes | Output] = {}
            for path, data in encode_samples(stored, {"rows": rows}).items():
                place = f"{SAMPLES_ROOT}/{key}/{path}"
                store.put(place, data)
                outputs[path] = Output(path=place, bytes=len(data), sha256=digest_bytes(data))
            workspace.commit("sample", key, inputs={}, outputs=outputs)
    return workspace


def _published(workspace: Workspace) -> dict[str, bytes]:
    return {path: workspace.store.get(path) for path in workspace.store.list("models")}


def test_a_model_folder_comes_out(tmp_path: Path) -> None:
    workspace = sampled_workspace(tmp_path)
    heard: list[tuple[int, int, str]] = []
    workspace.tell = lambda *at: heard.append(at)
    manifest = run_train(workspace, "first")
    assert manifest.accepted
    assert manifest.figures["subjects"] == 2
    assert manifest.figures["scans"] == 4
    assert manifest.figures["face_median_mm"] < 50
    head = HeadModel.load(tmp_path / "models/first")
    assert head.subjects == ("001", "002")
    assert head.scans == ("001/neutral", "001/smile", "002/neutral", "002/smile")
    assert head.throat_plane == pytest.approx([0, 1, 0, 61.5])
    assert head.box_mm[1] == pytest.approx([90, 105, 90], abs=1.5)
    curve = [json.loads(line) for line in workspace.read(manifest, "curve.jsonl").splitlines()]
    assert [(line["stage"], line["step"]) for line in curve] == [(1, 10), (1, 20), (1, 30), (1, 40), (2, 10), (2, 20)]
    assert json.loads(workspace.read(manifest, "metrics.json")) == manifest.figures
    assert heard[-1] == (60, 60, "stage2")
    assert workspace.store.list("checkpoints") == []


@pytest.mark.parametrize("stop", [3, 29, 51])
def test_a_training_cut_off_goes_on_and_ends_in_the_same_bytes(tmp_path: Path, stop: int) -> None:
    whole = sampled_workspace(tmp_path / "whole")
    run_train(whole, "first")
    cut = sampled_workspace(tmp_path / "cut")
    steps: list[int] = []

    def tell(done: int, total: int, note: str) -> None:
        steps.append(done)
        if len(steps) == stop:
            raise KeyboardInterrupt

    cut.tell = tell
    with pytest.raises(KeyboardInterrupt):
        run_train(cut, "first")
    assert _published(cut) == {}
    run_train(cut, "first")
    assert steps[stop] == (stop // 7 * 7 + 1 if stop < 40 else 48)
    assert _published(cut) == _published(whole)


def test_checkpoints_of_other_settings_are_not_taken_up(tmp_path: Path) -> None:
    workspace = sampled_workspace(tmp_path)

    def stop(done: int, total: int, note: str) -> None:
        if done == 20:
            raise KeyboardInterrupt

    workspace.tell = stop
    with pytest.raises(KeyboardInterrupt):
        run_train(workspace, "first")
    other = Workspace(workspace.store, _Config(seed=5), workspace.steps)
    steps: list[int] = []
    other.tell = lambda done, total, note: steps.append(done)
    run_train(other, "first")
    assert steps[0] == 1


def test_retraining_goes_on_from_a_model_under_a_name_of_its_own(tmp_path: Path) -> None:
    workspace = sampled_workspace(tmp_path)
    parent = run_train(workspace, "first")
    manifest = retrain(workspace, "first")
    assert manifest.key not in ("first", "")
    assert manifest.inputs["parent/model.safetensors"] == parent.outputs["model.safetensors"].sha256
    assert manifest.figures["known_subjects"] == 2
    assert manifest.figures["known_codes_moved"] > 0
    assert manifest.figures["known_face_median_mm"] < manifest.figures["parent_face_median_mm"]
    assert retrain(workspace, "first") == manifest
    with pytest.raises(ConfigError, match="no accepted result of train"):
        retrain(workspace, "nothing")


def test_subjects_set_aside_steer_and_are_not_learnt(tmp_path: Path) -> None:
    aside = [one for one in RADII_MM if is_for_validation(one, 0.5)]
    share = 0.5
    while len(aside) != 1:  # the ids alone decide
        share += 0.05 if not aside else -0.05
        aside = [one for one in RADII_MM if is_for_validation(one, share)]
    training = small_training().training.model_copy(update={"validation": ValidationConfig(every=20, fit_steps=2)})
    workspace = sampled_workspace(
        tmp_path, _Config(train=small_training().model_copy(update={"validation_share": share, "training": training}))
    )
    manifest = run_train(workspace, "first")
    assert manifest.figures["subjects"] == 1
    assert manifest.figures["validation_face_median_mm"] > 0
    assert HeadModel.load(tmp_path / "models/first").subjects == tuple(one for one in RADII_MM if one not in aside)


def test_checkpoints_bring_the_curve_for_tensorboard(tmp_path: Path) -> None:
    workspace = sampled_workspace(tmp_path)

    def stop(done: int, total: int, note: str) -> None:
        if done == 36:
            raise KeyboardInterrupt

    workspace.tell = stop
    with pytest.raises(KeyboardInterrupt):
        run_train(workspace, "first")
    kept = workspace.store.list("checkpoints")
    assert sum(path.endswith(".safetensors") for path in kept) == 2
    lines = workspace.store.get(next(path for path in kept if path.endswith("curve.jsonl"))).splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20, 30]
    assert any("tfevents" in path for path in kept)


def test_backward_on_posed_samples_with_colour(tmp_path: Path) -> None:
    small = small_training().model_dump()
    small["training"]["field"]["deformation"] |= {"direction": "backward", "hyper_dim": 2}
    small["training"]["field"]["color"] = ColorConfig(hidden=(8,)).model_dump()
    small["training"]["stage4"] = small["training"]["stage1"] | {"steps": 60, "code_init": 0.0}
    small |= {"posed_surface_points": 40, "posed_near_points": 40, "color_points": 50}
    small["training"]["joint"] = True
    config = _Config(train=TrainConfig.model_validate(small))
    manifest = run_train(sampled_workspace(tmp_path / "rich", config, rich=True), "first")
    assert manifest.figures["color_mean_error"] < 100
    head = HeadModel.load(tmp_path / "rich/models/first")
    assert head.appearance_codes is not None
    assert np.abs(head.appearance_codes).max(1)[0] > np.abs(head.appearance_codes).max(1)[1] == 0
    assert head.colors(ANCHORS * 70, "001").mean(0) == pytest.approx([250, 10, 10], abs=60)
    assert len(head.meshes("001", ["001/smile"], 24)[0].vertices)
    with pytest.raises(ConfigError, match="scan 1 of 4: has no surface samples"):
        run_train(sampled_workspace(tmp_path / "poor", config), "first")


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"need field\.deformation\.direction backward"):
        TrainConfig(posed_surface_points=10, posed_near_points=10)
    backward = {"field": {"deformation": {"direction": "backward"}}}
    with pytest.raises(ValidationError, match="go together"):
        TrainConfig.model_validate({"training": backward, "posed_near_points": 10})


def test_without_samples_there_is_nothing_to_train_on(tmp_path: Path) -> None:
    held_out = {"held_out_ids": ["001", "002"]}
    workspace = sampled_workspace(tmp_path, _Config.model_validate({"splits": held_out}))
    with pytest.raises(ConfigError, match="nothing to train on"):
        run_train(workspace, "first")


def test_verdict_names_value_and_limit() -> None:
    assert judge_train({"face_median_mm": 0.4, "posed_mean_mm": 1.0}, TrainThresholds()) == []
    reasons = judge_train({"face_median_mm": 2.5, "posed_mean_mm": float("nan")}, TrainThresholds())
    assert reasons[0] == "face_median_mm of the training data is 2.50, limit 2: train longer"
    assert len(reasons) == 2


def test_mean_plane_has_a_unit_normal() -> None:
    plane = mean_plane(np.array([[0, 2.0, 0, 200.0], [0, 1.0, 0, 90.0]]))
    assert plane == pytest.approx([0, 1, 0, 95])
