"""A withdrawn subject is refused, and the refusal leaves no trace."""

from __future__ import annotations

import pytest

from pipeline.ingest import ingest_session
from pipeline.pseudonyms import SECRET_PATH, Pseudonyms, is_pseudonym
from pipeline.tombstones import Tombstone, Withdrawn, bar_content, list_tombstones, put_tombstone, read_tombstone
from storage.errors import StorageConflict
from storage.store import LocalStore


def bury(store, subject: str) -> Tombstone:
    names = Pseudonyms.of(store)
    tombstone = Tombstone(
        subject_digest=names.digest("withdrawn", subject),
        pseudonym=names.subject(subject),
        reason="asked for it",
        withdrawn_on="2026-01-02",
    )
    put_tombstone(store, names, subject, tombstone)
    return tombstone


def test_pseudonyms_stay_and_hang_on_the_key(tmp_path):
    one, other = (Pseudonyms.of(LocalStore(tmp_path / name)) for name in ("a", "b"))
    again = Pseudonyms.of(LocalStore(tmp_path / "a"))
    assert one.subject("anna") == again.subject("anna") != other.subject("anna")
    assert is_pseudonym(one.subject("anna"))
    assert not is_pseudonym("anna")
    assert one.scan("anna/smile@2") == f"{one.subject('anna')}/smile@2"
    assert one.digest("a", "x") != one.digest("b", "x")


def test_a_damaged_key_is_told(tmp_path):
    store = LocalStore(tmp_path)
    store.put(SECRET_PATH, b"short")
    with pytest.raises(StorageConflict, match="bring back its copy"):
        Pseudonyms.of(store)


def test_a_withdrawn_subject_is_refused_and_nothing_is_noted(workspace, make_session):
    bury(workspace.store, "xq-17")
    session = make_session(subjects={"xq-17": ["neutral"], "002": ["neutral"]})
    for _ in range(2):
        report = ingest_session(workspace, session)
        assert [refusal.key for refusal in report.refused] == ["xq-17/neutral"]
        assert "was withdrawn" in report.refused[0].line
        assert workspace.scans() == ["002/neutral"]
    stored = {path: workspace.store.get(path) for path in workspace.store.list()}
    assert not [path for path, data in stored.items() if "xq-17" in path or b"xq-17" in data]


def test_a_withdrawn_scan_is_refused_under_another_id_too(workspace, make_session):
    session = make_session(subjects={"xq-17": ["neutral"]})
    ingest_session(workspace, session)
    content = workspace.manifest("ingest", "xq-17/neutral").extra("content_digest")
    bar_content(workspace.store, Pseudonyms.of(workspace.store), content)
    report = ingest_session(workspace, session, "new-")
    assert "the same scan was withdrawn" in report.refused[0].line
    assert workspace.scans() == ["xq-17/neutral"]


def test_tombstones_are_found_by_id_alone(tmp_path):
    store = LocalStore(tmp_path)
    assert read_tombstone(store, "anna") is None
    assert Withdrawn(store).refusal("anna/smile") is None
    tombstone = bury(store, "anna")
    assert read_tombstone(store, "anna") == tombstone
    assert read_tombstone(store, "ann") is None
    assert list_tombstones(store) == [tombstone]
    assert b"anna" not in b"".join(store.get(path) for path in store.list())
