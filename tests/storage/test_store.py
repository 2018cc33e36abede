"""Both kinds of store keep the same promises."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import MemoryStore, S3Store

from storage.errors import ConfigError, StorageConflict
from storage.store import LocalStore, ObjectStore, Store, check_path, open_store


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path) -> Store:
    return LocalStore(tmp_path / "store") if request.param == "local" else ObjectStore(MemoryStore(), "memory://")


def test_put_get_list_delete(store):
    assert store.list() == []
    store.put("b/two.bin", b"22")
    store.put("a.txt", b"1")
    store.put("b/c/three", b"333")
    assert store.list() == ["a.txt", "b/c/three", "b/two.bin"]
    assert store.list("b") == ["b/c/three", "b/two.bin"]
    assert store.list("b/c") == ["b/c/three"]
    assert store.list("nothing") == []
    assert {path: stat.bytes for path, stat in store.stats().items()} == {"a.txt": 1, "b/c/three": 3, "b/two.bin": 2}
    assert store.get("b/two.bin") == b"22"
    assert b"".join(store.pieces("b/two.bin")) == b"22"
    assert list(store.get_many(["b/two.bin", "nothing", "a.txt"])) == [b"22", None, b"1"]
    with store.local_path("b/two.bin") as file:
        assert file.read_bytes() == b"22"
    store.delete("b/two.bin")
    store.delete("b/two.bin")
    assert not store.exists("b/two.bin")
    assert store.stat("b/two.bin") is None
    with pytest.raises(FileNotFoundError):
        store.get("b/two.bin")
    with pytest.raises(FileNotFoundError), store.local_path("b/two.bin"):
        pass


def test_an_object_larger_than_a_piece_is_copied_in_pieces(store, tmp_path, monkeypatch):
    monkeypatch.setattr("storage.store._PIECE_BYTES", 1000)
    data = bytes(range(256)) * 100
    store.put("a", data)
    pieces = list(store.pieces("a"))
    assert b"".join(pieces) == data
    copied = LocalStore(tmp_path / "copy")
    copied.put_pieces("b", iter(pieces))
    assert copied.get("b") == data
    with pytest.raises(FileNotFoundError):
        list(store.pieces("nothing"))


def test_a_local_copy_takes_a_piece_of_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("storage.store._PIECE_BYTES", 1 << 16)
    source, target = LocalStore(tmp_path / "from"), LocalStore(tmp_path / "to")
    source.put("a", bytes(8 << 20))
    tracemalloc.start()
    target.put_pieces("a", source.pieces("a"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_prefix_is_a_folder(store):
    store.put("clean/001/x", b"")
    store.put("clean/0011/x", b"")
    assert store.list("clean/001") == ["clean/001/x"]


def test_another_write_is_another_version(store):
    store.put("a", b"1")
    first = store.stat("a")
    time.sleep(0.01)
    store.put("a", b"2")
    assert store.stat("a").version != first.version
    assert store.stat("a").modified_ns >= first.modified_ns
    assert store.stats()["a"] == store.stat("a")


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/./b", "a\\..\\b", "a\0b", "a/", ".tmp/x"]
)
def test_no_path_leaves_the_store(store, path):
    for call in (store.get, store.stat, store.delete, lambda p: store.put(p, b"")):
        with pytest.raises(StorageConflict, match="is no path in a store"):
            call(path)


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b.txt", "~", "\\", " "]), min_size=1, max_size=5))
def test_what_is_a_path_stays_inside(parts):
    path = "/".join(parts)
    try:
        check_path(path)
    except StorageConflict:
        return
    assert os.path.normpath(os.path.join("/top", path)) == "/top/" + path


def test_a_link_out_of_the_store_is_refused(tmp_path):
    store = LocalStore(tmp_path / "store")
    store.put("a", b"1")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/x").write_bytes(b"secret")
    (tmp_path / "store/link").symlink_to(tmp_path / "outside")
    for call in (store.get, store.delete, lambda p: store.put(p, b"")):
        with pytest.raises(StorageConflict, match="lies outside the store"):
            call("link/x")
    assert store.list() == ["a"]
    assert (tmp_path / "outside/x").read_bytes() == b"secret"


def test_a_store_may_itself_be_reached_by_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    LocalStore(tmp_path / "link").put("a/b", b"1")
    assert (tmp_path / "real/a/b").read_bytes() == b"1"


def test_a_failed_put_leaves_the_old_object(tmp_path, monkeypatch):
    store = LocalStore(tmp_path)
    store.put("a", b"old")
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        store.put("a", b"new")
    assert store.get("a") == b"old"
    assert list((tmp_path / ".tmp").iterdir()) == []


def test_a_killed_writer_leaves_old_or_new_and_is_swept(tmp_path):
    code = (
        "import sys; from storage.store import LocalStore; s = LocalStore(sys.argv[1]); print('up', flush=True)\n"
        "while True:\n    s.put('a', b'x' * 3_000_000)\n    s.put('a', b'y' * 3_000_000)\n"
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    process.stdout.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    store = LocalStore(tmp_path)
    data = store.get("a")
    assert len(data) == 3_000_000
    assert len(set(data)) == 1
    store.sweep()
    assert list((tmp_path / ".tmp").iterdir()) == []


def test_a_living_writer_is_not_swept(tmp_path):
    store = LocalStore(tmp_path)
    store.put("a", b"")
    import socket

    mine = tmp_path / ".tmp" / f"{socket.gethostname()}.{os.getpid()}.abc"
    mine.write_bytes(b"half")
    assert store.sweep() == 0
    assert mine.exists()


def test_open_store(tmp_path, monkeypatch):
    assert isinstance(open_store(str(tmp_path)), LocalStore)
    assert open_store(f"file://{tmp_path}").url == str(tmp_path)
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    assert isinstance(open_store("s3://bucket/prefix"), ObjectStore)
    with pytest.raises(ConfigError, match="is no store"):
        open_store("ftp://somewhere")


def test_empty_folders_are_pruned(store, tmp_path):
    for path in ("a/b/c/x", "a/b/y", "ab/z"):
        store.put(path, b"")
    store.delete("a/b/c/x")
    store.prune("a")
    assert store.list() == ["a/b/y", "ab/z"]
    store.delete("a/b/y")
    store.prune()
    store.prune("nowhere")
    assert store.list() == ["ab/z"]
    if isinstance(store, LocalStore):
        assert sorted(entry.name for entry in store.root.iterdir()) == [".tmp", "ab"]


def test_a_bucket_that_does_not_answer_is_an_error_of_the_system():
    remote = S3Store(
        "bucket",
        endpoint="http://127.0.0.1:9",
        access_key_id="x",
        secret_access_key="x",
        region="x",
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    store = ObjectStore(remote, "s3://bucket")
    for call in (lambda: store.get("a"), lambda: store.put("a", b""), lambda: store.stat("a"), store.stats):
        with pytest.raises(OSError, match="s3://bucket"):
            call()
