"""An upload is handed on once it is finished, and once for each content."""

from __future__ import annotations

from pipeline.inbox import MARKER, look_at_inbox
from storage.store import LocalStore


def test_a_marker_finishes_an_upload(tmp_path):
    inbox = LocalStore(tmp_path)
    inbox.put("monday/001/smile/scan.ply", b"1")
    assert look_at_inbox(inbox.stats(), {}, 0, 60).seen == {}  # nothing tells that it is a session
    inbox.put("monday/session.json", b"{}")
    first = look_at_inbox(inbox.stats(), {}, 0, 60)
    assert (first.finished, first.waiting) == ({}, ["monday"])
    inbox.put(f"monday/{MARKER}", b"")
    assert set(look_at_inbox(inbox.stats(), first.seen, 1, 60).finished) == {"monday"}


def test_an_upload_at_rest_is_finished_and_one_that_grows_is_not(tmp_path):
    inbox = LocalStore(tmp_path)
    inbox.put("north/monday/session.json", b"{}")
    look = look_at_inbox(inbox.stats(), {}, 100, 60)
    inbox.put("north/monday/001/smile/scan.ply", b"1")
    look = look_at_inbox(inbox.stats(), look.seen, 161, 60)
    assert look.waiting == ["north/monday"]
    look = look_at_inbox(inbox.stats(), look.seen, 220, 60)
    assert look.waiting == ["north/monday"]
    assert set(look_at_inbox(inbox.stats(), look.seen, 221, 60).finished) == {"north/monday"}


def test_what_was_taken_is_handed_on_again_only_when_it_changed(tmp_path):
    from dataclasses import replace

    inbox = LocalStore(tmp_path)
    inbox.put("a/session.json", b"{}")
    look = look_at_inbox(inbox.stats(), {}, 0, 0)
    taken = {root: replace(seen, taken=look.finished[root]) for root, seen in look.seen.items()}
    assert look_at_inbox(inbox.stats(), taken, 1000, 0).finished == {}
    inbox.put("a/001/smile@2/scan.ply", b"2")
    later = look_at_inbox(inbox.stats(), taken, 1000, 0)
    assert set(later.finished) == {"a"}
    assert later.finished != look.finished
