"""Quality figures by rig and month."""

from __future__ import annotations

import pytest

from pipeline.config import PipelineConfig
from pipeline.drift import FIGURES, drift
from pipeline.report_page import ReportInputs, build_report
from pipeline.snapshot import Snapshot
from storage.manifest import Manifest


def manifest(step: str, key: str, accepted: bool = True, **told) -> Manifest:
    verdict = "accepted" if accepted else "rejected"
    return Manifest(step=step, key=key, step_version=1, config_digest="", inputs={}, verdict=verdict, **told)


@pytest.fixture
def book(fake_steps) -> Snapshot:
    manifests = {}
    for number, (rig, month, spread) in enumerate([("a", "2026-01", 0.1), ("a", "2026-01", 0.3), ("a", "2026-02", 0.9),
                                                   ("b", "2026-02", 0.2)]):  # fmt: skip
        key = f"{number:03d}/neutral"
        about = {"rig": rig, "told_of_session": {"captured_at": f"{month}-03T10:00:00Z"}}
        manifests["ingest", key] = manifest("ingest", key, **about)
        figures = {"spread_median_mm": spread, "coverage": 0.5}
        manifests["clean", key] = manifest("clean", key, spread < 0.5, figures=figures)
    return Snapshot(PipelineConfig(), fake_steps, manifests)


def test_medians_and_rejected_shares(book):
    rows = drift(book)
    assert [(row.rig, row.month, row.scans, row.rejected_share) for row in rows] == [
        ("a", "2026-01", 2, 0.0), ("a", "2026-02", 1, 1.0), ("b", "2026-02", 1, 0.0)
    ]  # fmt: skip
    place = FIGURES.index(("clean", "spread_median_mm"))
    assert [row.medians[place] for row in rows] == pytest.approx([0.2, 0.9, 0.2])
    assert rows[0].medians[FIGURES.index(("register", "face_residual_p95_mm"))] is None


def test_the_report_shows_them(book):
    page = build_report(ReportInputs("m", drift=drift(book))).decode()
    assert "By rig and month" in page
    assert "2026-02" in page
    assert "By rig and month" not in build_report(ReportInputs("m")).decode()
