"""The metrics are as Prometheus reads them."""

from __future__ import annotations

import re

from pipeline.metrics import metrics_text
from pipeline.standing import StepStanding


def test_every_line_is_a_sample_or_tells_of_one():
    standing = [StepStanding("clean", 4, 1, 2, ("one",))]
    cost = {"clean": {"results": 3, "seconds": 1.5, "bytes": 10}}
    figures = {"face_mm": 0.5, "note": 'no "number"'}
    text = metrics_text(standing, cost, failures=1, ended=12.5, model='a"b\\c', figures=figures).decode()
    sample = re.compile(r'^[a-z_]+(\{[a-z]+="(\\.|[^"\\])*"(,[a-z]+="(\\.|[^"\\])*")*\})? -?[0-9.e+-]+$')
    lines = text.splitlines()
    assert all(sample.match(line) or line.startswith(("# HELP nphm_", "# TYPE nphm_")) for line in lines)
    assert 'nphm_results{step="clean",verdict="accepted"} 4' in lines
    assert 'nphm_damaged{step="clean"} 1' in lines
    assert 'nphm_run_seconds{step="clean"} 1.5' in lines
    assert 'nphm_model_figure{model="a\\"b\\\\c",figure="face_mm"} 0.5' in lines
    assert "number" not in text
    assert len({line for line in lines if line.startswith("# TYPE")}) == len(
        {line.split("{")[0].split(" ")[0] for line in lines if not line.startswith("#")}
    )
