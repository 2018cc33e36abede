"""All manifests at once, while somebody else writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

import pytest

from pipeline.execute import execute_in
from pipeline.ingest import ingest_session
from pipeline.judge import forget_judgement, record_judgement
from pipeline.planner import plan
from pipeline.snapshot import take_snapshot
from pipeline.standing import stand
from pipeline.workspace import Workspace
from storage.errors import StorageConflict
from storage.store import LocalStore


class _BusyStore(LocalStore):
    """Something happens between a folder's listing and the reading of what it listed."""

    meanwhile: Callable[[], None] | None = None

    def get_many(self, paths: Iterable[str]) -> Iterator[bytes | None]:
        happens, self.meanwhile = self.meanwhile, None
        if happens is not None:
            happens()
        return super().get_many(paths)


@pytest.fixture
def busy(workspace, make_session) -> tuple[Workspace, _BusyStore]:
    """A workspace with two clean scans."""
    store = _BusyStore(workspace.store.root)
    opened = Workspace(store, workspace.config, workspace.steps)
    ingest_session(opened, make_session())
    for key in opened.scans():
        execute_in(opened, "clean", key)
    return opened, store


def test_what_is_withdrawn_while_it_is_read_is_left_out(busy):
    workspace, store = busy
    store.meanwhile = lambda: store.delete("clean/001/smile/report.json")
    book = take_snapshot(workspace)
    assert book.manifest("clean", "001/smile") is None
    assert book.manifest("clean", "001/neutral") is not None
    assert ("clean", "001/smile") in {(action.step, action.key) for action in plan(book)}


def test_what_is_made_anew_while_it_is_read_is_not_damaged(busy):
    workspace, store = busy

    def make_anew() -> None:
        workspace.commit("clean", "001/smile", outputs={"mesh.ply": b"of another length"}, figures={"coverage": 0.9})

    store.meanwhile = make_anew
    book = take_snapshot(workspace)
    made = book.manifest("clean", "001/smile")
    assert made is not None
    assert made.figures == {"coverage": 0.9}
    assert [step.damaged for step in stand(book, ()) if step.damaged] == []


def test_what_is_withdrawn_after_it_was_read_is_not_damaged(busy, monkeypatch):
    workspace, store = busy
    taken = store.stats

    def stats(folder: str = "") -> dict:
        if folder == "elsewhere":  # listed for the outputs that lie outside the steps' own folders
            for path in store.list("clean/001/smile"):
                store.delete(path)
            store.delete("elsewhere/mesh.ply")
        return taken(folder)

    made = workspace.manifest("clean", "001/smile")
    moved = {"mesh.ply": made.outputs["mesh.ply"].model_copy(update={"path": "elsewhere/mesh.ply"})}
    store.put("elsewhere/mesh.ply", store.get("clean/001/smile/mesh.ply"))
    workspace.commit("clean", "001/smile", outputs=moved, figures={"coverage": 0.9})
    monkeypatch.setattr(store, "stats", stats)
    book = take_snapshot(workspace)
    assert book.manifest("clean", "001/smile") is None
    assert [step.damaged for step in stand(book, ()) if step.damaged] == []


def test_what_is_damaged_is_told(busy):
    workspace, store = busy
    store.put("clean/001/smile/mesh.ply", b"other")
    (clean,) = [step for step in stand(take_snapshot(workspace), ()) if step.step == "clean"]
    assert clean.damaged == ("clean/001/smile/mesh.ply was changed",)


def test_a_word_that_is_taken_back_while_it_is_read(busy, monkeypatch):
    workspace, store = busy
    record_judgement(workspace, "001/smile", "reject", reason="he blinked", by="Ana")
    taken = store.list

    def listed(folder: str = "") -> list[str]:
        paths = taken(folder)
        if folder == "judgements":
            forget_judgement(workspace, "001/smile")
        return paths

    monkeypatch.setattr(store, "list", listed)
    assert take_snapshot(workspace).judgement("001/smile") is None


@pytest.mark.parametrize(("path", "data"), [("notes.txt", b"mine"), ("001/smile.json", b"{"), ("x.json", b"[]")])
def test_what_is_no_judgement_is_named(busy, path, data):
    workspace, store = busy
    store.put(f"judgements/{path}", data)
    with pytest.raises(StorageConflict, match=f"{path}: is no judgement"):
        take_snapshot(workspace)


def test_a_file_that_goes_while_its_folder_is_listed(busy, monkeypatch):
    _, store = busy
    listed = os.scandir

    class _Entries:
        """A folder's entries; one is deleted after it was asked whether it is a file."""

        def __init__(self, at: object) -> None:
            self.entries = listed(at)

        def __enter__(self) -> _Entries:
            return self

        def __exit__(self, *args: object) -> None:
            self.entries.close()

        def __iter__(self) -> Iterator[os.DirEntry[str]]:
            for entry in self.entries:
                entry.is_file()  # keeps the answer, as the store's own question does
                if entry.name == "sheet.png":
                    os.unlink(entry.path)
                yield entry

    monkeypatch.setattr(os, "scandir", _Entries)
    assert store.list("clean/001/smile") == ["clean/001/smile/mesh.ply", "clean/001/smile/report.json"]
