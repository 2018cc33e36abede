"""The command line: what it prints where, and with which status it ends."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cyclopts import App

from flows.cli import VERBS, run_command
from flows.commands.workspaces import SCHEMAS
from flows.console import Exit
from flows.run import RunResult
from pipeline.execute import execute
from pipeline.ingest import ingest_session
from pipeline.opening import open_workspace
from pipeline.standing import StepStanding
from registration.procedural_expressions import EXPRESSIONS
from storage.store import LocalStore
from tests.flows.small_steps import STEPS

LEAVES = [
    "simulate", "init", "template import-ict", "template import-flame", "template import-mesh", "template learn",
    "ingest", "plan", "run", "clean", "register", "sample", "train", "baselines", "evaluate", "protocols", "report",
    "status", "judge", "fit", "mesh", "transfer", "interpolate", "models list", "models promote", "models rollback",
    "release build", "release verify", "release diff", "release withdraw", "gc", "doctor", "schema",
]  # fmt: skip


@pytest.mark.parametrize("verb", LEAVES)
def test_every_verb_has_help_with_an_example(verb, capsys):
    assert run_command([*verb.split(), "--help"]) == Exit.DONE
    shown = capsys.readouterr().out
    assert "For example:" in shown
    assert f"nphm {verb}" in re.sub(r"\s+", " ", shown.split("For example:")[1])
    assert "--json" in shown
    assert "--quiet" in shown


def test_help_tells_how_many_expressions_there_are(capsys):
    run_command(["simulate", "--help"])
    assert f"at most {len(EXPRESSIONS)}" in re.sub(r"\W+", " ", capsys.readouterr().out)


def test_no_verb_is_missing_from_the_list_above():
    names = set()
    for verb in VERBS:
        if isinstance(verb, App):
            names |= {f"{verb.name[0]} {name}" for name in verb if not name.startswith("-")}
        else:
            names.add(verb.__name__)
    assert {name.replace("_", "-") for name in names} == set(LEAVES)


@pytest.mark.parametrize(
    "line",
    [
        "bla", "run", "run -w x --until never", "ingest -w x", "judge 001/smile perhaps", "schema nothing", "run -w x",
        "run -w x --workers -3", "clean -w x --workers 0", "release diff nowhere elsewhere",
        "mesh model -o x --expression smile --resolution 2",
    ],
)  # fmt: skip
def test_wrong_usage_is_one_line_and_status_2(line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_command(line.split()) == Exit.WRONG_USAGE
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert told.err.startswith("nphm: ")


def test_json_prints_one_document_even_for_an_error(capsys, tmp_path):
    assert run_command(["status", "-w", str(tmp_path), "--json"]) == Exit.WRONG_USAGE
    assert "is no workspace" in json.loads(capsys.readouterr().out)["error"]


def test_status_and_plan_of_a_workspace(workspace, capsys):
    assert run_command(["status", "-w", workspace, "--json"]) == Exit.DONE
    assert {"ingest", "clean"} <= {step["step"] for step in json.loads(capsys.readouterr().out)["steps"]}
    assert run_command(["plan", "-w", workspace, "-q"]) == Exit.DONE
    assert capsys.readouterr().out == ""


def test_a_session_that_cant_be_read_is_an_error_that_even_quiet_tells(workspace, session, capsys, tmp_path):
    nowhere = str(tmp_path / "nowhere")
    assert run_command(["ingest", nowhere, "-w", workspace, "-q"]) == Exit.NOTHING_USABLE
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert nowhere in told.err
    for scan in session.glob("*/*/scan.ply"):
        scan.write_bytes(b"no mesh")
    assert run_command(["ingest", str(session), "-w", workspace, "-q"]) == Exit.NOTHING_USABLE
    assert capsys.readouterr().err == "nphm: 0 scans taken in, 0 unchanged, 4 rejected\n"


def test_taking_in_lists_what_was_rejected(workspace, session, capsys):
    (session / "001" / "smile" / "scan.ply").write_bytes(b"no mesh")
    (session / "001" / "frown@2").mkdir()
    assert run_command(["ingest", str(session), str(session / "not"), "-w", workspace]) == Exit.DONE
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "3 scans taken in, 0 unchanged, 2 rejected; sessions not read: 1"
    lines = open_workspace(workspace).store.get("rejected.jsonl").splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["001/smile", "001/frown@2"]


def test_a_scan_that_was_refused_takes_none_from_those_that_can_be_used():
    rejected = [
        {"key": "001/smile", "step": "clean", "reason": "no head", "file": "clean/001/smile/report.json"},
        {"key": "001/neutral", "step": "ingest", "reason": "another's", "file": "sessions/other.json"},
    ]
    reply = RunResult([StepStanding("ingest", 3, 0, 0)], rejected=rejected).reply(strict=False)
    assert reply.lines[-1] == "2 of 3 scans usable, 2 rejected"
    refused = RunResult([StepStanding("ingest", 1, 0, 0)], rejected=rejected[1:]).reply(strict=False)
    assert refused.exit == Exit.DONE


def test_damage_is_named_by_status(workspace, session, capsys):
    ingest_session(open_workspace(workspace), session)
    execute(workspace, "clean", "001/smile", STEPS)
    made = open_workspace(workspace, STEPS).manifest("clean", "001/smile")
    assert made is not None
    open_workspace(workspace).store.put(made.outputs["made.bin"].path, b"other")
    assert run_command(["status", "-w", workspace]) == Exit.FAILED
    assert "damaged: clean/001/smile/made.bin was changed" in capsys.readouterr().out


def test_a_persons_word_is_kept(workspace, session, capsys):
    ingest_session(open_workspace(workspace), session)
    line = ["judge", "001/smile", "reject", "--reason", "he blinked", "--by", "Ana", "-w", workspace]
    assert run_command([*line, "--json"]) == Exit.DONE
    assert json.loads(capsys.readouterr().out) == {
        "key": "001/smile", "verdict": "reject", "reason": "he blinked", "by": "Ana"
    }  # fmt: skip
    line[2] = "withdraw"
    assert run_command(line) == Exit.DONE
    assert open_workspace(workspace).judgement("001/smile") is None
    assert run_command(line) == Exit.WRONG_USAGE
    assert "001/smile: was judged by nobody" in capsys.readouterr().err
    line[1] = "001/frown"
    assert run_command(line) == Exit.WRONG_USAGE
    assert "is no scan of this workspace (subject 001 has 001/neutral, 001/smile)" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "told"), [(28, "No space left on device"), (30, "Read-only file system")])
def test_a_full_disk_and_a_read_only_one_are_told_in_a_line(workspace, session, capsys, monkeypatch, number, told):
    ingest_session(open_workspace(workspace), session)

    def refuse(self, path, data):
        raise OSError(number, told, path)

    monkeypatch.setattr(LocalStore, "put", refuse)
    line = ["judge", "001/smile", "reject", "--reason", "he blinked", "--by", "Ana", "-w", workspace]
    assert run_command(line) == Exit.FAILED
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "could not read or write" in said
    assert told in said


def test_a_reader_who_has_seen_enough_is_no_fault(tmp_path):
    command = [sys.executable, "-m", "flows", "schema", "release"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2])
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


def test_an_unforeseen_error_names_a_log_and_shows_no_traceback(nphm, tmp_path):
    broken = tmp_path / "sitecustomize.py"
    broken.write_text(
        "import pipeline.opening as o\ndef fail(*a): raise ZeroDivisionError('boom')\no.open_workspace = fail\n"
    )
    done = nphm("status", "-w", "x", PYTHONPATH=f"{tmp_path}:{Path(__file__).parents[2]}")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    log = re.search(r"report it with (\S+)", done.stderr)
    assert log is not None
    assert "ZeroDivisionError: boom" in Path(log[1]).read_text()


def test_help_loads_nothing_heavy():
    heavy = ("torch", "open3d", "prefect", "numpy", "pydantic")
    code = f"import sys, flows.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_a_plan_and_a_status_load_nothing_that_computes():
    heavy = ("torch", "open3d", "prefect", "scipy", "matplotlib", "numba", "zarr", "pymeshlab", "skimage")
    code = f"import sys, pipeline.opening, pipeline.outlook; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", list(SCHEMAS))
def test_schemas_are_printed(name, capsys):
    assert run_command(["schema", name, "--json"]) == Exit.DONE
    assert json.loads(capsys.readouterr().out)["type"] == ("array" if name == "landmarks" else "object")
