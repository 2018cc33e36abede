"""Folder trees of foreign data sets become sessions that ingest reads."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.foreign import write_session
from pipeline.ingest import ingest_session
from storage.errors import ConfigError
from storage.ply import write_ply


@pytest.fixture
def ball() -> bytes:
    points = np.random.default_rng(0).normal(size=(300, 3))
    points *= 100 / np.linalg.norm(points, axis=1, keepdims=True)
    return write_ply(dict(zip("xyz", points.T, strict=True)), np.arange(300, dtype=np.int32).reshape(-1, 3))


def test_the_nphm_data_set(workspace, tmp_path, ball):
    root = tmp_path / "nphm" / "scan"
    for name in ("017/000", "017/010", "018/010"):
        (root / name).mkdir(parents=True)
        (root / name / "scan.ply").write_bytes(ball)
        (root / name / "registration.ply").write_bytes(b"not read")
    with pytest.raises(ConfigError, match=r"neutrals_open\.json is missing"):
        write_session(root, "nphm", tmp_path / "session")
    (root.parent / "neutrals_open.json").write_text('{"17": 10, "18": 10}')
    session = write_session(root, "nphm", tmp_path / "session")
    report = ingest_session(workspace, session)
    assert sorted(report.accepted) == ["017/000", "017/neutral_open", "018/neutral_open"]
    assert workspace.canonical_key("017") == "017/neutral_open"
    assert (session / "017/000/scan.ply").samefile(root / "017/000/scan.ply")
    assert write_session(root, "nphm", session) == session
    assert ingest_session(workspace, session).accepted == []


@pytest.mark.parametrize("told", ['{"17": "x"}', '{"17": null}', '{"x": 10}', '{"17": [1]}', "[1]", "{", '{"17": 1.5}'])
def test_neutrals_that_tell_nothing(tmp_path, ball, told):
    (tmp_path / "017/000").mkdir(parents=True)
    (tmp_path / "017/000/scan.ply").write_bytes(ball)
    (tmp_path / "neutrals_open.json").write_text(told)
    with pytest.raises(ConfigError, match=r"neutrals_open\.json: "):
        write_session(tmp_path, "nphm", tmp_path / "session")


def test_a_folder_named_by_no_plain_number_is_passed_over(tmp_path, ball):
    for name in ("017/000", "²/000", "017/³"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "scan.ply").write_bytes(ball)
    (tmp_path / "neutrals_open.json").write_text('{"17": 0}')
    session = write_session(tmp_path, "nphm", tmp_path / "session")
    assert [path.name for path in session.glob("*/*")] == ["neutral_open"]


@pytest.mark.parametrize("links", [True, False])
def test_a_source_that_changed_is_taken_anew(tmp_path, ball, links, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    if not links:
        monkeypatch.setattr("os.link", refuse)
    source = tmp_path / "data/2/2_smile.ply"
    source.parent.mkdir(parents=True)
    source.write_bytes(ball)
    there = write_session(tmp_path / "data", "facescape", tmp_path / "session") / "2/smile/scan.ply"
    before = there.stat()
    write_session(tmp_path / "data", "facescape", tmp_path / "session")
    assert there.stat().st_ino == before.st_ino
    source.unlink()
    source.write_bytes(ball + b" ")
    write_session(tmp_path / "data", "facescape", tmp_path / "session")
    assert there.read_bytes() == ball + b" "


def test_facescape(workspace, tmp_path, ball):
    root = tmp_path / "facescape"
    (root / "1/models_reg").mkdir(parents=True)
    corners = "".join(f"v {x} {y} {z}\n" for x in (-90, 90) for y in (-90, 90) for z in (-90, 90))
    faces = (
        "f 1 2 3\nf 2 4 3\nf 5 7 6\nf 6 7 8\nf 1 5 2\nf 2 5 6\nf 3 4 7\nf 4 8 7\nf 1 3 5\nf 3 7 5\nf 2 6 4\nf 4 6 8\n"
    )
    (root / "1/models_reg/1_neutral.obj").write_text(corners + faces)
    (root / "1/models_reg/1_neutral.jpg").write_bytes(b"texture")
    (root / "2").mkdir()
    (root / "2/2_smile.ply").write_bytes(ball)
    session = write_session(root, "facescape", tmp_path / "session")
    note = json.loads((session / "session.json").read_text())
    assert note["subjects"] == [{"id": "1", "expressions": ["neutral"]}, {"id": "2", "expressions": ["smile"]}]
    assert note["canonical_expression"] == "neutral"
    assert "2/smile" in ingest_session(workspace, session).accepted


def test_what_is_no_such_data_set(tmp_path):
    with pytest.raises(ConfigError, match="holds no scans of facescape"):
        write_session(tmp_path, "facescape", tmp_path / "session")
