"""A workspace and its releases in a bucket, by the command line, against a real S3 server on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.cli import run_command
from flows.console import Exit
from storage.store import LocalStore, open_store
from tests.pipeline.conftest import session_maker
from tests.pipeline.release_rig import finish_workspace

SUBJECT = "xq-17"


@pytest.fixture
def in_bucket(tmp_path: Path, bucket_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A finished workspace of four people, in a bucket."""
    monkeypatch.setattr("os.fsync", lambda handle: None)
    finish_workspace(tmp_path / "workspace", session_maker(tmp_path))
    here, there = LocalStore(tmp_path / "workspace"), open_store(f"{bucket_url}/heads")
    for path in here.list():
        there.put(path, here.get(path))
    return f"{bucket_url}/heads"


def answered(capsys: pytest.CaptureFixture[str], *tokens: str) -> tuple[Exit, dict]:
    """The exit status and the document of a verb."""
    exit = run_command([*tokens, "--json"])
    return exit, json.loads(capsys.readouterr().out)


def test_a_workspace_in_a_bucket_is_looked_over_released_and_loses_a_person(
    in_bucket: str, bucket_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, first = open_store(in_bucket), f"{bucket_url}/releases/1.0.0"
    assert answered(capsys, "status", "-w", in_bucket)[1]["damaged"] == []
    shard = f"samples.zarr/{SUBJECT}/smile/pair_canonical/c/0/0"
    whole = workspace.get(shard)
    workspace.put(shard, whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
    exit, document = answered(capsys, "status", "-w", in_bucket, "--every-byte")  # buckets tell time in seconds
    assert exit == Exit.FAILED
    assert document["damaged"] == [f"{shard} was changed"]
    workspace.put(shard, whole)

    build = ("release", "build", "-w", in_bucket, "--version")
    exit, document = answered(capsys, *build, "1.0.0", "-o", first)
    assert (exit, document["subjects"], len(document["left_out"])) == (Exit.DONE, 3, 2)
    assert run_command([*build, "1.0.0", "-o", str(tmp_path / "here"), "-q"]) == Exit.DONE
    here, there = LocalStore(tmp_path / "here"), open_store(first)
    assert {path: here.get(path) for path in here.list()} == {path: there.get(path) for path in there.list()}
    assert answered(capsys, "release", "verify", first)[1]["sound"]
    assert answered(capsys, "release", "diff", first, str(tmp_path / "here"))[1]["same"]

    exit, document = answered(capsys, "release", "withdraw", SUBJECT, "-w", in_bucket, "--reason", "asked for it")
    assert (exit, document["left"]) == (Exit.DONE, [])
    assert sorted(place.rpartition(" ")[2] for place in document["releases"]) == sorted([first, str(tmp_path / "here")])
    assert not [p for p in workspace.list() if SUBJECT in p or SUBJECT.encode() in workspace.get(p)]
    second = ("1.1.0", "-o", f"{bucket_url}/releases/1.1.0", "-q")
    assert run_command([*build, *second]) == Exit.WRONG_USAGE
    assert "trained on somebody who was withdrawn" in capsys.readouterr().err
    assert run_command([*build, *second, "--parts", "clean", "samples"]) == Exit.DONE
    capsys.readouterr()
    exit, document = answered(capsys, "release", "diff", first, f"{bucket_url}/releases/1.1.0")
    assert len(document["subjects"]["removed"]) == 1

    mesh = next(path for path in there.list("clean") if path.endswith("watertight.ply"))
    there.put(mesh, there.get(mesh)[:-1] + b"?")
    exit, document = answered(capsys, "release", "verify", first)
    assert exit == Exit.FAILED
    assert document["faults"] == [f"{mesh}: its bytes differ from the manifest's digest"]
