"""The verbs over releases: what they print, and their exit statuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.cli import run_command
from flows.console import Exit
from pipeline.ingest import ingest_session
from pipeline.opening import open_workspace
from tests.flows.conftest import commit_cleaned


@pytest.fixture
def cleaned(workspace: str, session: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A workspace with the cleaned scans of two people, one of whom agreed to release."""
    monkeypatch.setattr("os.fsync", lambda handle: None)
    told = json.loads((session / "session.json").read_text())
    told["subjects"][0]["consent"] = {"given": True, "scope": ["release"]}
    (session / "session.json").write_text(json.dumps(told))
    opened = open_workspace(workspace)
    commit_cleaned(workspace, ingest_session(opened, session).accepted)
    return workspace


def answered(capsys: pytest.CaptureFixture[str], *tokens: str) -> tuple[Exit, dict]:
    """The exit status and the document of a verb."""
    exit = run_command([*tokens, "--json"])
    return exit, json.loads(capsys.readouterr().out)


def test_build_verify_diff_withdraw(cleaned, tmp_path, capsys):
    first, second = str(tmp_path / "r1"), str(tmp_path / "r2")
    build = ("release", "build", "-w", cleaned, "--parts", "clean", "--version")
    exit, document = answered(capsys, *build, "1.0.0", "-o", first)
    assert exit == Exit.DONE
    assert [one["key"] for one in document["left_out"]] == ["002/neutral", "002/smile"]
    assert (document["subjects"], document["unchanged"]) == (1, False)
    assert run_command([*build, "1.0.0", "-o", first, "-q"]) == Exit.DONE
    assert answered(capsys, "release", "verify", first)[1]["sound"]
    assert run_command([*build, "1.1.0", "-o", first]) == Exit.WRONG_USAGE
    assert "holds another release" in capsys.readouterr().err
    assert run_command([*build, "1.1.0", "-o", second]) == Exit.DONE
    assert "1 people, 0 of them held out, 2 left out" in capsys.readouterr().out
    assert not answered(capsys, "release", "diff", first, second)[1]["subjects"]["added"]

    mesh = next(Path(first).glob("clean/*/smile/mesh.ply"))
    mesh.write_bytes(mesh.read_bytes()[:-1])
    exit, document = answered(capsys, "release", "verify", first)
    assert exit == Exit.FAILED
    assert "mesh.ply: has" in document["faults"][0]

    withdraw = ("release", "withdraw", "001", "-w", cleaned, "--reason", "asked for it")
    exit, document = answered(capsys, *withdraw, "--dry-run")
    assert (exit, document["dry_run"]) == (Exit.DONE, True)
    assert answered(capsys, *withdraw)[0] == Exit.DONE
    assert open_workspace(cleaned).scans() == ["002/neutral", "002/smile"]
    status = answered(capsys, "status", "-w", cleaned)[1]
    assert status["withdrawn"] == {"subjects": 1, "not_complete": []}
    assert [one["version"] for one in status["releases"]] == ["1.0.0", "1.1.0"]
    assert run_command([*build, "1.2.0", "-o", str(tmp_path / "r3")]) == Exit.WRONG_USAGE
    assert "nothing may be released" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tokens", "what", "exit"),
    [
        (["build", "-w", "{ws}", "-o", "{out}", "--version", "1.2"], "is no version", Exit.WRONG_USAGE),
        (["build", "-w", "{out}", "-o", "{out}", "--version", "1.2.0"], "is no workspace", Exit.WRONG_USAGE),
        (["verify", "{out}"], "nothing lies there", Exit.WRONG_USAGE),
        (["verify", "{ws}"], "no manifest.json", Exit.FAILED),
        (["diff", "{out}", "{out}"], "is no release", Exit.WRONG_USAGE),
        (["withdraw", "nobody", "-w", "{ws}", "--reason", "asked"], "is no subject", Exit.WRONG_USAGE),
    ],
)
def test_what_is_wrong_is_said_in_one_line(workspace, tmp_path, capsys, tokens, what, exit):
    filled = [token.format(ws=workspace, out=tmp_path / "out") for token in tokens]
    assert run_command(["release", *filled]) == exit
    said = capsys.readouterr()
    assert what in said.out + said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize("name", ["release", "release-scans", "release-splits", "tombstone"])
def test_documents_have_schemas(name, capsys):
    exit, document = answered(capsys, "schema", name)
    assert exit == Exit.DONE
    assert document["additionalProperties"] is False
    assert "schema_version" in document["properties"]
