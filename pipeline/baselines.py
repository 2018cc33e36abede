"""The baselines step: the neural heads that a model is compared with, trained on what it was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.baselines_config import BaselinesConfig
from pipeline.train import Training
from storage.manifest import Manifest

if TYPE_CHECKING:
    from model.baseline_config import BaselineName
    from model.head_fitter import NphmFitter
    from model.head_model import HeadModel
    from pipeline.evaluate_config import EvaluateConfig
    from pipeline.workspace import Workspace

_MODEL_FILES = ("model.safetensors", "codes.safetensors", "config.json", "template.npz")


def run_baselines(workspace: Workspace, key: str) -> Manifest:
    """Train each method that the settings name, or go on from its last checkpoint; publish a model folder of each.

    What stands of a method with the same settings and inputs is taken over.

    Args:
        workspace: with accepted results of ``train``, ``sample`` and ``register``.
        key: the model's name.

    Raises:
        ConfigError: a result that it needs is missing.
        StorageConflict: an input is damaged.
    """
    from model.baselines import baseline  # torch: loaded by the steps that need it alone

    inputs = workspace.inputs("baselines", key)
    config: BaselinesConfig = workspace.config.of_step("baselines")  # type: ignore[assignment]
    outputs: dict[str, bytes] = {}
    figures: dict[str, Any] = {}
    trainings: list[Training] = []
    for name in config.methods:
        made = _standing(workspace, key, inputs, name)
        if made is None:
            method = baseline(name, config.npm, config.imface)
            trainings.append(Training(workspace, f"{key}/{name}", inputs, baseline=method))
            made = trainings[-1].files()
            assert made is not None
        outputs |= {f"{name}/{file}": data for file, data in made[0].items()}
        figures[name] = made[1]
    manifest = workspace.commit("baselines", key, inputs=inputs, outputs=outputs, figures=figures)
    for training in trainings:
        training.checkpoints.clear()
    return manifest


def baseline_fitters(workspace: Workspace, model: str, config: EvaluateConfig) -> list[NphmFitter]:
    """What fits the baselines of a model, those that its workspace's settings name.

    Raises:
        ConfigError: they have not been trained.
        StorageConflict: their files are damaged.
    """
    from model.baselines import baseline
    from model.head_model import HeadModel

    settings: BaselinesConfig = workspace.config.of_step("baselines")  # type: ignore[assignment]
    fit = config.fit.model_copy(update={"noise_mm": config.baseline_noise_mm})
    fitters = []
    for name in settings.methods:
        manifest = workspace.accepted("baselines", model)
        files = {file: workspace.read(manifest, f"{name}/{file}") for file in _MODEL_FILES}
        head: HeadModel = HeadModel.from_files(files, where=f"baselines/{model}/{name}")
        fitters.append(baseline(name, settings.npm, settings.imface).fitter(head, fit, config.resolution))
    return fitters


def _standing(
    workspace: Workspace, key: str, inputs: dict[str, str], name: BaselineName
) -> tuple[dict[str, bytes], dict[str, Any]] | None:
    """Files and figures of a method that was trained with today's settings on today's inputs; None without such."""
    old, now = workspace.manifest("baselines", key), workspace.config.resolved("baselines")
    section = "imface" if name == "imface" else "npm"
    if old is None or (old.inputs, old.step_version) != (inputs, workspace.steps["baselines"].version):
        return None
    if name not in old.config["methods"] or any(old.config[part] != now[part] for part in (section, "run_seed")):
        return None
    if workspace.damage(old) is not None:
        return None
    lead = f"{name}/"
    files = {file.removeprefix(lead): workspace.read(old, file) for file in old.outputs if file.startswith(lead)}
    return files, old.figures[name]
