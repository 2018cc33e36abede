"""Held-out single views fitted by the head model and by what it is compared with, trained equally long.

All learn from the same registrations and samples of 12 people with 4 expressions; 6 others are held out. The model and
the neural baselines are trained by the pipeline's own steps, so many steps as the minutes hold on this machine by a few
that were timed. ICT's heads are drawn from a linear model, which flatters the linear heads. ``face_over_pca`` is over
modes of identity and expression, which is harder to beat than modes of identity alone (``face_over_bfm``). NPM's and
ImFace's networks are narrower than their authors', so that 2 cores take enough steps.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.field_data import TrainingSet, kept
from benchmarks.field_training import Kind, steps_in
from benchmarks.paper_head import people
from benchmarks.timing import shown
from model.baseline_config import ImFaceTraining, NpmTraining
from model.baselines import Baseline, baseline
from model.config import ImFaceConfig, StageConfig
from model.fit_config import FitConfig, PcaConfig
from model.head_fitter import NphmFitter
from model.metrics import ratio_interval
from model.observation import HeadFitter
from model.trained_model import new_model
from pipeline.baselines import baseline_fitters
from pipeline.baselines_config import BaselinesConfig
from pipeline.compared import held_out_scans, linear_fitters
from pipeline.config import PipelineConfig, preset_config
from pipeline.evaluate import load_model, read_scan
from pipeline.evaluate_config import EvaluateConfig
from pipeline.evaluation import evaluate_scan, method_entry
from pipeline.evaluation_pictures import scan_sheet
from pipeline.execute import execute_in
from pipeline.keys import subject_of
from pipeline.train import use_landmarks
from pipeline.train_config import TrainConfig, TrainThresholds
from pipeline.workspace import Workspace
from registration.pictures import to_png
from storage.digest import digest_json

MINUTES, QUICK_MINUTES, THREADS = 12.0, 0.1, 2
SHARE_OF_SHAPE = 0.6
"""Of a training's time; expressions have the rest."""
LINEAR = ("pca", "bfm", "flame")
PICTURE = 288
_TOLD_COLUMNS = 2
"""Of a picture: the points and the scan, the same for every method."""


def comparison_rows(work: Path, quick: bool) -> dict[str, float]:
    """Train what is to be trained, fit each held-out scan with every method, and compare the faces."""
    config = preset_config("demo" if quick else "small").evaluate
    config = config.model_copy(update={"linear": LINEAR})
    if quick:
        few = FitConfig(points=500, starts=2, start_points=100, iterations=4)
        linear = PcaConfig(identity_modes=8, expression_modes=8, iterations=8)
        sizes = {"most_scans": 1, "resolution": 64, "samples": 10_000, "render_scale": 0.25}
        config = config.model_copy(update=sizes | {"fit": few, "pca": linear})
    return shown(compare(work, people(work, quick)[0], QUICK_MINUTES if quick else MINUTES, THREADS, config))


def compare(work: Path, sampled: Workspace, minutes: float, threads: int, config: EvaluateConfig) -> dict[str, float]:
    """The comparison in a workspace that is sampled.

    A killed one goes on: trainings from their last checkpoints, and finished rows are kept.

    Args:
        work: where rows and pictures are kept.
        sampled: the workspace; its models and baselines are made in it.
        minutes: of training a method, on so many threads.
        threads: of training and fitting.
        config: how scans are fitted and measured.
    """
    config = config.model_copy(update={"fit": config.fit.model_copy(update={"threads": threads})})
    workspace = Workspace(sampled.store, _settings(work, sampled, minutes, threads), sampled.steps)
    model = execute_in(workspace, "train", "").key
    execute_in(workspace, "baselines", model)
    head = load_model(workspace, model)
    fitters: list[HeadFitter] = [NphmFitter(head, config.fit, config.resolution)]
    fitters += baseline_fitters(workspace, model, config)
    fitters += linear_fitters(workspace, head.subjects, head.template, config)
    return compared(fitted_rows(work, workspace, fitters, config, learnt(workspace, model)))


def learnt(workspace: Workspace, model: str) -> dict[str, str]:
    """By method, a digest of what it was trained to or, where that is quick, of what it learns from."""
    trained, baselines = workspace.accepted("train", model), workspace.manifest("baselines", model)
    registered = {name: sha for name, sha in trained.inputs.items() if name.startswith("register/")}
    found = {"nphm": trained.outputs_digest()} | dict.fromkeys(LINEAR, digest_json(registered))
    files: dict[str, dict[str, str]] = {}
    for place, output in (baselines.outputs if baselines is not None else {}).items():
        name, _, file = place.partition("/")
        files.setdefault(name, {})[file] = output.sha256
    return found | {name: digest_json(own) for name, own in files.items()}


def fitted_rows(
    work: Path,
    workspace: Workspace,
    fitters: Sequence[HeadFitter],
    config: EvaluateConfig,
    trained: Mapping[str, str],
) -> dict[str, dict[str, Any]]:
    """Every method on every held-out scan, as ``pipeline.evaluation.method_entry``, and their pictures side by side.

    Args:
        work: where finished rows are kept.
        workspace: has the scans.
        fitters: the methods.
        config: how scans are fitted and measured.
        trained: by method, a digest of what it was trained to.
    """
    settings = config.model_dump(mode="json", exclude={"most_scans", "linear"})
    told = {fitter.name: digest_json([trained[fitter.name], settings])[:12] for fitter in fitters}
    rows: dict[str, dict[str, Any]] = {}
    for key in held_out_scans(workspace, config.most_scans):
        names = {
            fitter.name: f"comparison-{key.replace('/', '-')}-{fitter.name}-{told[fitter.name]}" for fitter in fitters
        }
        rows[key] = {fitter.name: _row(work, workspace, key, fitter, config, names[fitter.name]) for fitter in fitters}
        _side_by_side(work, key, list(names.values()))
    return rows


def _row(
    work: Path, workspace: Workspace, key: str, fitter: HeadFitter, config: EvaluateConfig, name: str
) -> dict[str, Any]:
    """One method on one scan, and its picture."""

    def make() -> dict[str, Any]:
        scan = read_scan(workspace, key, workspace.template())
        result = evaluate_scan(scan, [fitter], config, workspace.seed("evaluate", key))
        (work / "rows").mkdir(parents=True, exist_ok=True)
        (work / "rows" / f"{name}.png").write_bytes(to_png(scan_sheet(result, PICTURE)))
        entry = method_entry(result.methods[fitter.name])
        face = _error_mm(entry, "face")
        print(f"  {key}, {fitter.name}: {face if face is not None else entry['failure']}", flush=True)
        return entry

    return dict(kept(work / "rows" / f"{name}.json", make))


def _side_by_side(work: Path, key: str, names: list[str]) -> None:
    """All methods' pictures of one scan in one."""
    parts = [np.asarray(Image.open(io.BytesIO((work / "rows" / f"{name}.png").read_bytes()))) for name in names]
    whole = np.concatenate([parts[0], *[part[:, _TOLD_COLUMNS * PICTURE :] for part in parts[1:]]], 1)
    (work / f"comparison-{key.replace('/', '-')}.png").write_bytes(to_png(whole))


def _settings(work: Path, workspace: Workspace, minutes: float, threads: int) -> PipelineConfig:
    """The workspace's settings with steps that take so many minutes of each method's training."""
    data = TrainingSet.of(workspace)
    train = preset_config("small").train
    training = train.training.model_copy(update={"threads": threads, "checkpoint_every": 50})
    train = train.model_copy(update={"training": training})
    baselines = BaselinesConfig(methods=("npm", "imface", "npm_4x"), npm=_npm(), imface=_imface())
    methods: dict[str, Baseline | None] = {"nphm": None}
    methods |= {name: baseline(name, baselines.npm, baselines.imface) for name in ("npm", "imface")}
    found = {name: _steps(work, data, train, name, method, minutes) for name, method in methods.items()}
    train = train.model_copy(update={"training": _with_steps(training, found["nphm"])})
    npm, imface = (_with_steps(getattr(baselines, name), found[name]) for name in ("npm", "imface"))
    baselines = baselines.model_copy(update={"npm": npm, "imface": imface})
    # however far minutes bring it, it is measured
    any_error = TrainThresholds(most_face_median_mm=1e3, most_posed_mean_mm=1e3)
    thresholds = workspace.config.thresholds.model_copy(update={"train": any_error})
    update = {"train": train, "baselines": baselines, "model_name": None, "thresholds": thresholds}
    return workspace.config.model_copy(update=update)


def _with_steps(settings: Any, steps: Mapping[str, int]) -> Any:
    stages = {name: getattr(settings, name).model_copy(update={"steps": count}) for name, count in steps.items()}
    return settings.model_copy(update=stages)


def _steps(
    work: Path, data: TrainingSet, train: TrainConfig, name: str, method: Baseline | None, minutes: float
) -> dict[str, int]:
    """Steps of both stages that take so many minutes."""
    training = train.training if method is None else method.training(train.training)
    shares: dict[Kind, float] = {"stage1": SHARE_OF_SHAPE, "stage2": 1 - SHARE_OF_SHAPE}

    def make() -> dict[str, int]:
        batches = data.with_batches(train if method is None else train.model_copy(update={"blends_per_step": 0}))
        with batches.identity, batches.deformation:
            if method is not None:
                use_landmarks(data.workspace, method.landmarks, data.scans, batches.identity, batches.deformation)
                mean = batches.identity.anchors_mm.mean(0, dtype=np.float64)
                own = method.data(replace(batches.data, mean_anchors_mm=mean))
                batches = replace(batches, data=own, identity=own.identity, deformation=own.deformation)
            model = new_model(training, batches.data, 0)
            steps = {kind: steps_in(training, model, batches, share * minutes, kind) for kind, share in shares.items()}
        print(f"{name}: {steps} in {minutes:g} minutes of {training.threads} threads", flush=True)
        return steps

    told = digest_json([data.digest, minutes, shares, training.model_dump(mode="json")])[:12]
    return dict(kept(work / "rows" / f"comparison-steps-{name}-{told}.json", make))


def _npm() -> NpmTraining:
    """NPM with networks of 256 in place of 1,024, and rates for fewer steps."""
    stages = {
        name: StageConfig(steps=0, learning_rate=1e-3, code_learning_rate=rate, code_init=0.1, weight_decay=decay)
        for name, rate, decay in (("stage1", 5e-3, 0.02), ("stage2", 1e-2, 1e-5))
    }
    return NpmTraining(width=256, expression_dim=64, **stages)


def _imface() -> ImFaceTraining:
    """ImFace with networks of 64 in place of 128, and rates for fewer steps."""
    sizes = ImFaceConfig(code_dim=64, width=64, hyper_hidden=32, fusion_hidden=64)
    stage = StageConfig(steps=0, learning_rate=1e-3, code_learning_rate=5e-3, code_init=0.1)
    return ImFaceTraining(sizes=sizes, stage1=stage, stage2=stage)


def compared(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Means of the point-to-triangle distances; of the face's their ratios, with intervals over subjects.

    A method that failed on a scan has no distance there: the ratio is over the scans that both have, and the failures
    stand beside it.

    Args:
        rows: by scan and method, as ``pipeline.evaluation.method_entry``.
    """
    figures: dict[str, float] = {"comparison_scans": len(rows)}
    errors = {
        name: {key: error for key, row in rows.items() if (error := _error_mm(row[name], "face")) is not None}
        for name in next(iter(rows.values()))
    }
    for name, of_scan in errors.items():
        figures[f"comparison_{name}_failures"] = len(rows) - len(of_scan)
        if of_scan:
            figures[f"comparison_{name}_face_mm"] = float(np.mean(list(of_scan.values())))
        heads = [error for row in rows.values() if (error := _error_mm(row[name], "head")) is not None]
        if heads:  # ImFace models none
            figures[f"comparison_{name}_head_mm"] = float(np.mean(heads))
    if errors["nphm"]:
        figures["fit_face_mm"] = figures["comparison_nphm_face_mm"]
    for name, theirs in errors.items():
        both = sorted(set(errors["nphm"]) & set(theirs))
        if name == "nphm" or not both:
            continue
        ours_by, theirs_by = _by_subject(errors["nphm"], both), _by_subject(theirs, both)
        figures[f"face_over_{name}"] = sum(errors["nphm"][key] for key in both) / sum(theirs[key] for key in both)
        low, high = ratio_interval(ours_by, theirs_by, np.random.default_rng(0))
        figures |= {f"face_over_{name}_low": low, f"face_over_{name}_high": high}
    return figures


def _error_mm(entry: Mapping[str, Any], region: str) -> float | None:
    error = entry["regions"].get(region, {}).get("point_to_triangle_mm")
    return None if error is None else float(error)


def _by_subject(errors: Mapping[str, float], keys: list[str]) -> dict[str, list[float]]:
    by: dict[str, list[float]] = {}
    for key in keys:
        by.setdefault(subject_of(key), []).append(errors[key])
    return by
