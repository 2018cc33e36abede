"""What is told of a step that is under way."""

from __future__ import annotations

import io

from rich.console import Console

from flows import progress
from flows.progress import BarProgress, LineProgress


def test_one_scan_and_two_scans(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", -1.0)
    lines = LineProgress()
    lines.start("clean", 1)
    lines.update("clean", 1)
    lines.start("train", 1, "step")
    lines.update("train", 5, "loss", 9)
    assert capsys.readouterr().err.splitlines() == [
        "clean: 1 scan to do", "clean: 1 of 1 scan", "train: 1 step to do", "train: 5 of 9 steps, loss"
    ]  # fmt: skip


def test_bars_name_their_units():
    bars = BarProgress()
    console = Console(width=120, record=True, file=io.StringIO())
    bars.start("clean", 1)
    bars.start("train", 1, "step")
    bars.update("train", 5, total=9)
    console.print(bars._bars.get_renderable())
    shown = " ".join(console.export_text().split())
    assert "1 scan " in shown
    assert "5/9 steps " in shown
