"""Releases hold what may be released, under names that tell nothing, and prove it."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from obstore.store import MemoryStore

from model.checkpoint import decode
from pipeline.croissant import CONFORMS_TO, find_faults
from pipeline.ingest import ingest_session
from pipeline.judge import record_judgement
from pipeline.pseudonyms import SECRET_PATH, Pseudonyms
from pipeline.release import Release, open_release
from pipeline.release_build import build_release
from pipeline.release_diff import diff_releases
from pipeline.release_documents import MANIFEST_PATH, UNFINISHED_PATH, list_built, unfinished_note
from pipeline.release_verify import verify_release
from pipeline.row_decoding import decode_rows
from pipeline.workspace import Workspace
from storage.errors import ConfigError, StorageConflict
from storage.lock import hold
from storage.store import LocalStore, ObjectStore, Store
from tests.pipeline.release_rig import (
    CONSENT,
    PEOPLE,
    STEPS,
    bring_up,
    code_rows,
    names_in,
    new_workspace,
    opened,
    session_of,
    tree,
)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.fixture
def finished(finished_workspace, tmp_path) -> Workspace:
    """A workspace that is up to date: four people, one of them held out, one without consent for release."""
    shutil.copytree(finished_workspace, tmp_path / "workspace")
    return opened(tmp_path / "workspace")


def files(store: Store) -> dict[str, bytes]:
    return {path: store.get(path) for path in store.list()}


def built(workspace: Workspace, folder: Path, version: str = "1.0.0", **how) -> Release:
    build_release(workspace, version, LocalStore(folder), **how)
    return open_release(folder)


def test_a_release_is_read_in_a_few_lines(finished, tmp_path):
    release = built(finished, tmp_path / "out")
    names = Pseudonyms.of(finished.store)
    assert release.version == "1.0.0"
    assert release.scans() == sorted(
        names.scan(f"{p}/{e}") for p in PEOPLE if p != "yo-44" for e in ("neutral", "smile")
    )
    assert release.scans("held_out") == [names.scan("mv-58/neutral"), names.scan("mv-58/smile")]
    key = names.scan("xq-17/smile")
    assert len(release.clean(key).vertices) == len(release.clean(key, watertight=True).faces) * 3 == 30
    assert len(release.registration(key).vertices) == 30
    assert release.frame(key)["T_world_from_head"] == np.eye(4).tolist()
    rows = decode_rows("pairs", release.samples(key).read("pairs", 0, 200))
    assert np.abs(rows["canonical"]).max() <= 90.01
    assert not release.about[key].canonical
    assert release.about[names.scan("xq-17/neutral")].canonical
    with pytest.raises(ConfigError, match="does not hold"):
        release.clean("nobody/smile")


def test_codes_stand_under_pseudonyms_in_their_order(finished, tmp_path):
    release = built(finished, tmp_path / "out")
    names = Pseudonyms.of(finished.store)
    told = json.loads(release.read("model/config.json"))
    codes, _ = decode(release.read("model/codes.safetensors"))
    people = {names.subject(name): name for name in ("xq-17", "bd-03")}
    assert told["subjects"] == sorted(people)
    assert codes["identity"].equal(code_rows([people[name] for name in told["subjects"]]))
    scans = {names.scan(key): key for key in finished.scans()}
    assert codes["expression"].equal(code_rows([scans[key] for key in told["scans"]]))
    assert len(told["scans"]) == 4


def test_nothing_names_a_person_a_session_or_a_rig(finished, tmp_path):
    built(finished, tmp_path / "out")
    for word in (*PEOPLE, "SN-900817", "day-2026-01", "2026-01-02", str(tmp_path), "comment", "a face", "B12"):
        assert names_in(tmp_path / "out", word) == [], word
    assert names_in(finished.store.root, "xq-17")  # the search does find
    assert not any(path.endswith(".png") for path in LocalStore(tmp_path / "out").list())


def test_scans_without_rights_are_left_out_and_told(tmp_path, make_session):
    workspace = new_workspace(LocalStore(tmp_path / "workspace"))
    people = {
        "xq-17": {},
        "bd-03": {"consent": None},
        "yo-44": {"licence": "  "},
        "mv-58": {"consent": CONSENT | {"given": False}},
        "kt-61": {"consent": CONSENT | {"scope": []}},
    }
    ingest_session(workspace, session_of(make_session, "one", people, licence=None))
    bring_up(workspace)
    made = build_release(workspace, "1.0.0", LocalStore(tmp_path / "out"))
    assert {one.key: one.reason for one in made.left_out if one.key.endswith("smile")} == {
        "bd-03/smile": "no consent was told",
        "yo-44/smile": "no licence was told",
        "mv-58/smile": "consent was not given",
        "kt-61/smile": "consent does not cover release, only nothing",
    }
    names = Pseudonyms.of(workspace.store)
    assert made.scans == (names.scan("xq-17/neutral"), names.scan("xq-17/smile"))
    assert made.model_subjects_left_out == 3  # mv-58 was held out
    page = (tmp_path / "out" / "DATASHEET.md").read_text()
    assert f"`{names.scan('bd-03/smile')}`: no consent was told" in page
    assert "The codes of 3 of them are left out" in page
    assert verify_release(LocalStore(tmp_path / "out")).faults == ()


def test_a_datasheet_tells_what_a_receiver_asks(finished, tmp_path):
    built(finished, tmp_path / "out")
    page = (tmp_path / "out" / "DATASHEET.md").read_text()
    sections = ("Motivation", "Composition", "Collection", "Preprocessing", "Uses", "Distribution", "Maintenance")
    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == list(sections)
    assert "3 people, 6 scans, 2 expressions" in page
    assert "CC-BY-4.0 (6)" in page
    assert "| clean | face_coverage |" in page
    assert "{{" not in page
    assert "None" not in page


def test_croissant_names_files_records_and_splits(finished, tmp_path):
    release = built(finished, tmp_path / "out")
    document = json.loads(release.read("croissant.json"))
    assert find_faults(document) == []
    assert document["conformsTo"] == CONFORMS_TO
    assert document["@context"]["@vocab"] == "https://schema.org/"
    digests = {file.path: file.sha256 for file in release.manifest.files}
    objects = {n["contentUrl"]: n["sha256"] for n in document["distribution"] if n["@type"] == "cr:FileObject"}
    assert objects == {path: digests[path] for path in objects}
    assert {"scans.json", "splits.json", "DATASHEET.md", "model/codes.safetensors"} <= set(objects)
    fields = {f["source"]["extract"]["jsonPath"] for f in document["recordSet"][1]["field"]}
    scan = json.loads(release.read("scans.json"))["scans"][0]
    assert fields <= {f"$.scans[*].{name}" for name in scan}
    broken = document | {"recordSet": [{"@type": "cr:RecordSet", "@id": "x", "key": {"@id": "x/none"}}]}
    assert find_faults(broken) == [
        "refers to what is not there: x/none",
        "x has no field",
    ]
    assert find_faults([]) == ["is no JSON object"]
    twice = [{"@type": "cr:FileSet", "@id": "x", "includes": "*"}] * 2
    assert "uses an @id twice: x" in find_faults(document | {"distribution": twice})
    many = [{"@type": "cr:FileSet", "@id": str(number), "includes": "*"} for number in range(30_000)]
    started = time.process_time()
    find_faults(document | {"distribution": many})
    assert time.process_time() - started < 3  # a look at every pair of names takes a minute


def test_the_same_bytes_from_another_place_at_another_time(finished, tmp_path, monkeypatch):
    first = built(finished, tmp_path / "out")
    shutil.copytree(finished.store.root, tmp_path / "elsewhere" / "copy")
    backwards = LocalStore(tmp_path / "elsewhere" / "copy")
    stats = LocalStore.stats
    monkeypatch.setattr(LocalStore, "stats", lambda self, folder="": dict(reversed(stats(self, folder).items())))
    second = build_release(Workspace(backwards, finished.config, STEPS), "1.0.0", LocalStore(tmp_path / "again"))
    monkeypatch.undo()
    assert files(LocalStore(tmp_path / "again")) == files(first.store)
    assert second.other_places == ()


def test_a_bucket_holds_the_same_release(finished, tmp_path):
    bucket = ObjectStore(MemoryStore(), "memory://")
    build_release(finished, "1.0.0", bucket)
    release = built(finished, tmp_path / "out")
    assert files(bucket) == files(release.store)
    assert verify_release(bucket).faults == ()


def test_a_choice_of_parts(finished, tmp_path):
    release = built(finished, tmp_path / "out", parts=("registrations",))
    tops = {file.path.partition("/")[0] for file in release.manifest.files}
    assert tops == {"registrations", "scans.json", "splits.json", "croissant.json", "DATASHEET.md", "template.npz"}
    assert verify_release(release.store).faults == ()
    assert release.scans(part="clean") == []
    with pytest.raises(ConfigError, match="does not hold model"):
        release.model()
    with pytest.raises(ConfigError, match="name 'model' among the parts"):
        built(finished, tmp_path / "other", parts=("clean",), model="x")


def test_a_release_that_stands_is_never_overwritten(finished, tmp_path):
    release = built(finished, tmp_path / "out")
    before = files(release.store)
    assert build_release(finished, "1.0.0", release.store).unchanged
    with pytest.raises(ConfigError, match="holds another release"):
        build_release(finished, "1.1.0", release.store)
    with pytest.raises(ConfigError, match="raise the version"):
        build_release(finished, "1.0.0", release.store, parts=("clean",))
    assert files(release.store) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        build_release(finished, "1.0.0", LocalStore(tmp_path / "mine"))
    with pytest.raises(ConfigError, match="lies in the workspace"):
        build_release(finished, "1.0.0", LocalStore(finished.store.root / "mine"))
    for wrong in ("1", "1.0", "v1.0.0", "01.0.0", "1.0.0\n"):
        with pytest.raises(ConfigError, match="is no version"):
            build_release(finished, wrong, LocalStore(tmp_path / "new"))


def test_no_run_goes_on_beside_a_build(finished, tmp_path):
    with hold(finished.store, "run", "running"), pytest.raises(StorageConflict, match="is in use"):
        built(finished, tmp_path / "out")
    assert not (tmp_path / "out").exists()

    def begins_a_run(done: int, total: int) -> None:
        with pytest.raises(StorageConflict, match="building a release"), hold(finished.store, "run", "a run"):
            pass

    built(finished, tmp_path / "out", tell=begins_a_run)
    with hold(finished.store, "run", "a run"):
        pass


def test_a_release_that_nobody_names_is_the_next_beside_the_workspace(finished):
    places = [build_release(finished, None, None).record.place for _ in range(2)]
    assert places == [f"{finished.url}-releases/{version}" for version in ("1.0.0", "1.1.0")]


class _Killed(BaseException):
    pass


class _Cut(LocalStore):
    """A store whose process is killed after some writes."""

    left = 0

    def put(self, path: str, data: bytes) -> None:
        self._count()
        super().put(path, data)

    def delete(self, path: str) -> None:
        self._count()
        super().delete(path)

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise _Killed


def test_a_killed_build_is_no_release_and_goes_on(finished, tmp_path):
    whole = files(built(finished, tmp_path / "whole").store)
    for writes in (0, 1, 5, len(whole) // 2, len(whole), len(whole) + 1):
        folder = tmp_path / f"cut{writes}"
        cut = _Cut(folder)
        cut.left = writes
        with pytest.raises(_Killed):
            build_release(finished, "1.0.0", cut)
        if writes <= len(whole):
            with pytest.raises(ConfigError, match="is no release"):
                open_release(folder)
        assert writes == 0 or verify_release(LocalStore(folder)).faults
        remembered = {record.place for record in list_built(finished.store)}
        assert (str(folder) in remembered) == (writes >= len(whole))  # before it can be out
        LocalStore(folder).put("clean/stray/file.ply", b"of the killed build") if 0 < writes <= len(whole) else None
        build_release(finished, "1.0.0", LocalStore(folder))
        assert files(LocalStore(folder)) == whole
    LocalStore(tmp_path / "other").put(UNFINISHED_PATH, unfinished_note("nphm-heads", "0.9.0"))
    with pytest.raises(ConfigError, match="another unfinished release"):
        build_release(finished, "1.0.0", LocalStore(tmp_path / "other"))


def test_people_stay_on_their_side_as_others_come(tmp_path, make_session):
    workspace = new_workspace(LocalStore(tmp_path / "workspace"), splits={"held_out": 0.4})
    people = [f"p-{n}7" for n in range(8)]
    versions = []
    for number, known in enumerate((people[:3], people[:6], people)):
        ingest_session(workspace, session_of(make_session, "one", {name: {} for name in known}))
        bring_up(workspace)
        versions.append(built(workspace, tmp_path / f"r{number}", f"1.{number}.0", parts=("clean",)))
    sides = [release.splits.by_subject() for release in versions]
    assert [len(side) for side in sides] == [3, 6, 8]
    assert sides[0].items() <= sides[1].items() <= sides[2].items()
    other = next(name for name in people if workspace.split(name) == "train")
    splits = workspace.config.splits.model_copy(update={"held_out_ids": (other,)})
    turned = Workspace(workspace.store, workspace.config.model_copy(update={"splits": splits}), STEPS)
    with pytest.raises(ConfigError, match="move people between the splits"):
        built(turned, tmp_path / "r4", "1.3.0", parts=("clean",))
    assert built(turned, tmp_path / "r5", "2.0.0", parts=("clean",)).splits.held_out == (
        Pseudonyms.of(workspace.store).subject(other),
    )


def test_a_model_that_saw_a_held_out_person_is_refused(finished, tmp_path):
    splits = finished.config.splits.model_copy(update={"held_out_ids": ("mv-58", "xq-17")})
    turned = Workspace(finished.store, finished.config.model_copy(update={"splits": splits}), STEPS)
    with pytest.raises(ConfigError, match="trained on xq-17, held out today"):
        built(turned, tmp_path / "out")


def test_rejected_scans_stay_at_home(finished, tmp_path):
    record_judgement(finished, "xq-17/smile", "reject", reason="glasses", by="Ana")
    finished.store.delete("registrations/bd-03/smile/report.json")
    release = built(finished, tmp_path / "out")
    names = Pseudonyms.of(finished.store)
    assert release.about[names.scan("bd-03/smile")].parts == ("clean", "samples")
    assert names_in(tmp_path / "out", "Ana") == []


@pytest.mark.parametrize("told", [{"hair": "as xq-17's"}, {"licence": "given to day-2026-01"}])
def test_words_that_would_name_somebody_stop_the_build(finished, tmp_path, make_session, told):
    ingest_session(finished, session_of(make_session, "more", {"zz-99": told | {"expressions": ["neutral"]}}))
    bring_up(finished)
    with pytest.raises(StorageConflict, match="would name a subject or session"):
        built(finished, tmp_path / "out", parts=("clean",))


def test_damage_in_the_workspace_stops_the_build(finished, tmp_path):
    finished.store.put("clean/xq-17/smile/mesh.ply", b"other bytes")
    with pytest.raises(StorageConflict, match=r"clean/xq-17/smile/mesh\.ply"):
        built(finished, tmp_path / "out")
    with pytest.raises(ConfigError, match="is no release"):
        open_release(tmp_path / "out")


def test_every_flipped_byte_is_found_and_never_read(finished, tmp_path):
    release = built(finished, tmp_path / "out")
    rng = np.random.default_rng(0)
    assert verify_release(release.store).faults == ()
    for path in rng.permutation(release.store.list())[:25]:
        data = bytearray(release.store.get(path))
        place = int(rng.integers(len(data)))
        data[place] ^= 1 << int(rng.integers(8))
        good = release.store.get(path)
        release.store.put(path, bytes(data))
        faults = verify_release(release.store).faults
        assert any(path in fault for fault in faults), (path, faults)
        if path != MANIFEST_PATH:
            with pytest.raises(StorageConflict, match="damaged"):
                open_release(tmp_path / "out").read(path)
        release.store.put(path, good)
    assert verify_release(release.store).faults == ()


def rewritten(release: Release, change) -> tuple[str, ...]:
    """The faults of a release whose manifest was changed too, so that only its sense gives it away."""
    manifest = json.loads(release.store.get(MANIFEST_PATH))
    change(manifest)
    release.store.put(MANIFEST_PATH, json.dumps(manifest).encode())
    return verify_release(release.store).faults


def replaced(release: Release, path: str, change, text: bytes | None = None) -> tuple[str, ...]:
    """The faults after a document was changed, or became another text, and its digests were made to fit."""
    from storage.digest import digest_bytes

    document = json.loads(release.store.get(path))
    change(document)
    data = json.dumps(document).encode() if text is None else text
    release.store.put(path, data)

    def refit(manifest):
        for file in manifest["files"]:
            if file["path"] == path:
                file.update(bytes=len(data), sha256=digest_bytes(data))

    return rewritten(release, refit)


def test_verify_names_what_is_wrong(finished, tmp_path):
    built(finished, tmp_path / "whole")

    def fresh() -> Release:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        shutil.copytree(tmp_path / "whole", tmp_path / "out")
        return open_release(tmp_path / "out")

    release = fresh()
    gone = release.manifest.files[0].path
    release.store.delete(gone)
    assert verify_release(release.store).faults == (f"{gone}: is missing",)
    release = fresh()
    release.store.put("scans.json", bytes(1000))
    release.store.get = None  # nothing is read that has not the size it is told to have
    with pytest.raises(StorageConflict, match=r"scans\.json: is damaged \(1000 bytes, the manifest says "):
        release.read("scans.json")
    release = fresh()
    release.store.put("extra.txt", b"")
    assert verify_release(release.store).faults == ("extra.txt: is not in the manifest",)
    outside = {"path": "../secret", "bytes": 1, "sha256": "0" * 64}
    assert rewritten(fresh(), lambda m: m["files"].append(outside)) == ("'../secret': leads out of the release",)
    (tmp_path / "secret").write_bytes(b"x")
    release = fresh()
    (tmp_path / "out" / "link.txt").symlink_to(tmp_path / "secret")
    assert "link.txt" in verify_release(release.store).faults[0]
    assert "does not fit its schema" in rewritten(fresh(), lambda m: m.pop("version"))[0]
    release = fresh()
    both = release.splits.train[0]
    assert f"splits.json: {both} is both trained on and held out" in replaced(
        release, "splits.json", lambda d: d["held_out"].append(both)
    )
    faults = replaced(fresh(), "scans.json", lambda d: d["scans"][0].update(consent_scope=["research"], licence=" "))
    assert any("has no licence" in fault for fault in faults)
    assert any("no consent for release" in fault for fault in faults)
    faults = replaced(fresh(), "model/config.json", lambda d: d["subjects"].append("somebody"))
    assert "model/config.json: knows somebody, who is not on the train side" in faults
    release = fresh()
    key = release.scans(part="samples")[0]
    named = f"samples.zarr/{key}/zarr.json"
    faults = replaced(release, named, lambda d: d["attributes"].update(key="xq-17/neutral"))
    assert faults == (f"{named}: its key names 'xq-17/neutral', which is not the scan's",)
    assert "nested too deep" in replaced(fresh(), "croissant.json", lambda d: None, text=b"[" * 100_000)[0]
    deep = b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}"
    assert "nested too deep" in replaced(fresh(), "croissant.json", lambda d: None, text=deep)[0]
    for odd in (5, [5, "sha256"], [{"sha256": 1, "contentUrl": ["x"]}], {"sha256": 1}):
        assert replaced(fresh(), "croissant.json", lambda d, odd=odd: d.update(distribution=odd))
    faults = replaced(fresh(), "croissant.json", lambda d: d["recordSet"][0].update({"@id": ["splits"]}))
    assert any("has an @id that is no text: ['splits']" in fault for fault in faults)
    faults = replaced(fresh(), "model/config.json", lambda d: d["subjects"].extend([1, "somebody"]))
    assert "model/config.json: knows 1, who is not on the train side" in faults
    with pytest.raises(ConfigError, match="nothing lies there"):
        verify_release(LocalStore(tmp_path / "nowhere"))


def test_diff_tells_people_scans_files_settings_and_figures(finished, tmp_path, make_session):
    first = built(finished, tmp_path / "a")
    assert diff_releases(first, built(finished, tmp_path / "a2")).same
    ingest_session(finished, session_of(make_session, "more", {"zz-99-longer": {"expressions": ["neutral"]}}))
    finished.store.delete("clean/xq-17/smile/report.json")
    found = diff_releases(first, built(finished, tmp_path / "b", "1.1.0", parts=("clean", "registrations", "samples")))
    names = Pseudonyms.of(finished.store)
    assert found.subjects.added == ()
    assert found.scans.changed == (names.scan("xq-17/smile"),)
    assert {path.split("/")[0] for path in found.files.removed} == {"clean", "model"}
    assert (found.parts.removed, found.config) == (("model",), {})
    assert found.model == (first.manifest.model, None)
    bring_up(finished)
    later = diff_releases(first, built(finished, tmp_path / "c", "1.2.0"))
    assert later.subjects.added == (names.subject("zz-99-longer"),)
    assert later.scans.added == (names.scan("zz-99-longer/neutral"),)
    assert later.subjects.removed == later.subjects.changed == ()
    assert [(f.part, f.name) for f in later.figures] == [("clean", "face_coverage")]


def test_what_was_built_is_remembered_without_ids(finished, tmp_path):
    built(finished, tmp_path / "out")
    (record,) = list_built(finished.store)
    assert record.version == "1.0.0"
    assert len(record.subjects) == 3
    assert len(record.model_subjects) == 3  # yo-44 is in the weights
    raw = finished.store.get(record.path)
    assert not [name for name in PEOPLE if name.encode() in raw]
    again = build_release(finished, "1.0.0", LocalStore(tmp_path / "again"))
    assert again.other_places == ()
    assert [one.place for one in list_built(finished.store)] == [str(tmp_path / "again"), str(tmp_path / "out")]
    other = build_release(finished, "1.0.0", LocalStore(tmp_path / "other"), parts=("clean",))
    assert other.other_places == (str(tmp_path / "again"), str(tmp_path / "out"))


def test_the_key_stays_at_home(finished, tmp_path):
    built(finished, tmp_path / "out")
    key = finished.store.get(SECRET_PATH).decode()
    assert names_in(tmp_path / "out", key) == []
    assert tree(finished.store)[SECRET_PATH].decode() == key
