import re
from html.parser import HTMLParser

import numpy as np
import pytest

from pipeline.report import (
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
from registration.pictures import to_png
from storage.errors import StorageConflict


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
