"""Where a subject is named, and where other things only look like it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.traces import Traces


@pytest.mark.parametrize(
    ("subject", "named", "not_named"),
    [
        ("007", ["007", "007/smile", "sample/007/smile is gone", "see 007."], ["1007", "0.007", "007-b", "007.b/x"]),
        ("xq-17", ["xq-17", "/data/xq-17/scan.ply", "'xq-17'"], ["xq-171", "a-xq-17", "xq-17.b", "xq_17"]),
        ("2", ["2", "clean/2/smile"], ["step version 1 -> 2", "2 cores", "12/smile", "a-2/smile"]),
    ],
)
def test_names_are_words(subject, named, not_named):
    traces = Traces(subject)
    assert [text for text in named if not traces.in_text(text)] == []
    assert [text for text in not_named if traces.in_text(text)] == []


def test_paths_bear_ids_as_whole_names():
    traces = Traces("a.b")
    assert [p for p in ("clean/a.b/x", "c/a.b.png", "a.b") if not traces.in_path(p)] == []
    assert [p for p in ("clean/a.bc/x", "c/a.b-1.png", "a/b", "a.b.c/x", "clean/a/x.json") if traces.in_path(p)] == []


def test_json_loses_what_names_the_subject_and_nothing_else():
    traces = Traces("007")
    told = {
        "007": 1,
        "keep": [1, "007", "008", {"key": "007/smile", "n": 2}, {"key": "008/smile"}],
        "deep": {"x": {"y": "007"}},
    }
    left = json.loads(traces.removed("a.json", json.dumps(told).encode(), "withdrawn"))
    assert left == {"keep": [1, "008", {"key": "008/smile"}], "deep": {}}
    assert traces.removed("a.json", b'{"subject": "007"}', "withdrawn") is None
    assert not traces.in_data("a.bin", b"007")
    lines = b'{"key":"007/a"}\n{"key":"008/a"}\nnot json 007\n'
    assert traces.removed("a.jsonl", lines, "withdrawn") == b'{"key":"008/a"}\n'


def test_toml_keeps_its_sense():
    traces = Traces("007")
    told = b'ids = ["007", "008"] # 007 is late\nmm = 0.007\nname = "a007"\n'
    assert (
        traces.removed("p.toml", told, "withdrawn")
        == b'ids = ["withdrawn", "008"] # withdrawn\nmm = 0.007\nname = "a007"\n'
    )


NAMES = st.from_regex(r"[a-z0-9][a-z0-9_-]{2,8}", fullmatch=True).filter(lambda name: not name.isdecimal())


@given(
    NAMES,
    st.recursive(st.integers() | NAMES, lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner), max_leaves=8),
)
def test_what_is_left_never_names_the_subject(subject, value):
    traces = Traces(subject)
    data = json.dumps({"a0a0": value, "b0b0": [subject, {"k0k0": f"{subject}/smile"}]}).encode()
    left = traces.removed("x.json", data, "withdrawn")
    assert left is None or not traces.in_data("x.json", left)
    assert left is None or f'"{subject}"'.encode() not in left
