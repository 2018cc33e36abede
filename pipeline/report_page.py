"""The page of a report: all that it shows, and how that becomes HTML that opens from disk with no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from pipeline.drift import FIGURES, DriftRow
from pipeline.keys import subjects_of
from pipeline.report_charts import loss_charts
from storage.errors import StorageConflict, one_line

MAX_PICTURE_PIXELS = 64_000_000
_WIDE_ASPECT = 1.9


@dataclass(frozen=True)
class StepCount:
    """How a step ended over all scans."""

    step: str
    accepted: int
    rejected: int

    @property
    def total(self) -> int:
        """Scans that the step has judged."""
        return self.accepted + self.rejected


@dataclass(frozen=True)
class Rejection:
    """One rejected scan."""

    key: str
    step: str
    reason: str


@dataclass(frozen=True)
class ScanFigures:
    """What a step said of one scan; figures that are no numbers are not shown."""

    step: str
    key: str
    verdict: str
    figures: Mapping[str, Any]


@dataclass(frozen=True)
class Evaluated:
    """Errors of one method in one region, over all held-out scans or of one.

    Attributes:
        method: such as ``ours`` or ``PCA``.
        region: ``face`` or ``head``.
        figures: by name as in ``model.metrics.SurfaceError.as_figures``.
        key: of the scan; empty for the mean over all.
    """

    method: str
    region: str
    figures: Mapping[str, float]
    key: str = ""


@dataclass(frozen=True)
class ProtocolTable:
    """What a protocol measured.

    Attributes:
        name: of the protocol.
        what: it varies.
        cells: lines of cells, the columns' titles first.
    """

    name: str
    what: str
    cells: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Pictured:
    """One picture of a subject.

    Attributes:
        title: which stage it shows.
        caption: what the columns and colours mean.
        png: its bytes.
    """

    title: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class Subject:
    """A subject with its pictures, from the capture to the model."""

    name: str
    split: str
    pictures: Sequence[Pictured]


@dataclass(frozen=True)
class ReportInputs:
    """All that the report shows; nothing else is looked up.

    Attributes:
        model_name: heading.
        facts: tables of facts by their title.
        steps: counts a step, in the steps' order.
        rejected: rejected scans with their reasons.
        scans: figures a step and scan.
        curve: lines of the training curve: ``stage``, ``step`` and losses.
        evaluation: means over the held-out scans, then single scans.
        evaluation_note: how it was measured.
        protocols: tables of evaluations along one axis.
        subjects: whose heads are shown.
        subjects_left_out: how many are not.
        drift: quality figures by rig and month.
        footer: provenance, one line.
    """

    model_name: str
    facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    steps: Sequence[StepCount] = ()
    rejected: Sequence[Rejection] = ()
    scans: Sequence[ScanFigures] = ()
    curve: Sequence[Mapping[str, Any]] = ()
    evaluation: Sequence[Evaluated] = ()
    evaluation_note: str = ""
    protocols: Sequence[ProtocolTable] = ()
    subjects: Sequence[Subject] = ()
    subjects_left_out: int = 0
    drift: Sequence[DriftRow] = ()
    footer: str = ""


@dataclass(frozen=True)
class _Metric:
    name: str
    label: str
    hint: str
    digits: int
    less_is_better: bool = True


_METRICS = (
    _Metric("chamfer_l1_mm", "Chamfer L1 (mm)", "half the sum of mean nearest-point distances, both ways", 3),
    _Metric("point_to_triangle_mm", "Point to triangle (mm)", "as Chamfer L1, but to the surface itself", 3),
    _Metric("accuracy_median_mm", "Accuracy, median (mm)", "fitted surface to scan", 3),
    _Metric("accuracy_p95_mm", "Accuracy, 95 % (mm)", "fitted surface to scan", 3),
    _Metric("completeness_median_mm", "Completeness, median (mm)", "scan to fitted surface", 3),
    _Metric("chamfer_l2_mm2", "Chamfer L2 (mm²)", "half the sum of mean squared distances", 2),
    _Metric("normal_consistency", "Normals", "mean absolute cosine of nearest normals", 4, False),
    _Metric("f_score_1mm", "F at 1 mm", "harmonic mean of precision and recall", 3, False),
    _Metric("f_score_5mm", "F at 5 mm", "harmonic mean of precision and recall", 3, False),
)


def build_report(inputs: ReportInputs) -> bytes:
    """Build the page. Same inputs, same bytes.

    Raises:
        StorageConflict: a picture can't be read.
    """
    overall = [row for row in inputs.evaluation if not row.key]
    page = _template().render(
        inputs=inputs,
        lead=_lead(inputs),
        tiles=_tiles(inputs, overall),
        evaluation={region: _evaluation_table(overall, region) for region in _in_order(r.region for r in overall)},
        scan_evaluation=_scan_table([row for row in inputs.evaluation if row.key]),
        curves=loss_charts(inputs.curve),
        subjects=[_shown(subject) for subject in inputs.subjects],
        drift=_drift_table(inputs.drift),
        quality={step: _quality(inputs.scans, step) for step in _in_order(scan.step for scan in inputs.scans)},
    )
    return page.encode()


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _lead(inputs: ReportInputs) -> str:
    taken = next((count for count in inputs.steps if count.total), None)
    if taken is None:
        return "No scans."
    last = inputs.steps[-1]
    return f"{taken.total} scans taken in, {last.accepted} of them sampled and trained on or held out for evaluation."


def _tiles(inputs: ReportInputs, overall: Sequence[Evaluated]) -> list[dict[str, str]]:
    subjects = subjects_of(scan.key for scan in inputs.scans)
    tiles = [{"value": str(len(subjects)), "label": "subjects"}] if subjects else []
    if inputs.steps:
        tiles.append({"value": str(inputs.steps[0].total), "label": "scans taken in"})
        tiles.append({"value": str(len({r.key for r in inputs.rejected})), "label": "scans rejected"})
    methods = _in_order(row.method for row in overall)
    for name, label in (
        ("chamfer_l1_mm", "held-out face, Chamfer L1"),
        ("point_to_triangle_mm", "held-out face, to surface"),
    ):
        values = {row.method: row.figures[name] for row in overall if row.region == "face" and name in row.figures}
        if values:
            first = next(method for method in methods if method in values)
            others = ", ".join(
                f"{method} {values[method]:.2f}" for method in methods if method in values and method != first
            )
            tiles.append({"value": f"{values[first]:.2f}", "unit": "mm", "label": label, "aside": others})
    return [{"unit": "", "aside": ""} | tile for tile in tiles]


def _evaluation_table(rows: Sequence[Evaluated], region: str) -> dict[str, Any]:
    rows = [row for row in rows if row.region == region]
    metrics = _metrics(rows)
    best = {
        m.name: (min if m.less_is_better else max)(row.figures[m.name] for row in rows if m.name in row.figures)
        for m in metrics
    }
    contested = len(rows) > 1
    return {
        "metrics": metrics,
        "rows": [
            {
                "method": row.method,
                "cells": [
                    _cell(row, m) | {"best": contested and row.figures.get(m.name) == best[m.name]} for m in metrics
                ],
            }
            for row in rows
        ],
    }


def _scan_table(rows: Sequence[Evaluated]) -> dict[str, Any]:
    metrics = _metrics(rows)
    cells = [
        {"key": r.key, "method": r.method, "region": r.region, "cells": [_cell(r, m) for m in metrics]} for r in rows
    ]
    return {"metrics": metrics, "rows": cells}


def _metrics(rows: Sequence[Evaluated]) -> list[_Metric]:
    return [m for m in _METRICS if any(m.name in row.figures for row in rows)]


def _cell(row: Evaluated, metric: _Metric) -> dict[str, Any]:
    value = row.figures.get(metric.name)
    return {"text": "–" if value is None else f"{value:.{metric.digits}f}"}


def _quality(scans: Sequence[ScanFigures], step: str) -> dict[str, Any]:
    rows = [scan for scan in scans if scan.step == step]
    numbers = [{name: float(v) for name, v in scan.figures.items() if _is_number(v)} for scan in rows]
    names = _in_order(name for figures in numbers for name in figures)
    summary = []
    for name in names:
        values = [figures[name] for figures in numbers if name in figures]
        least, median, most = (number_text(v) for v in (min(values), float(np.median(values)), max(values)))
        summary.append({"label": _label(name), "count": len(values), "least": least, "median": median, "most": most})
    return {
        "summary": summary,
        "labels": [_label(name) for name in names],
        "rows": [
            {
                "key": scan.key,
                "verdict": scan.verdict,
                "cells": [number_text(figures[name]) if name in figures else "–" for name in names],
            }
            for scan, figures in zip(rows, numbers, strict=True)
        ],
    }


def _drift_table(rows: Sequence[DriftRow]) -> dict[str, Any]:
    return {
        "labels": [f"{_label(figure)}, {step}" for step, figure in FIGURES],
        "rows": [
            {
                "rig": row.rig,
                "month": row.month,
                "scans": row.scans,
                "rejected": f"{row.rejected_share:.0%}",
                "cells": ["–" if median is None else number_text(median) for median in row.medians],
            }
            for row in rows
        ],
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_UNITS = {"mm": "mm", "mm2": "mm²", "deg": "°", "bytes": "bytes", "share": "share", "count": "count", "units": "units"}


def _label(name: str) -> str:
    """``face_median_mm`` as people read it."""
    *words, last = name.split("_")
    if words and last in _UNITS:
        return f"{' '.join(words)} ({_UNITS[last]})"
    return " ".join([*words, last])


def number_text(value: float) -> str:
    """A number with as many digits as a reader can use."""
    if not np.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}".replace(",", "\u202f")
    size = abs(value)
    return f"{value:.0f}" if size >= 1000 else f"{value:.1f}" if size >= 100 else f"{value:.3g}"


def _shown(subject: Subject) -> dict[str, Any]:
    pictures = []
    for told in subject.pictures:
        source, aspect = _data_uri(told.png, f"{subject.name}, {told.title}")
        wide = aspect > _WIDE_ASPECT
        pictures.append({"title": told.title, "caption": told.caption, "source": source, "wide": wide})
    return {"name": subject.name, "split": subject.split, "pictures": pictures}


def _data_uri(png: bytes, where: str) -> tuple[str, float]:
    """A picture as a data URI, as JPEG for a page of bearable size, and its width over its height."""
    try:
        with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
            if picture.width * picture.height > MAX_PICTURE_PIXELS:
                why = f"{picture.width} x {picture.height} pixels"
                raise StorageConflict(one_line("picture is too large", where, why, "run the step again"))
            out = io.BytesIO()
            picture.convert("RGB").save(out, "JPEG", quality=88)
            aspect = picture.width / picture.height
    except (OSError, SyntaxError, ValueError) as error:
        raise StorageConflict(one_line("picture can't be read", where, str(error), "run its step again")) from error
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii"), aspect


def _in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
