"""Evaluation along one axis at a time: what is seen of held-out scans is varied, and the rest kept as it is.

The main protocol fits every method to one frontal view of every held-out scan. These look at what that view leaves out,
on few scans, by the head model and the linear model of identity and expression.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.checkpoints import FOLDER as CHECKPOINTS
from pipeline.compared import held_out_scans, linear_fitters, spread
from pipeline.evaluate_config import EvaluateConfig
from pipeline.held_out import scan_digest
from pipeline.keys import subject_of
from pipeline.protocols_config import STEP_VERSION, Protocol, ProtocolsConfig
from storage.digest import canonical_json, digest_json
from storage.errors import ConfigError, one_line
from storage.manifest import Manifest
from storage.store import Store

if TYPE_CHECKING:
    from model.observation import HeadFitter
    from pipeline.evaluation import Look
    from pipeline.workspace import Workspace

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

_ROWS_FILE = "rows.json"


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


def cases(workspace: Workspace, protocol: Protocol) -> list[Case]:
    """What a protocol fits, level by level.

    Raises:
        ConfigError: the workspace has no scans for it.
    """
    from pipeline.evaluation import Look  # torch: loaded by what computes alone

    config: EvaluateConfig = workspace.config.of_step("evaluate")  # type: ignore[assignment]
    count = workspace.config.of_step("protocols").scans  # type: ignore[union-attr]
    plain = Look(config.points, config.noise_mm)
    some = held_out_scans(workspace, count)
    if protocol == "points":
        found = [Case(str(n), (key,), Look(n, config.noise_mm)) for n in POINTS for key in some]
    elif protocol == "noise":
        found = [Case(f"{mm:g} mm", (key,), Look(config.points, mm)) for mm in NOISE_MM for key in some]
    elif protocol == "yaw":
        looks = {f"{deg:g} deg": Look(config.points, config.noise_mm, deg) for deg in YAW_DEG}
        found = [Case(level, (key,), look) for level, look in looks.items() for key in some]
    elif protocol == "canonical":
        looks = {"one view": plain, "all round": Look(config.points, config.noise_mm, whole=True)}
        found = [Case(level, (key,), look) for level, look in looks.items() for key in _canonical(workspace, count)]
    elif protocol == "joint":
        groups = _groups(workspace, count)
        found = [Case("alone", (key,), plain) for group in groups for key in group]
        found += [Case(f"{TOGETHER} together", group, plain) for group in groups]
    else:
        found = [Case(rig, (key,), plain) for rig, key in _other_rigs(workspace, count)]
    if not found:
        remedy = "hold more subjects out ('splits' in pipeline.toml), or ingest what it needs"
        raise ConfigError(one_line("no held-out scans for this protocol", protocol, WHAT[protocol], remedy))
    return found


def run_protocols(workspace: Workspace, key: str) -> Manifest:
    """Measure a model by the protocols that the settings name, and publish tables of each.

    Each fit is kept as it comes, so that a run that was cut off goes on, and one that is asked for a protocol more fits
    for that alone.

    Args:
        workspace: with accepted results of ``train``, ``clean`` and ``register``.
        key: the model's name.

    Raises:
        ConfigError: the model or a result that it needs is missing, or there are no scans for a protocol.
        StorageConflict: an input is damaged.
    """
    inputs = workspace.inputs("protocols", key)
    rows = _Rows.of(workspace, key)
    config: ProtocolsConfig = workspace.config.of_step("protocols")  # type: ignore[assignment]
    fitters = cache(partial(_fitters, workspace, key))
    outputs: dict[str, bytes] = {}
    figures: dict[str, Any] = {}
    for name in config.names:
        document = _measure(workspace, key, name, rows, fitters)
        outputs |= {f"{name}/{file}": data for file, data in _files(document).items()}
        methods = [method for row in document["rows"] for method in row["methods"].values()]
        failures = sum(method["failure"] is not None for method in methods)
        figures[name] = {"fits": len(methods), "failures": failures}
    outputs[_ROWS_FILE] = rows.to_bytes()
    manifest = workspace.commit("protocols", key, inputs=inputs, outputs=outputs, figures=figures)
    rows.clear()
    return manifest


def _measure(
    workspace: Workspace, model: str, protocol: Protocol, rows: _Rows, fitters: Callable[[], list[HeadFitter]]
) -> dict[str, Any]:
    """Every fit of a protocol, and means by level, method and region with intervals."""
    todo = cases(workspace, protocol)
    lines: list[dict[str, Any]] = []
    for number, case in enumerate(todo):
        told = digest_json([case.level, {key: scan_digest(workspace, key) for key in case.keys}])
        if told not in rows.known:
            workspace.tell(number, len(todo), f"{protocol}, {case.level}: {', '.join(case.keys)}")
            rows.add(told, _measured(workspace, case, fitters()))
        lines += rows.known[told]
    document: dict[str, Any] = {"model": model, "protocol": protocol, "what": WHAT[protocol], "rows": lines}
    document["levels"] = _by_level(lines, np.random.default_rng(workspace.seed("evaluate", protocol)))
    return document


def _files(document: Mapping[str, Any]) -> dict[str, bytes]:
    from pipeline.evaluation_tables import protocol_csv, protocol_latex, protocol_markdown

    tables = {"table.md": protocol_markdown, "table.tex": protocol_latex, "table.csv": protocol_csv}
    files = {file: table(document).encode() for file, table in tables.items()}
    return files | {"protocol.json": json.dumps(document, indent=1, sort_keys=True, allow_nan=False).encode()}


@dataclass
class _Rows:
    """What was measured of cases, by their digests: of the last results, and of a run that is under way.

    Attributes:
        store, path: where a run under way keeps them.
        settings: digest of what they depend on besides the scans; others are not taken up.
        known: lines of each case.
    """

    store: Store
    path: str
    settings: str
    known: dict[str, list[dict[str, Any]]]

    @classmethod
    def of(cls, workspace: Workspace, model: str) -> _Rows:
        weights = workspace.accepted("train", model).outputs_digest()
        told = workspace.config.resolved("evaluate")
        rows = cls(
            workspace.store,
            f"{CHECKPOINTS}/{model}/protocols/{_ROWS_FILE}",
            digest_json([weights, told, STEP_VERSION]),
            {},
        )
        last = workspace.manifest("protocols", model)
        if last is not None and workspace.damage(last) is None:
            rows._take(workspace.read(last, _ROWS_FILE))
        if workspace.store.exists(rows.path):
            rows._take(workspace.store.get(rows.path))
        return rows

    def _take(self, data: bytes) -> None:
        told = json.loads(data)
        if told["settings"] == self.settings:
            self.known |= told["rows"]

    def add(self, case: str, lines: list[dict[str, Any]]) -> None:
        self.known[case] = lines
        self.store.put(self.path, self.to_bytes())

    def to_bytes(self) -> bytes:
        return canonical_json({"settings": self.settings, "rows": self.known})

    def clear(self) -> None:
        """Forget the run that was under way."""
        self.store.delete(self.path)


def _fitters(workspace: Workspace, model: str) -> list[HeadFitter]:
    from model.head_fitter import NphmFitter
    from pipeline.evaluate import load_model

    config: EvaluateConfig = workspace.config.of_step("evaluate")  # type: ignore[assignment]
    head = load_model(workspace, model)
    linear = config.model_copy(update={"linear": ("pca",)})
    nphm = NphmFitter(head, config.fit, config.resolution)
    return [nphm, *linear_fitters(workspace, head.subjects, head.template, linear)]


def _measured(workspace: Workspace, case: Case, fitters: Sequence[HeadFitter]) -> list[dict[str, Any]]:
    """A line for each scan of a case."""
    from pipeline.evaluate import read_scan
    from pipeline.evaluation import evaluate_together, method_entry

    config: EvaluateConfig = workspace.config.of_step("evaluate")  # type: ignore[assignment]
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


def _canonical(workspace: Workspace, count: int) -> list[str]:
    """Held-out subjects' canonical scans, at most so many, spread over them."""
    keys = held_out_scans(workspace, None)
    canonical = [key for key in keys if workspace.canonical_key(subject_of(key)) == key]
    return spread(canonical, count)


def _groups(workspace: Workspace, count: int) -> list[tuple[str, ...]]:
    """Scans of a held-out subject that are fitted jointly; at most as many scans as the other protocols have."""
    by_subject: dict[str, list[str]] = {}
    for key in held_out_scans(workspace, None):
        by_subject.setdefault(subject_of(key), []).append(key)
    whole = [tuple(keys[:TOGETHER]) for keys in by_subject.values() if len(keys) >= TOGETHER]
    return spread(whole, max(1, count // TOGETHER))


def _other_rigs(workspace: Workspace, count: int) -> list[tuple[str, str]]:
    """Rig and key of held-out scans whose rig no training scan came from."""
    rigs: dict[str, set[str]] = {"train": set(), "held_out": set()}
    of_scan: dict[str, str] = {}
    for key in workspace.scans():
        taken = workspace.manifest("ingest", key)
        of_scan[key] = str(taken.extra("rig")) if taken is not None else ""
        rigs[workspace.split(subject_of(key))].add(of_scan[key])
    others = [key for key in held_out_scans(workspace, None) if of_scan[key] not in rigs["train"]]
    return [(of_scan[key], key) for key in spread(others, count)]
