import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import PipelineConfig, SplitShares
from pipeline.report import collect_report, run_report
from pipeline.report_config import judge_report
from pipeline.report_page import (
    Evaluated,
    Pictured,
    Rejection,
    ReportInputs,
    ScanFigures,
    StepCount,
    Subject,
    build_report,
    number_text,
)
from pipeline.stepspec import StepSpec
from pipeline.workspace import Workspace
from registration.mesh import Mesh
from registration.pictures import to_png
from registration.template import Template
from storage.errors import StorageConflict
from storage.store import LocalStore


def _inputs() -> ReportInputs:
    png = to_png(np.full((30, 40, 3), 120, np.uint8))
    curve = [
        {"stage": stage, "step": step, "rate": 1e-3, loss: float(np.exp(-step / 50))}
        for stage, loss in (("identity", "surf_sdf"), ("deformation", "corresp"))
        for step in range(0, 200, 10)
    ]
    good = {"chamfer_l1_mm": 0.5, "f_score_1mm": 0.9, "normal_consistency": 0.97}
    poor = {"chamfer_l1_mm": 0.8, "f_score_1mm": 0.7, "normal_consistency": 0.95}
    return ReportInputs(
        model_name="demo-1",
        facts={"Model": {"Preset": "demo"}},
        steps=[StepCount("ingest", 3, 0), StepCount("clean", 2, 1)],
        rejected=[Rejection("002/smile", "clean", "nobody's <b>head</b> & shoulders")],
        scans=[
            ScanFigures("clean", "001/neutral", "accepted", {"face_median_mm": 0.1234, "views_count": 24}),
            ScanFigures("clean", "002/smile", "rejected", {"face_median_mm": float("inf"), "note": "text"}),
        ],
        curve=curve,
        evaluation=[
            Evaluated("ours", "face", good),
            Evaluated("PCA", "face", poor),
            Evaluated("PCA", "face", poor, key="003/neutral"),
        ],
        evaluation_note="One view of 2,500 points.",
        subjects=[Subject("001", "train", [Pictured("Clean", "the fused mesh", png)])],
        footer="config 0123",
    )


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.sources: list[str] = []
        self.anchors: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "link", "br") and "path" not in tag:
            self.open.append(tag)
        told = dict(attrs)
        self.ids.add(told.get("id") or "")
        for name in ("src", "href"):
            if told.get(name):
                (self.anchors if tag == "a" else self.sources).append(told[name] or "")


def test_the_page_stands_alone() -> None:
    page = build_report(_inputs()).decode()
    links = _Links()
    links.feed(page)
    assert all(anchor.startswith("#") and anchor[1:] in links.ids for anchor in links.anchors)
    assert all(source.startswith(("data:", "#")) for source in links.sources)
    assert "<script" not in page
    assert not re.search(r"url\(\s*['\"]?http", page)


def test_what_was_given_is_shown_and_escaped() -> None:
    page = build_report(_inputs()).decode()
    for text in (
        "demo-1",
        "002/smile",
        "nobody&#39;s &lt;b&gt;head&lt;/b&gt; &amp; shoulders",
        "face median (mm)",
        "0.123",
    ):
        assert text in page
    assert page.count("<svg") == 2
    assert "One view of 2,500 points." in page
    best = re.findall(r'<td class="n best">([^<]*)</td>', page)
    assert best == ["0.500", "0.9700", "0.900"]


def test_same_inputs_same_bytes() -> None:
    assert build_report(_inputs()) == build_report(_inputs())


def test_an_empty_workspace_has_a_report_too() -> None:
    page = build_report(ReportInputs("nothing-yet")).decode()
    assert "No scans." in page
    assert "None." in page


def test_a_damaged_picture_is_named() -> None:
    subject = Subject("007", "train", [Pictured("Clean", "", b"\x89PNG broken")])
    with pytest.raises(StorageConflict, match="007, Clean: picture can't be read"):
        build_report(ReportInputs("m", subjects=[subject]))


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (12345, "12\u202f345"), (0.12345, "0.123"), (1234.5, "1234"), (float("nan"), "–")]
)
def test_numbers_have_useful_digits(value: float, text: str) -> None:
    assert number_text(value) == text


def _template() -> Template:
    mesh = Mesh.of(np.eye(3) * 90, [[0, 1, 2]])
    none = np.zeros((0, 3, 3), np.float32)
    every = np.arange(3, dtype=np.int32)
    regions, mask = np.zeros(3, np.uint8), np.ones(3, bool)
    return Template("triangle", mesh, np.zeros(68, np.int32), every, 1, regions, mask, every, every, none, none)


def _unused(workspace: Workspace, key: str) -> Any:
    raise AssertionError


def _workspace(root: Path) -> Workspace:
    scan_steps = {"ingest": "ingest", "clean": "clean", "register": "registrations"}
    steps = [StepSpec(name, folder, 1, _unused, lambda figures, thresholds: []) for name, folder in scan_steps.items()]
    model_steps = {"train": "models", "evaluate": "evaluations", "protocols": "protocols"}
    for name, folder in model_steps.items():
        steps.append(StepSpec(name, folder, 1, _unused, lambda figures, thresholds: [], scope="model"))
    steps.append(StepSpec("report", "reports", 1, run_report, judge_report, scope="model"))
    store = LocalStore(root)
    store.put("template.npz", _template().to_bytes())
    config = PipelineConfig(splits=SplitShares(held_out_ids=("002",)))
    workspace = Workspace(store, config, {step.name: step for step in steps})
    png = to_png(np.full((20, 20, 3), 99, np.uint8))
    for key, faults in (("001/neutral", []), ("001/smile", ["no surface; check depth"]), ("002/neutral", [])):
        told = {"canonical_expression": "neutral", "content_digest": "0"}
        workspace.commit("ingest", key, inputs={}, outputs={"scan.json": b"{}"}, extra=told)
        figures = {"coverage_share": 0.9}
        workspace.commit("clean", key, inputs={}, outputs={"sheet.png": png}, figures=figures, faults=faults)
    curve = b"".join(
        json.dumps({"stage": "identity", "step": step, "surf_sdf": 1 / (step + 1)}).encode() + b"\n"
        for step in range(9)
    )
    workspace.commit("train", "m", inputs={}, outputs={"curve.jsonl": curve}, figures={"face_median_mm": 0.4})
    means = {"chamfer_l1_mm": {"mean": 0.61}, "f_score_1mm": {"mean": 0.8}}
    regions = {"face": {"chamfer_l1_mm": 0.61, "f_score_1mm": 0.8}}
    methods = {name: {"failure": None, "regions": regions} for name in ("nphm", "pca")}
    evaluation = {
        "protocol": "One view.",
        "summary": {name: {"scans": 1, "failures": 0, "face": means, "head": {}} for name in methods},
        "held_out": [{"key": "002/neutral", "picture": "scan_000.png", "methods": methods}],
        "training": [{"key": "001/neutral", "picture": "train_000.png"}],
    }
    outputs = {"evaluation.json": json.dumps(evaluation).encode(), "scan_000.png": png, "train_000.png": png}
    workspace.commit("evaluate", "m", inputs={}, outputs=outputs)
    distance = {"point_to_triangle_mm": {"mean": 0.7, "low": 0.6, "high": 0.8}}
    measured = {"failures": 0, "face": distance, "face_scans": 1, "head_scans": 0, "hair_scans": 0}
    protocol = {"protocol": "noise", "what": "noise along rays", "rows": [], "levels": {"1.5 mm": {"nphm": measured}}}
    workspace.commit("protocols", "m", inputs={}, outputs={"noise/protocol.json": json.dumps(protocol).encode()})
    return workspace


def test_the_step_gathers_what_the_others_left(tmp_path: Path) -> None:
    workspace = _workspace(tmp_path)
    told = collect_report(workspace, "m")
    assert told.steps == [StepCount("ingest", 3, 0), StepCount("clean", 2, 1), StepCount("register", 0, 0)]
    assert told.rejected == [Rejection("001/smile", "clean", "no surface; check depth")]
    assert [(s.name, s.split, [p.title for p in s.pictures]) for s in told.subjects] == [
        ("002", "held out", ["Captured and cleaned", "Fitted"]),
        ("001", "trained on", ["Captured and cleaned", "Reconstructed"]),
    ]
    assert [(row.method, row.region, row.key) for row in told.evaluation] == [
        ("ours", "face", ""),
        ("PCA", "face", ""),
        ("ours", "face", "002/neutral"),
        ("PCA", "face", "002/neutral"),
    ]
    assert len(told.curve) == 9
    assert [table.name for table in told.protocols] == ["noise"]
    assert told.protocols[0].cells[1][:5] == ["1.5 mm", "face", "nphm", "1", "0"]
    assert "0.600 to 0.800" in build_report(told).decode()
    manifest = run_report(workspace, "m")
    assert manifest.accepted
    assert (tmp_path / "reports/m/index.html").read_bytes() == build_report(told)


def test_a_model_that_was_never_trained_has_a_report_on_the_data(tmp_path: Path) -> None:
    told = collect_report(_workspace(tmp_path), "other")
    assert told.curve == []
    assert told.evaluation == []
    assert b"001/smile" in build_report(told)
