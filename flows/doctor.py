"""Checks of the surroundings that a run needs: a line each, with what to do where something is wrong."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flows.engine import own_home
from flows.lifeline import PARENT
from flows.logs import log_folder
from pipeline.known_sessions import known_places
from pipeline.migration import SCHEMA_VERSION
from pipeline.opening import CONFIG_PATH, open_workspace
from pipeline.workspace import Workspace
from storage.errors import ConfigError, NphmError
from storage.lock import born, namespace, read_owners
from storage.store import LocalStore

LEAST_FREE_BYTES = 5 * 1024**3
MOST_HISTORY_BYTES = 1024**3
LEAST_MEMORY_BYTES = 4 * 1024**3
_PROBE_SECONDS = 120
_PROBES = {
    "open3d": ("import open3d; print(open3d.__version__)", "install the Debian package of the library that it names"),
    "pymeshlab": (
        "import importlib.metadata, pymeshlab; print(importlib.metadata.version('pymeshlab'))",
        "install the Debian packages libegl1 and libgl1",
    ),
    "torch": (
        "import torch; gpu = torch.cuda.is_available();"
        " print(torch.__version__, torch.cuda.get_device_name() if gpu else 'no GPU')",
        "set up again with 'make setup'",
    ),
}


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        name: of the check.
        state: ``ok``, ``warn`` where a run may go on, ``fail`` where it can't.
        found: in words.
        remedy: what to do; empty where nothing has to be done.
    """

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.state:<5}{self.name}: {self.found}" + (f"; {self.remedy}" if self.remedy else "")


def check_up(url: str | None) -> Iterator[Check]:
    """Check the machine, then the workspace, then the server. Writes nothing but a probe that is deleted again."""
    yield from _versions()
    for name, (code, remedy) in _PROBES.items():
        yield _library(name, code, remedy)
    yield _memory()
    yield _room("logs", log_folder())
    yield _history()
    if url is not None:
        yield from _workspace(url)
    yield from _server()
    yield _orphans()


def _versions() -> Iterator[Check]:
    from packaging.requirements import Requirement

    version = ".".join(map(str, sys.version_info[:3]))
    wrong = []
    for line in importlib.metadata.requires("nphm-pipeline") or ():
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            wrong.append(f"{wanted.name} is {found}, wanted {wanted.specifier}")
    yield Check("python", "ok", version)
    if wrong:
        yield Check("packages", "fail", ", ".join(wrong), "set up again with 'make setup'")
    else:
        yield Check("packages", "ok", "as nphm wants them")


def _library(name: str, code: str, remedy: str) -> Check:
    """A library in a process of its own: one that is broken may end the process."""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=_PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return Check(name, "fail", f"does not load within {_PROBE_SECONDS} s", "see what else the machine is doing")
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"ended with {done.returncode}"]
        return Check(name, "fail", f"does not load ({last[0]})", remedy)
    return Check(name, "ok", done.stdout.strip())


def _memory() -> Check:
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(facts["MemAvailable"].split()[0]) * 1024
    said = f"{free / 1024**3:.1f} GiB free, {os.cpu_count()} cores"
    if free < LEAST_MEMORY_BYTES:
        return Check("memory", "warn", said, "run with --workers 1, or end what else runs")
    return Check("memory", "ok", said)


def _room(name: str, folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    said = f"{free / 1024**3:.1f} GiB free in {folder}"
    if free < LEAST_FREE_BYTES:
        return Check(name, "warn", said, "make room ('nphm gc' lists what a workspace no longer needs)")
    return Check(name, "ok", said)


def _history() -> Check:
    home = own_home()
    size = sum(file.stat().st_size for file in home.rglob("*") if file.is_file())
    said = f"{size / 1e6:.0f} MB of history of local runs in {home}"
    if size > MOST_HISTORY_BYTES:
        return Check("history", "warn", said, "delete the folder while nothing runs; no result depends on it")
    return Check("history", "ok", said)


def _workspace(url: str) -> Iterator[Check]:
    try:
        workspace = open_workspace(url)
    except (NphmError, OSError) as error:
        yield Check("workspace", "fail", str(error))
        return
    yield _tried("workspace", lambda: _schema(workspace), "see that the store answers")
    yield _tried("store", lambda: _written(workspace), "see that the store answers, has room and may be written to")
    if isinstance(workspace.store, LocalStore):
        yield _room("disk", workspace.store.root)
    yield from _locks(workspace)
    for place in known_places(workspace.store):
        if not place.root.is_dir():
            remedy = "mount it again, or ingest the session from where it lies now"
            yield Check("session", "warn", f"{place.root} is not there", remedy)


def _tried(name: str, check: Callable[[], Check], remedy: str) -> Check:
    try:
        return check()
    except ConfigError as error:
        return Check(name, "fail", str(error))
    except OSError as error:
        return Check(name, "fail", f"can't be used ({error})", remedy)


def _schema(workspace: Workspace) -> Check:
    told = workspace.store.get(CONFIG_PATH).decode()
    template = workspace.template()
    said = f"preset {workspace.config.preset}, template {template.name}, {len(workspace.scans())} scans"
    if f"schema_version = {SCHEMA_VERSION}\n" not in told and "schema_version" in told:
        return Check("workspace", "warn", f"{said}, of an earlier schema", "the next run writes it in today's")
    return Check("workspace", "ok", f"{said}, schema {SCHEMA_VERSION}")


def _written(workspace: Workspace) -> Check:
    path, data = ".cache/doctor", b"probe"
    began = time.perf_counter()
    workspace.store.put(path, data)
    same = workspace.store.get(path) == data
    workspace.store.delete(path)
    if not same:
        return Check("store", "fail", "gives back other bytes than were written", "check the disk or the bucket")
    return Check("store", "ok", f"{workspace.url} writes and reads, {1000 * (time.perf_counter() - began):.0f} ms")


def _locks(workspace: Workspace) -> Iterator[Check]:
    for name, owner in read_owners(workspace.store).items():
        if owner.gone(time.time()):
            yield Check(f"lock {name}", "warn", f"left by {owner}", "nothing: the next run takes it over")
        else:
            yield Check(f"lock {name}", "ok", f"held for {owner}")


def _server() -> Iterator[Check]:
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if not url:
        yield Check("server", "ok", "none is named; a run starts one of its own")
        return
    import prefect

    try:
        with urllib.request.urlopen(f"{url}/admin/version", timeout=10) as response:
            version = json.load(response)
    except (urllib.error.URLError, ConnectionError, TimeoutError, ValueError) as error:
        remedy = "start it ('prefect server start'), or unset PREFECT_API_URL"
        yield Check("server", "fail", f"{url} does not answer ({error})", remedy)
        return
    if version != prefect.__version__:
        yield Check("server", "warn", f"{url} is Prefect {version}, here is {prefect.__version__}", "use one version")
    else:
        yield Check("server", "ok", f"{url}, Prefect {version}")


def _orphans() -> Check:
    pids = orphans()
    if pids:
        return Check("processes", "warn", f"{len(pids)} without a parent: {pids}", "'nphm doctor --sweep' ends them")
    return Check("processes", "ok", "none without a parent")


def orphans() -> list[int]:
    """Servers and workers of ours here whose run is gone. They end by themselves, unless they are stopped.

    A container's are seen from its host too, but know their parent by an id that means another process here.
    """
    found = []
    here = namespace()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            told = dict(word.split(b"=", 1) for word in (folder / "environ").read_bytes().split(b"\0") if b"=" in word)
        except OSError:
            continue  # of somebody else, or gone meanwhile
        pid = int(folder.name)
        if b"-m" in words and {b"flows.server", b"flows.worker"} & set(words) and PARENT.encode() in told:
            parent, own = born(int(told[PARENT.encode()])), born(pid)
            if own and (not parent or int(parent) > int(own)) and namespace(pid) == here:
                found.append(pid)
    return sorted(found)
