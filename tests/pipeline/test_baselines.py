"""The baselines step: nothing by default; what the settings name is trained, resumed, kept and taken back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from model.baseline_config import BaselineName, ImFaceTraining, NpmTraining
from model.config import ImFaceConfig, StageConfig
from pipeline.baselines import baseline_fitters, run_baselines
from pipeline.baselines_config import STEP_VERSION, BaselinesConfig, are_wanted, judge_baselines
from pipeline.config import PipelineConfig
from pipeline.evaluate_config import EvaluateConfig
from pipeline.garbage import find_garbage
from pipeline.inputs import expected_inputs
from pipeline.planner import decide
from pipeline.stepspec import Need, StepSpec
from pipeline.train_config import TrainConfig
from pipeline.workspace import Workspace
from registration.mesh import Mesh, mesh_to_ply
from storage.errors import ConfigError
from tests.pipeline.test_train import ANCHORS, RADII_MM, sampled_workspace, small_training

SPEC = StepSpec(
    "baselines", "baselines", STEP_VERSION, run_baselines, judge_baselines, scope="model",
    needs=(Need("train", "model"), Need("sample", "train"), Need("register", "train")), wanted=are_wanted,
)  # fmt: skip


class _Config(PipelineConfig):
    train: TrainConfig = small_training()


def _stage(steps: int) -> StageConfig:
    return StageConfig(steps=steps, learning_rate=1e-3, code_learning_rate=1e-3, code_init=0.1, warmup_steps=2)


def _settings(*methods: BaselineName, imface_steps: int = 10) -> BaselinesConfig:
    npm = NpmTraining(code=40, expression_dim=4, width=64, layers=4, skip_layer=2, stage1=_stage(10), stage2=_stage(5))
    sizes = ImFaceConfig(code_dim=4, width=8, layers=2, hyper_hidden=4, fusion_hidden=8)
    imface = ImFaceTraining(sizes=sizes, stage1=_stage(imface_steps), stage2=_stage(5))
    return BaselinesConfig(methods=methods, npm=npm, imface=imface)


def _with(workspace: Workspace, settings: BaselinesConfig) -> Workspace:
    return Workspace(workspace.store, _Config(baselines=settings), workspace.steps)


def _workspace(root: Path, settings: BaselinesConfig) -> Workspace:
    """Two sampled ellipsoids with registrations, and a model that nobody opens."""
    plain = sampled_workspace(root)
    workspace = Workspace(plain.store, _Config(baselines=settings), {**plain.steps, "baselines": SPEC})
    for subject, radii in RADII_MM.items():
        for expression in ("neutral", "smile"):
            key = f"{subject}/{expression}"
            frame = plain.read(plain.accepted("register", key), "frame.json")
            mesh = Mesh.of(ANCHORS * np.array(radii), [[0, 1, 2], [0, 1, 3]])
            outputs = {"frame.json": frame, "mesh.ply": mesh_to_ply(mesh)}
            workspace.commit("register", key, inputs={}, outputs=outputs)
    workspace.commit("train", "first", inputs={}, outputs={"model.safetensors": b"weights"})
    return workspace


def _published(workspace: Workspace) -> dict[str, bytes]:
    return {path: workspace.store.get(path) for path in workspace.store.list("baselines")}


def test_by_default_there_is_nothing_to_do(tmp_path: Path) -> None:
    workspace = _workspace(tmp_path, BaselinesConfig())
    assert decide(workspace, SPEC, "first") is None
    evaluate = StepSpec("evaluate", "evaluations", 1, None, judge_baselines, "model",
                        (Need("train", "model"), Need("baselines", "model", optional=True)))  # fmt: skip
    assert list(expected_inputs(workspace, evaluate, "first")) == ["train/model.safetensors"]
    assert baseline_fitters(workspace, "first", EvaluateConfig()) == []


def test_what_is_named_is_trained_kept_and_taken_back(tmp_path: Path) -> None:
    workspace = _workspace(tmp_path, _settings("npm", "imface"))
    action = decide(workspace, SPEC, "first")
    assert action is not None
    assert (action.kind, action.why) == ("compute", "never computed")
    with pytest.raises(ConfigError, match="no accepted result of baselines"):
        baseline_fitters(workspace, "first", EvaluateConfig())
    manifest = run_baselines(workspace, "first")
    assert {name.partition("/")[0] for name in manifest.outputs} == {"npm", "imface"}
    assert manifest.figures["imface"]["subjects"] == 2
    assert manifest.figures["imface"]["anchors_mean_mm"] > 0
    assert "anchors_mean_mm" not in manifest.figures["npm"]
    assert workspace.store.list("checkpoints") == []
    assert decide(workspace, SPEC, "first") is None
    fitters = baseline_fitters(workspace, "first", EvaluateConfig())
    assert [fitter.name for fitter in fitters] == ["npm", "imface"]
    centre = fitters[1].head.mean_anchors_mm[2]
    assert centre == pytest.approx(ANCHORS[0] * np.mean(list(RADII_MM.values()), 0), abs=1e-3)
    off = decide(_with(workspace, BaselinesConfig()), SPEC, "first")
    assert off is not None
    assert (off.kind, off.why) == ("withdraw", "the settings do not ask for it any more")


def test_a_training_cut_off_goes_on_and_what_stands_is_taken_over(tmp_path: Path) -> None:
    whole = _workspace(tmp_path / "whole", _settings("npm", "imface"))
    run_baselines(whole, "first")
    cut = _workspace(tmp_path / "cut", _settings("npm", "imface"))
    steps: list[int] = []

    def tell(done: int, total: int, note: str) -> None:
        steps.append(done)
        if len(steps) == 15 + 9:
            raise KeyboardInterrupt

    cut.tell = tell
    with pytest.raises(KeyboardInterrupt):
        run_baselines(cut, "first")
    assert _published(cut) == {}
    for settings, whys in ((_settings("npm", "imface"), set()), (BaselinesConfig(), {"its model is finished"})):
        litter = find_garbage(_with(cut, settings))
        assert {one.why for one in litter if one.path.startswith("checkpoints/")} == whys
    run_baselines(cut, "first")
    assert steps[24:] == [*range(8, 16)]  # NPM was done, and the last checkpoint was after the seventh step
    assert _published(cut) == _published(whole)
    other = _with(whole, _settings("npm", "imface", imface_steps=12))
    told: list[int] = []
    other.tell = lambda done, total, note: told.append(total)
    manifest = run_baselines(other, "first")
    assert set(told) == {17}
    assert (
        manifest.outputs["npm/model.safetensors"] == cut.accepted("baselines", "first").outputs["npm/model.safetensors"]
    )


def test_a_method_named_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match="names one twice"):
        BaselinesConfig(methods=("npm", "npm"))
