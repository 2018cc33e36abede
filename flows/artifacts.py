"""What the server shows of a run: a page a session, and what the run cost."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from typing import Any

from PIL import Image
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from pipeline.planner import keys_in_order
from pipeline.snapshot import Snapshot
from pipeline.workspace import Workspace
from storage.manifest import Manifest

_MOST_PICTURES = 3
_PICTURE_PIXELS = 640
_FIGURES = {
    "clean": ("views_used", "coverage", "spread_median_mm"),
    "register": ("face_residual_median_mm", "face_residual_p95_mm"),
}
"""The figures of each step that a capture team looks at first."""


def show_session(workspace: Workspace, book: Snapshot, session: str, report: str | None) -> None:
    """Show a session: its scans with their quality and verdicts, why some were rejected, and pictures of these.

    Args:
        book: the workspace's manifests.
        session: its id.
        report: address of the report, where there is one.
    """
    keys = [key for key in keys_in_order(book) if _session(book, key) == session]
    rejected = [(key, manifest) for key in keys if (manifest := _rejected(book, key)) is not None]
    lines = [f"# Session {session}", "", f"{len(keys) - len(rejected)} of {len(keys)} scans usable.", ""]
    if report is not None:
        lines += [f"Report: `{report}`", ""]
    named = [(step, figure) for step, figures in _FIGURES.items() for figure in figures]
    lines += ["| scan | verdict | " + " | ".join(figure for _, figure in named) + " |", "|---" * (len(named) + 2) + "|"]
    for key in keys:
        cells = [_figure(book.manifest(step, key), figure) for step, figure in named]
        verdict = "rejected" if any(key == other for other, _ in rejected) else "accepted"
        lines.append(f"| {key} | {verdict} | {' | '.join(cells)} |")
    if rejected:
        lines += ["", "## Rejected", ""]
        lines += [
            f"- **{key}** at {manifest.step}: {_plain('; '.join(manifest.reasons))}" for key, manifest in rejected
        ]
    pictured = [(key, sheet) for key, _ in rejected if (sheet := book.manifest("clean", key)) is not None]
    for key, manifest in pictured[:_MOST_PICTURES]:
        if "sheet.png" in manifest.outputs:
            lines += ["", f"![{key}]({_thumbnail(workspace.read(manifest, 'sheet.png'))})"]
    create_markdown_artifact("\n".join(lines), key=_key(f"session-{session}"), description=f"Session {session}")


def show_cost(flow: str, cost: Mapping[str, Mapping[str, float]]) -> None:
    """Show what a run cost: results, seconds of work and megabytes a step."""
    rows: list[dict[str, Any]] = [
        {
            "step": step,
            "results": int(sums["results"]),
            "seconds": round(sums["seconds"], 1),
            "megabytes": round(sums["bytes"] / 1e6, 1),
        }
        for step, sums in cost.items()
    ]
    if rows:
        create_table_artifact(rows, key=_key(f"cost-{flow}"), description="What the run cost")


def show_comparison(comparison: Mapping[str, Any]) -> None:
    """Show how a new model compares with the last one."""
    rows = [{"what": name, "value": value} for name, value in comparison.items()]
    create_table_artifact(rows, key="promotion", description="A new model against the last one")


def _session(book: Snapshot, key: str) -> str:
    taken = book.manifest("ingest", key)
    return "" if taken is None else str(taken.extra("session_id"))


def _rejected(book: Snapshot, key: str) -> Manifest | None:
    for spec in book.steps.values():
        manifest = book.manifest(spec.name, key) if spec.scope == "scan" else None
        if manifest is not None and not manifest.accepted:
            return manifest
    return None


def _figure(manifest: Manifest | None, name: str) -> str:
    value = None if manifest is None else manifest.figures.get(name)
    return f"{value:.3g}" if isinstance(value, int | float) else "–"


def _plain(text: str) -> str:
    return text.replace("|", "/").replace("<", "&lt;")


def _thumbnail(png: bytes) -> str:
    with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
        small = picture.convert("RGB")
        small.thumbnail((_PICTURE_PIXELS, _PICTURE_PIXELS))
        out = io.BytesIO()
        small.save(out, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def _key(name: str) -> str:
    """The engine's keys of artifacts are lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
