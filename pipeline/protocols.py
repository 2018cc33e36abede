"""Evaluation along one axis at a time: what is seen of held-out scans is varied, and the rest kept as it is.

The main protocol fits every method to one frontal view of every held-out scan. These look at what that view leaves out,
on few scans, by the head model and the linear model of identity and expression.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.compared import held_out_scans, linear_fitters, spread
from pipeline.evaluate_config import STEP_VERSION, EvaluateConfig, Protocol
from pipeline.held_out import scan_digest
from pipeline.keys import subject_of
from storage.digest import canonical_json, digest_json
from storage.errors import ConfigError, one_line

if TYPE_CHECKING:
    from model.observation import HeadFitter
    from pipeline.evaluation import Look
    from pipeline.workspace import Workspace

FOLDER = "protocols"
POINTS = (250, 500, 1000, 2500, 5000, 10_000)
NOISE_MM = (0.0, 0.3, 0.75, 1.5)
YAW_DEG = (0.0, 45.0, 90.0, 135.0, 180.0)
TOGETHER = 3
"""So many expressions of a person are fitted jointly."""

WHAT = {
    "canonical": "identity from the canonical scan: from one view, and from all that ten cameras see",
    "joint": f"{TOGETHER} expressions of a person, each from one view: fitted alone, and with one identity",
    "points": "one frontal view of 250 to 10,000 points",
    "noise": "one frontal view with noise along its rays; normals are given without noise alone",
    "yaw": "one view from front to back, degrees around the head",
    "rig": "one frontal view of captures of another rig than the training's",
}
"""What each protocol varies."""


@dataclass(frozen=True)
class Case:
    """Scans of one person that are fitted together.

    Attributes:
        level: where on the protocol's axis this stands.
        keys: of the scans.
        look: how they are shown.
    """

    level: str
    keys: tuple[str, ...]
    look: Look = field(compare=False)


def cases(workspace: Workspace, protocol: Protocol, config: EvaluateConfig) -> list[Case]:
    """What a protocol fits, level by level.

    Raises:
        ConfigError: the workspace has no scans for it.
    """
    from pipeline.evaluation import Look  # torch: loaded by what computes alone

    plain = Look(config.points, config.noise_mm)
    some = held_out_scans(workspace, config.protocol_scans)
    if protocol == "points":
        found = [Case(str(n), (key,), Look(n)) for n in POINTS for key in some]
    elif protocol == "noise":
        found = [Case(f"{mm:g} mm", (key,), Look(config.points, mm)) for mm in NOISE_MM for key in some]
    elif protocol == "yaw":
        looks = {f"{deg:g} deg": Look(config.points, config.noise_mm, deg) for deg in YAW_DEG}
        found = [Case(level, (key,), look) for level, look in looks.items() for key in some]
    elif protocol == "canonical":
        looks = {"one view": plain, "all round": Look(config.points, whole=True)}
        found = [Case(level, (key,), look) for level, look in looks.items() for key in _canonical(workspace, config)]
    elif protocol == "joint":
        groups = _groups(workspace, config)
        found = [Case("alone", (key,), plain) for group in groups for key in group]
        found += [Case(f"{TOGETHER} together", group, plain) for group in groups]
    else:
        found = [Case(rig, (key,), plain) for rig, key in _other_rigs(workspace, config)]
    if not found:
        remedy = "hold more subjects out ('splits' in pipeline.toml), or ingest what it needs"
        raise ConfigError(one_line("no held-out scans for this protocol", protocol, WHAT[protocol], remedy))
    return found


def run_protocol(workspace: Workspace, model: str, protocol: Protocol) -> dict[str, Any]:
    """Measure a model by one protocol, and write tables beside each other into ``protocols/MODEL/PROTOCOL``.

    What was fitted before with the same model, scans and settings is not fitted again, so that a run that was cut off
    goes on.

    Args:
        workspace: with accepted results of ``train``, ``clean`` and ``register``.
        model: its name.
        protocol: which.

    Returns:
        What ``protocol.json`` holds: every fit, and means by level, method and region with intervals.

    Raises:
        ConfigError: the model or a result that it needs is missing, or there are no scans for the protocol.
    """
    from pipeline.evaluation_tables import protocol_csv, protocol_latex, protocol_markdown

    config: EvaluateConfig = workspace.config.of_step("evaluate")  # type: ignore[assignment]
    folder = f"{FOLDER}/{model}/{protocol}"
    weights = workspace.accepted("train", model).outputs_digest()
    settings = digest_json([weights, config.model_dump(mode="json"), workspace.config.seed, STEP_VERSION])
    known = _known(workspace, f"{folder}/rows.json", settings)
    todo = cases(workspace, protocol, config)
    fitters: list[HeadFitter] = []
    rows: list[dict[str, Any]] = []
    for number, case in enumerate(todo):
        name = digest_json([case.level, {key: scan_digest(workspace, key) for key in case.keys}])
        if name not in known:
            fitters = fitters or _fitters(workspace, model, config)
            workspace.tell(number, len(todo), f"{protocol}, {case.level}: {', '.join(case.keys)}")
            known[name] = _measured(workspace, case, fitters, config)
            workspace.store.put(f"{folder}/rows.json", canonical_json({"settings": settings, "rows": known}))
        rows += known[name]
    document: dict[str, Any] = {"model": model, "protocol": protocol, "what": WHAT[protocol], "rows": rows}
    document["levels"] = _by_level(rows, np.random.default_rng(workspace.seed("evaluate", protocol)))
    tables = {"table.md": protocol_markdown, "table.tex": protocol_latex, "table.csv": protocol_csv}
    for file, table in tables.items():
        workspace.store.put(f"{folder}/{file}", table(document).encode())
    told = json.dumps(document, indent=1, sort_keys=True, allow_nan=False).encode()
    workspace.store.put(f"{folder}/protocol.json", told)
    return document


def _known(workspace: Workspace, path: str, settings: str) -> dict[str, list[dict[str, Any]]]:
    try:
        told = json.loads(workspace.store.get(path))
    except FileNotFoundError:
        return {}
    return dict(told["rows"]) if told["settings"] == settings else {}


def _fitters(workspace: Workspace, model: str, config: EvaluateConfig) -> list[HeadFitter]:
    from model.head_fitter import NphmFitter
    from pipeline.evaluate import load_model

    head = load_model(workspace, model)
    linear = config.model_copy(update={"linear": ("pca",)})
    nphm = NphmFitter(head, config.fit, config.resolution)
    return [nphm, *linear_fitters(workspace, head.subjects, head.template, linear)]


def _measured(
    workspace: Workspace, case: Case, fitters: Sequence[HeadFitter], config: EvaluateConfig
) -> list[dict[str, Any]]:
    """A line for each scan of a case."""
    from pipeline.evaluate import read_scan
    from pipeline.evaluation import evaluate_together, method_entry

    template = workspace.template()
    scans = [read_scan(workspace, key, template) for key in case.keys]
    # a scan is seen from the same place by the same pixels on all levels
    seeds = [workspace.seed("evaluate", key) for key in case.keys]
    results = evaluate_together(scans, fitters, case.look, config, seeds)
    return [
        {
            "level": case.level,
            "key": result.scan.key,
            "methods": {name: method_entry(method) for name, method in result.methods.items()},
        }
        for result in results
    ]


def _by_level(rows: Sequence[Mapping[str, Any]], rng: np.random.Generator) -> dict[str, Any]:
    from pipeline.evaluation import REGIONS_COMPARED, summarise

    levels: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        levels.setdefault(row["level"], []).append(row)
    return {
        level: {
            method: summarise([(row["key"], row["methods"][method]) for row in of_level], REGIONS_COMPARED, rng)
            for method in of_level[0]["methods"]
        }
        for level, of_level in levels.items()
    }


def _canonical(workspace: Workspace, config: EvaluateConfig) -> list[str]:
    """Held-out subjects' canonical scans, at most so many, spread over them."""
    keys = held_out_scans(workspace, None)
    canonical = [key for key in keys if workspace.canonical_key(subject_of(key)) == key]
    return spread(canonical, config.protocol_scans)


def _groups(workspace: Workspace, config: EvaluateConfig) -> list[tuple[str, ...]]:
    """Scans of a held-out subject that are fitted jointly; at most as many scans as the other protocols have."""
    by_subject: dict[str, list[str]] = {}
    for key in held_out_scans(workspace, None):
        by_subject.setdefault(subject_of(key), []).append(key)
    whole = [tuple(keys[:TOGETHER]) for keys in by_subject.values() if len(keys) >= TOGETHER]
    return spread(whole, max(1, config.protocol_scans // TOGETHER))


def _other_rigs(workspace: Workspace, config: EvaluateConfig) -> list[tuple[str, str]]:
    """Rig and key of held-out scans whose rig no training scan came from."""
    rigs: dict[str, set[str]] = {"train": set(), "held_out": set()}
    of_scan: dict[str, str] = {}
    for key in workspace.scans():
        taken = workspace.manifest("ingest", key)
        of_scan[key] = str(taken.extra("rig")) if taken is not None else ""
        rigs[workspace.split(subject_of(key))].add(of_scan[key])
    others = [key for key in held_out_scans(workspace, None) if of_scan[key] not in rigs["train"]]
    return [(of_scan[key], key) for key in spread(others, config.protocol_scans)]
