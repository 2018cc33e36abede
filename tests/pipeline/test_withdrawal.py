"""A person who takes consent back leaves a workspace whole: nothing but a hashed tombstone stays."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from model.checkpoint import decode
from pipeline.ingest import ingest_session
from pipeline.judge import record_judgement
from pipeline.models import latest_model
from pipeline.planner import plan
from pipeline.pseudonyms import Pseudonyms
from pipeline.release import open_release
from pipeline.release_build import build_release
from pipeline.release_verify import verify_release
from pipeline.snapshot import take_snapshot
from pipeline.tombstones import list_tombstones
from pipeline.withdrawal import withdraw_subject
from pipeline.workspace import Workspace
from storage.errors import ConfigError, StorageConflict
from storage.lock import hold
from storage.manifest import Manifest
from storage.store import LocalStore
from tests.pipeline.release_rig import (
    COST,
    STEPS,
    bring_up,
    code_rows,
    names_in,
    new_workspace,
    opened,
    session_of,
    tree,
)

SUBJECT, ON = "xq-17", "2026-02-03"


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.fixture
def lived_in(finished_workspace, tmp_path) -> Workspace:
    """A finished workspace with a release, judgements, caches, logs and leftovers."""
    shutil.copytree(finished_workspace, tmp_path / "workspace")
    workspace = opened(tmp_path / "workspace")
    build_release(workspace, "1.0.0", LocalStore(tmp_path / "release"))
    store = workspace.store
    record_judgement(workspace, f"{SUBJECT}/smile", "accept", reason="it is fine", by="Ana")
    store.put(f".cache/thumbnails/{SUBJECT}.png", b"a face")
    store.put(f".cache/fits/{SUBJECT}/codes.bin", b"codes")
    store.put(".cache/table.csv", f"scan,mm\n{SUBJECT}/smile,1\nbd-03/smile,2\n".encode())
    store.put("models/torn/codes.safetensors", b"half a model")
    store.put("reports/torn/scan_001.png", b"a face")
    toml = store.get("pipeline.toml").replace(b'"mv-58"', f'"mv-58", "{SUBJECT}"'.encode())
    store.put("pipeline.toml", toml + f"# {SUBJECT} was held out late\n".encode())
    return workspace  # its settings are those before the last line


def withdraw(workspace: Workspace, subject: str = SUBJECT, **how):
    return withdraw_subject(workspace, subject, reason="asked for it", on=ON, **how)


def test_nothing_but_a_hashed_tombstone_stays(lived_in):
    root = lived_in.store.root
    assert len(names_in(root, SUBJECT)) > 30
    done = withdraw(lived_in)
    assert done.left == ()
    assert names_in(root, SUBJECT) == []
    (tombstone,) = list_tombstones(lived_in.store)
    assert tombstone.finished
    assert tombstone.withdrawn_on == ON
    assert tombstone.subject_digest == Pseudonyms.of(lived_in.store).digest("withdrawn", SUBJECT)
    assert not lived_in.store.exists("models/torn/codes.safetensors")
    assert lived_in.store.get(".cache/table.csv") == b"scan,mm\nbd-03/smile,2\n"
    assert b'"mv-58", "withdrawn"' in lived_in.store.get("pipeline.toml")


def test_the_others_stay_as_they_were(lived_in):
    def of_others(paths: dict[str, bytes]) -> dict[str, bytes]:
        folders = ("ingest", "clean", "registrations", "samples", "samples.zarr", "template.npz", "releases")
        return {p: d for p, d in paths.items() if p.split("/")[0] in folders and SUBJECT not in p}

    before = of_others(tree(lived_in.store))
    withdraw(lived_in)
    assert of_others(tree(lived_in.store)) == before
    again = opened(lived_in.store.root)
    assert {key.split("/")[0] for key in again.scans()} == {"bd-03", "mv-58", "yo-44"}
    assert (again.split("mv-58"), again.split("bd-03")) == ("held_out", "train")
    jobs = [json.loads(line)["key"] for line in again.store.get("runs/20260102.jsonl").splitlines()]
    assert "bd-03/smile" in jobs
    assert json.loads(again.store.get("runs/20260102.json"))["cost"] == COST


def test_a_model_loses_its_codes_and_is_stale(lived_in):
    name = latest_model(lived_in).name
    done = withdraw(lived_in)
    assert done.models == (name,)
    manifest = lived_in.manifest("train", name)
    assert lived_in.damage(manifest) is None
    codes, _ = decode(lived_in.read(manifest, "codes.safetensors"))
    told = json.loads(lived_in.read(manifest, "config.json"))
    assert told["subjects"] == ["bd-03", "yo-44"]
    assert codes["identity"].equal(code_rows(told["subjects"]))
    assert codes["expression"].equal(code_rows(told["scans"]))
    assert len(told["scans"]) == 4
    assert lived_in.store.list("checkpoints") == []
    assert lived_in.manifest("report", name) is None
    named = lived_in.config.model_copy(update={"model_name": name})
    steps = {a.step: a for a in plan(take_snapshot(Workspace(lived_in.store, named, STEPS)))}
    assert "is gone" in steps["train"].why
    assert set(steps) == {"train", "report"}


def test_models_releases_and_raw_files_are_listed(lived_in, tmp_path):
    raw = {lived_in.manifest("ingest", f"{SUBJECT}/{e}").extra("source") for e in ("neutral", "smile")}
    done = withdraw(lived_in)
    assert set(done.raw_files) == raw
    assert all(Path(folder, "scan.ply").is_file() for folder in raw)
    assert done.releases == (f"nphm-heads 1.0.0 in {tmp_path / 'release'}",)
    assert done.pseudonym in open_release(tmp_path / "release").splits.train
    other = withdraw(lived_in, "yo-44")  # not in the release, but its model was trained on the scans
    assert other.releases == done.releases


def test_a_repeated_withdrawal_lists_what_is_still_to_be_deleted(lived_in, make_session):
    people = {name: {"expressions": ["frown"]} for name in (SUBJECT, "bd-03")}
    later = session_of(make_session, "later", people, session_id="later")
    ingest_session(lived_in, later)
    first = withdraw(lived_in)
    own = str(later / SUBJECT / "frown")
    assert own in first.raw_files
    again = withdraw(lived_in)
    assert (again.raw_files, again.unread) == (first.raw_files, ())
    shutil.rmtree(own)
    assert withdraw(lived_in).raw_files == tuple(folder for folder in first.raw_files if folder != own)
    (later / "session.json").unlink()
    assert str(later) in withdraw(lived_in).unread[0]
    assert names_in(lived_in.store.root, SUBJECT) == []


def test_the_run_after_goes_on_without_the_person(lived_in, tmp_path):
    source = Path(lived_in.manifest("ingest", f"{SUBJECT}/smile").extra("source"))
    withdraw(lived_in)
    again = opened(lived_in.store.root)
    for prefix in ("", "new-"):
        report = ingest_session(again, source.parents[1], prefix)
        refused = {refusal.key for refusal in report.refused}
        assert {f"{prefix}{SUBJECT}/neutral", f"{prefix}{SUBJECT}/smile"} <= refused
    assert names_in(again.store.root, SUBJECT) == []
    bring_up(again)
    assert names_in(again.store.root, SUBJECT) == []
    old = latest_model(again).name
    with pytest.raises(ConfigError, match="trained on somebody who was withdrawn"):
        build_release(again, "1.1.0", LocalStore(tmp_path / "later"))
    (anew,) = {key for step, key in take_snapshot(again).manifests if step == "train"} - {old}
    build_release(again, "1.1.0", LocalStore(tmp_path / "later"), model=anew)
    pseudonym = Pseudonyms.of(again.store).subject(SUBJECT)
    assert names_in(tmp_path / "later", pseudonym) == []
    assert verify_release(LocalStore(tmp_path / "later")).faults == ()


def test_a_dry_run_writes_nothing(lived_in):
    before = tree(lived_in.store)
    told = withdraw(lived_in, dry_run=True)
    assert tree(lived_in.store) == before
    done = withdraw(lived_in)
    assert (done.removed, done.models, done.releases) == (told.removed, told.models, told.releases)


def test_a_session_of_the_person_alone_is_forgotten(lived_in, make_session):
    alone = session_of(make_session, SUBJECT, {SUBJECT: {"expressions": ["frown"]}}, session_id=f"day of {SUBJECT}")
    ingest_session(lived_in, alone)
    assert len(lived_in.store.list("sessions")) == 2
    withdraw(lived_in)
    assert len(lived_in.store.list("sessions")) == 1
    assert names_in(lived_in.store.root, SUBJECT) == []


def test_the_last_person_takes_the_model_along(lived_in):
    for subject in (SUBJECT, "yo-44", "bd-03"):
        withdraw(lived_in, subject)
    assert lived_in.store.list("models") == []
    assert latest_model(lived_in) is None
    withdraw(lived_in, "mv-58")
    assert lived_in.scans() == []


def test_words_of_others_are_left_to_a_person(lived_in):
    record_judgement(lived_in, "bd-03/smile", "accept", reason=f"looks like {SUBJECT}", by="Ana")
    done = withdraw(lived_in)
    assert done.left == ("judgements/bd-03/smile.json",)
    (tombstone,) = list_tombstones(lived_in.store)
    assert not tombstone.finished
    record_judgement(lived_in, "bd-03/smile", "accept", reason="it is fine", by="Ana")
    again = withdraw(lived_in)
    assert again.again
    assert again.left == ()
    assert list_tombstones(lived_in.store)[0].finished


@pytest.mark.parametrize("subject", ["1", "a", "001"])
def test_ids_that_look_like_other_things(tmp_path, make_session, subject):
    workspace = new_workspace(LocalStore(tmp_path / "workspace"))
    people = {subject: {}, f"{subject}1": {}, f"{subject}.b": {}, f"x-{subject}": {}}
    ingest_session(workspace, session_of(make_session, "one", people))
    bring_up(workspace)
    before = {path for path in workspace.store.list() if path.split("/")[0] in ("clean", "registrations", "ingest")}
    assert withdraw(workspace, subject).left == ()
    after = {path for path in workspace.store.list() if path.split("/")[0] in ("clean", "registrations", "ingest")}
    assert before - after == {path for path in before if path.split("/")[1] == subject}
    model = json.loads(workspace.store.get(f"models/{latest_model(workspace).name}/config.json"))
    assert model["subjects"] == sorted(set(people) - {subject})
    assert set(json.loads(workspace.store.get("splits.json"))) == set(people) - {subject}
    assert len(workspace.store.get("runs/20260102.jsonl").splitlines()) >= 3 * 6


def test_what_can_not_be_withdrawn_is_told(lived_in):
    before = tree(lived_in.store)
    with pytest.raises(ConfigError, match="is no subject of this workspace"):
        withdraw(lived_in, "nobody")
    with pytest.raises(ConfigError, match="name nobody"):
        withdraw_subject(lived_in, SUBJECT, reason=f"{SUBJECT} asked for it", on=ON)
    with pytest.raises(ConfigError, match="it is empty"):
        withdraw_subject(lived_in, SUBJECT, reason=" ", on=ON)
    with hold(lived_in.store, "run", "running"), pytest.raises(StorageConflict, match="is in use"):
        withdraw(lived_in)
    assert tree(lived_in.store) == before


def test_a_damaged_model_is_not_vouched_for(lived_in):
    path = f"models/{latest_model(lived_in).name}/codes.safetensors"
    data = bytearray(lived_in.store.get(path))
    data[-3] ^= 1
    lived_in.store.put(path, bytes(data))
    with pytest.raises(StorageConflict, match="is damaged"):
        withdraw(lived_in)


class _Killed(BaseException):
    pass


class _Cut(LocalStore):
    """A store whose process is killed after some writes and deletions."""

    left = 10**9

    def put(self, path: str, data: bytes) -> None:
        self._count(path)
        super().put(path, data)

    def delete(self, path: str) -> None:
        self._count(path)
        super().delete(path)

    def _count(self, path: str) -> None:
        self.left -= not path.startswith("locks/")
        if self.left < 0:
            raise _Killed


def test_cut_off_anywhere_and_repeated_it_ends_the_same(lived_in, tmp_path):
    def copied(name: str) -> Workspace:
        shutil.copytree(lived_in.store.root, tmp_path / name)
        return Workspace(_Cut(tmp_path / name), lived_in.config, STEPS)

    whole = copied("whole")
    done = withdraw(whole)
    total = 10**9 - whole.store.left
    wanted = tree(whole.store)
    first = range(1, 7)  # around the tombstone and the model's manifest, codes and names
    drawn = np.random.default_rng(1).choice(total, 5, replace=False)
    for cut in sorted({*first, *(int(n) for n in drawn), total - 2}):
        workspace = copied(f"cut{cut}")
        workspace.store.left = cut
        with pytest.raises(_Killed):
            withdraw(workspace)
        workspace.store.left = 10**9
        shutil.rmtree(tmp_path / f"cut{cut}" / "locks")  # whose owner would be dead
        again = withdraw(workspace)
        assert again.again
        assert again.models == done.models != ()
        assert tree(workspace.store) == wanted, cut
        assert not [path for path in workspace.store.root.rglob("*") if SUBJECT in path.name]
        shutil.rmtree(tmp_path / f"cut{cut}")


def test_manifests_of_others_are_untouched_in_type(lived_in):
    withdraw(lived_in)
    for manifest in take_snapshot(lived_in).manifests.values():
        assert isinstance(manifest, Manifest)
        assert not [source for source in manifest.inputs if SUBJECT in source]
