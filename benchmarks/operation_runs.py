"""What the rows of the operations benchmark share: sessions, workspaces, runs in processes of their own, kept rows."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.operation_steps import STEPS
from pipeline.config import preset_config
from pipeline.opening import create_workspace, open_workspace
from pipeline.rig import RigConfig, simulate
from registration.procedural_head import head_template
from storage.ply import write_ply

ROOT = Path(__file__).resolve().parents[1]
SMALL = "benchmarks.operation_steps:STEPS"
CODE = ("flows/*.py", "storage/*.py", "benchmarks/operation*.py") + tuple(
    f"pipeline/{name}.py" for name in ("execute", "ingest", "inputs", "opening", "planner", "snapshot", "workspace")
)
"""What a row rests on; the steps' own arithmetic is not measured here."""
RUN = """
import json, os, resource, sys, time
from pathlib import Path
from flows.engine import _own_server
from flows.progress import LineProgress
from flows.run import bring_up_to, take_sessions_in
until, url, steps, dask, workers, session = sys.argv[1:7]
began = time.monotonic()
cost = {}
if session:
    take_sessions_in(url, [Path(session)], "", LineProgress())
else:
    cost = bring_up_to(url, until, LineProgress(), int(workers), steps, dask or None).cost
seconds = time.monotonic() - began
own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
processor = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
server_mib = 0
if _own_server.cache_info().currsize:
    server = Path(f"/proc/{_own_server().pid}")
    told = dict(line.split(":", 1) for line in (server / "status").read_text().splitlines() if ":" in line)
    server_mib = int(told["VmHWM"].split()[0]) / 1024
    ticks = (server / "stat").read_text().rsplit(")", 1)[1].split()[11:13]
    processor += sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
print(json.dumps({"seconds": seconds, "processor_seconds": processor, "cost": cost, "server_mib": server_mib,
                  "flow_mib": own.ru_maxrss / 1024}))
"""
"""A run, or a session that is taken in, in a process of its own that tells what it took, its server's part included."""


def start(
    url: str,
    until: str = "train",
    steps: str = SMALL,
    dask: str = "",
    workers: int = 2,
    session: Path | str = "",
    **env: str,
) -> subprocess.Popen[str]:
    """Start a run in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | env
    return subprocess.Popen(
        [sys.executable, "-c", RUN, until, url, steps, dask, str(workers), str(session)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for a run; what it told."""
    out, told = process.communicate()
    if process.returncode:
        raise SystemExit(f"a run ended with {process.returncode}:\n{told[-3000:]}")
    document: dict[str, Any] = json.loads(out.splitlines()[-1])
    return document


class Rows:
    """Finished rows of this code, kept in a folder.

    Args:
        work: the folder; rows may use it for what they make, too.
        most: how many may be made before the program ends, to go on when it is called again; None for all.
    """

    def __init__(self, work: Path, most: int | None = None) -> None:
        self.work = work
        self._left = most
        code = hashlib.sha256()
        for pattern in CODE:
            for file in sorted(ROOT.glob(pattern)):
                code.update(file.read_bytes())
        self._code = code.hexdigest()[:12]

    def kept(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A row, made where it is not there yet.

        Raises:
            SystemExit: as many rows were made as may be.
        """
        path = self.work / "rows" / f"{name}-{self._code}.json"
        if not path.exists():
            if self._left == 0:
                raise SystemExit("as many rows were made as was asked for; the same command goes on")
            row = make()
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(row))
            if self._left is not None:
                self._left -= 1
        kept: dict[str, Any] = json.loads(path.read_text())
        return kept


def make_workspace(folder: Path | str) -> str:
    """A workspace with nothing in it."""
    if "://" not in str(folder):
        shutil.rmtree(folder, ignore_errors=True)
    return create_workspace(str(folder), preset_config("demo"), head_template()).url


def digests(url: str) -> dict[str, bytes]:
    """The bytes of every result."""
    store = open_workspace(url, STEPS).store
    paths = [path for spec in STEPS.values() if spec.name != "ingest" for path in store.list(spec.folder)]
    return {path: store.get(path) for path in paths if path != "models/latest.json"}


def tiny_session(root: Path, subjects: int, expressions: int) -> Path:
    """Real but tiny scans, 4 views of 64x48: one that the rig made, each copy with noise of its own."""
    if (root / "session.json").is_file():
        return root
    config = RigConfig(views=4, width=64, height=48, field_mm=400)
    model = simulate(root.with_name(f"{root.name}-model"), 1, ["neutral"], 0, config)
    scan = model / "001/neutral"
    depths = [np.asarray(Image.open(file)) for file in sorted((scan / "depth").iterdir())]
    rng = np.random.default_rng(0)
    names = ["neutral", *(f"e{number:02d}" for number in range(1, expressions))]
    for subject in range(1, subjects + 1):
        for name in names:
            folder = root / f"{subject:03d}" / name
            (folder / "depth").mkdir(parents=True, exist_ok=True)
            shutil.copytree(scan / "color", folder / "color", dirs_exist_ok=True)
            shutil.copy(scan / "transforms.json", folder)
            for number, depth in enumerate(depths):
                noisy = np.where(depth > 0, depth + rng.integers(0, 20, depth.shape), 0)
                write_depth(folder / f"depth/{number:03d}.png", noisy)
    note = json.loads((model / "session.json").read_text())
    about = note["subjects"][0]
    note["subjects"] = [about | {"id": f"{n:03d}", "expressions": names} for n in range(1, subjects + 1)]
    (root / "session.json").write_text(json.dumps(note))
    return root


def write_depth(file: Path, depth: np.ndarray) -> None:
    """Write a depth picture, 0.1 mm a count."""
    packed = io.BytesIO()
    Image.fromarray(depth.astype(np.uint16)).save(packed, "PNG")
    file.write_bytes(packed.getvalue())


def ball_session(
    root: Path, subject: str, names: tuple[str, ...], rng: np.random.Generator, empty: Collection[str]
) -> Path:
    """A session of one subject's fused meshes, each a ball of its own; those whose key is named are empty files."""
    for name in names:
        folder = root / subject / name
        folder.mkdir(parents=True)
        points = rng.normal(size=(300, 3))
        points *= 100 / np.linalg.norm(points, axis=1, keepdims=True)
        data = write_ply(dict(zip("xyz", points.T, strict=True)), np.arange(300, dtype=np.int32).reshape(-1, 3))
        (folder / "scan.ply").write_bytes(b"" if f"{subject}/{name}" in empty else data)
    note = {
        "schema_version": 1,
        "session_id": root.name,
        "captured_at": "2026-01-02T10:00:00Z",
        "rig": "none",
        "layout": "fused_mesh",
        "unit": "mm",
        "canonical_expression": names[0],
        "licence": "CC0-1.0",
        "subjects": [
            {
                "id": subject,
                "hair": "none",
                "expressions": list(names),
                "consent": {"given": True, "scope": ["research", "release"], "date": "2026-01-01"},
            }
        ],
    }
    (root / "session.json").write_text(json.dumps(note))
    return root
