"""Named, frozen sets of held-out scans, and the errors of models on them: what promotions are decided by."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from pipeline.evaluate_config import STEP_VERSION, EvaluateConfig
from pipeline.keys import subject_of
from pipeline.workspace import Workspace
from storage.digest import canonical_json, digest_json
from storage.errors import ConfigError, StorageConflict, one_line
from storage.frozen import Frozen

if TYPE_CHECKING:
    from model.head_fitter import NphmFitter

FOLDER = "held_out"
FIGURE = "face, point to triangle, mm"


class HeldOutSet(Frozen):
    """Scans that no model trains on, frozen with their digests, so that models of other months can be compared."""

    name: str = Field(description="of the set; another choice of scans gets another name")
    scans: dict[str, str] = Field(description="digest of the clean scan and its registration, by key")

    @property
    def version(self) -> str:
        """Digest of what is in it."""
        return digest_json(self.scans)[:12]


def freeze(workspace: Workspace, name: str) -> HeldOutSet:
    """The set of that name; made of all accepted held-out scans when it is asked for the first time.

    Raises:
        ConfigError: there are no held-out scans to make it of.
        StorageConflict: its file is damaged.
    """
    path = f"{FOLDER}/{name}.json"
    try:
        return HeldOutSet.model_validate_json(workspace.store.get(path))
    except FileNotFoundError:
        pass
    except ValidationError as error:
        remedy = "put the file back, or name a new set in service.held_out_set"
        raise StorageConflict(one_line("is no held-out set", path, error.errors()[0]["msg"], remedy)) from error
    held_out = [key for key in workspace.scans() if workspace.split(subject_of(key)) == "held_out"]
    scans = {key: digest for key in held_out if (digest := scan_digest(workspace, key)) is not None}
    if not scans:
        remedy = "hold subjects out ('splits' in pipeline.toml), or ingest more"
        raise ConfigError(one_line("no held-out scan was registered", workspace.url, "", remedy))
    made = HeldOutSet(name=name, scans=scans)
    workspace.store.put(path, made.model_dump_json(indent=1).encode() + b"\n")
    return made


def scan_digest(workspace: Workspace, key: str) -> str | None:
    """Digest of the mesh and registration that a scan is evaluated with, or None where one was not accepted."""
    digests = []
    for step in ("clean", "register"):
        manifest = workspace.manifest(step, key)
        if manifest is None or not manifest.accepted:
            return None
        digests.append(manifest.outputs["mesh.ply"].sha256)
    return digest_json(digests)


def measure_model(workspace: Workspace, model: str, name: str) -> dict[str, float | None]:
    """A model's error on each scan of a held-out set that is as it was when the set was frozen.

    What was measured before with the same model, scan and settings is not measured again.

    Args:
        model: its name.
        name: of the set.

    Returns:
        Mean distance of fitted face and scan, both ways, mm, by key; None where the fit failed.
    """
    config: EvaluateConfig = workspace.config.of_step("evaluate")  # type: ignore[assignment]
    weights = workspace.accepted("train", model).outputs_digest()
    settings = digest_json([weights, config.model_dump(mode="json"), STEP_VERSION])
    path = f"{FOLDER}/{name}/{model}.json"
    known = _known(workspace, path, settings)
    errors: dict[str, float | None] = {}
    fitter: NphmFitter | None = None
    frozen = freeze(workspace, name).scans
    for number, (key, digest) in enumerate(frozen.items()):
        if scan_digest(workspace, key) != digest:
            continue
        if key not in known:
            workspace.tell(number, len(frozen), f"{model} on {key}")
            fitter = fitter or _fitter(workspace, model, config)
            known[key] = _error(workspace, fitter, key, config)
            workspace.store.put(path, canonical_json({"settings": settings, "errors_mm": known}))
        errors[key] = known[key]
    return errors


def _known(workspace: Workspace, path: str, settings: str) -> dict[str, float | None]:
    try:
        told: dict[str, Any] = json.loads(workspace.store.get(path))
    except FileNotFoundError:
        return {}
    return dict(told["errors_mm"]) if told["settings"] == settings else {}


def _fitter(workspace: Workspace, model: str, config: EvaluateConfig) -> NphmFitter:
    from model.head_fitter import NphmFitter  # torch: loaded by what needs it alone
    from pipeline.evaluate import load_model

    return NphmFitter(load_model(workspace, model), config.fit, config.resolution)


def _error(workspace: Workspace, fitter: NphmFitter, key: str, config: EvaluateConfig) -> float | None:
    from pipeline.evaluate import read_scan
    from pipeline.evaluation import evaluate_scan, method_entry

    scan = read_scan(workspace, key, workspace.template())
    result = evaluate_scan(scan, [fitter], config, workspace.seed("evaluate", key))
    entry = method_entry(result.methods[fitter.name])
    error = entry["regions"].get("face", {}).get("point_to_triangle_mm")
    return None if error is None else float(error)
