"""The models of a workspace, and which of them is promoted: the one that others are to use."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError

from pipeline.workspace import Workspace
from storage.digest import digest_json
from storage.errors import ConfigError, StorageConflict, one_line
from storage.frozen import Frozen

LATEST_PATH = "models/latest.json"
WEIGHTS = "model.safetensors"


class Latest(Frozen):
    """``models/latest.json``: what is promoted, and what was before."""

    name: str = Field(description="the promoted model's folder in models/")
    figures: dict[str, Any] = Field(description="its figures when it was promoted, units in their names")
    before: tuple[str, ...] = Field((), description="models promoted earlier, the last one first")


def latest_model(workspace: Workspace) -> Latest | None:
    """What is promoted, or None.

    Raises:
        StorageConflict: the file can't be read.
    """
    try:
        return Latest.model_validate_json(workspace.store.get(LATEST_PATH))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        remedy = "promote a model with 'nphm models promote'"
        raise StorageConflict(one_line("is damaged", LATEST_PATH, error.errors()[0]["msg"], remedy)) from error


def model_names(workspace: Workspace) -> list[str]:
    """The names of all finished models, sorted."""
    ends = "/report.json"
    paths = workspace.store.list("models")
    return [path.removeprefix("models/").removesuffix(ends) for path in paths if path.endswith(ends)]


def list_models(workspace: Workspace) -> list[dict[str, Any]]:
    """Each model: name, whether it is promoted, figures, the data and settings of its training, and its parent.

    ``data`` holds the number of training scans and subjects and a digest of their samples: two models of one digest
    were trained on the same data. ``parent`` is the model that it went on from, by name or, should that be
    gone, by digest.
    """
    latest = latest_model(workspace)
    manifests = {name: workspace.manifest("train", name) for name in model_names(workspace)}
    by_weights = {m.outputs[WEIGHTS].sha256: name for name, m in manifests.items() if m and WEIGHTS in m.outputs}
    listed = []
    for name, manifest in manifests.items():
        if manifest is None:
            continue
        data = {told: sha for told, sha in manifest.inputs.items() if told.startswith("sample/")}
        parent = manifest.inputs.get(f"parent/{WEIGHTS}")
        listed.append(
            {
                "name": name,
                "promoted": latest is not None and latest.name == name,
                "verdict": manifest.verdict,
                "figures": model_figures(workspace, name),
                "data": {
                    "digest": digest_json(data)[:12],
                    "scans": len(data),
                    "subjects": len({told.split("/")[1] for told in data}),
                },
                "config_digest": manifest.config_digest[:12],
                "parent": None if parent is None else by_weights.get(parent, parent[:12]),
            }
        )
    return listed


def model_figures(workspace: Workspace, name: str) -> dict[str, Any]:
    """What training and, where it was done, evaluation measured."""
    manifests = (workspace.manifest(step, name) for step in ("train", "evaluate") if step in workspace.steps)
    return {figure: value for manifest in manifests if manifest for figure, value in manifest.figures.items()}


def promote(workspace: Workspace, name: str) -> Latest:
    """Make a model the promoted one.

    Raises:
        ConfigError: there is no such model, or its training was rejected.
    """
    manifest = workspace.manifest("train", name)
    if manifest is None or not manifest.accepted:
        why = "; ".join(manifest.reasons) if manifest else f"found {', '.join(model_names(workspace)) or 'none'}"
        raise ConfigError(one_line("is no model that can be promoted", name, why, "see 'nphm models list'"))
    known = latest_model(workspace)
    before: tuple[str, ...] = ()
    if known is not None:
        before = known.before if known.name == name else (known.name, *known.before)
    return _put(workspace, Latest(name=name, figures=model_figures(workspace, name), before=before))


def rollback(workspace: Workspace) -> Latest:
    """Promote what was promoted before.

    Raises:
        ConfigError: nothing was.
    """
    known = latest_model(workspace)
    usable = [name for name in known.before if name in model_names(workspace)] if known else []
    if not usable:
        raise ConfigError(one_line("nothing was promoted before", LATEST_PATH, "", "choose one: 'nphm models promote'"))
    before = tuple(usable[1:])
    return _put(workspace, Latest(name=usable[0], figures=model_figures(workspace, usable[0]), before=before))


def promote_first(workspace: Workspace, name: str) -> Latest | None:
    """Promote a workspace's first model; later ones wait for a person or the scheduled retraining."""
    if latest_model(workspace) is not None:
        return None
    return promote(workspace, name)


def _put(workspace: Workspace, latest: Latest) -> Latest:
    workspace.store.put(LATEST_PATH, latest.model_dump_json(indent=1).encode() + b"\n")
    return latest
