"""The sample step killed at random moments: is all that can be read whole, and is the rerun the same?"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import zarr

from benchmarks.storage_bench import COMMAND, Bench, Row, damaged_in, keys_of
from pipeline.config import preset_config
from pipeline.sample import run_sample
from pipeline.sample_config import SampleConfig
from pipeline.sample_format import SAMPLES_ROOT
from pipeline.workspace import Workspace


def measure_kills(bench: Bench) -> Row:
    """SIGKILL at random moments of the sample step; then everything readable must be whole, and the rerun equal."""
    few = SampleConfig.model_validate(
        {
            "identity": {"surface_points": 20_000, "near_points": 20_000, "space_points": 4000},
            "deformation": {"pairs": 20_000},
        }
    )
    config = preset_config("small").model_copy(update={"sample": few})
    workspace = bench.workspace("kills", config)
    keys = keys_of(workspace)
    (Path(workspace.url) / "few.json").write_text(few.model_dump_json())
    whole_s = 0.0
    with Forker(workspace) as forker:
        for key in (*keys, *keys):  # once to be ready, once to be timed
            begun = time.monotonic()
            forker.finish(key)
            whole_s = max(whole_s if key == keys[0] else 0.0, time.monotonic() - begun)
        want = samples_in(workspace)
        seconds = {}
        for key in keys:
            begun = time.monotonic()
            forker.finish(key)
            seconds[key] = time.monotonic() - begun
        assert samples_in(workspace) == want
        rng = np.random.default_rng(0)
        kills = 5 if bench.quick else 50
        equal = whole = 0
        for turn in range(kills):
            key = keys[turn % 2]
            forker.kill(key, float(rng.uniform(0, 1)) * seconds[key])
            whole += is_whole(workspace)
            forker.finish(key)
            equal += samples_in(workspace) == want
    return {"kills": kills, "kills_equal_of_50": float(equal), "kills_left_whole": whole}


class Forker:
    """Runs the sample step in fresh processes that need not import everything anew."""

    def __init__(self, workspace: Workspace) -> None:
        command = [sys.executable, COMMAND, "--task", "fork", "--work", workspace.url]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Forker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _start(self, key: str) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(key + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def _end(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def finish(self, key: str) -> None:
        """Run the step to its end."""
        self._start(key)
        if self._end():
            raise SystemExit(f"the sample step of {key} failed")

    def kill(self, key: str, after_s: float) -> None:
        """Run the step and kill it after a time, unless it has ended."""
        pid = self._start(key)
        time.sleep(after_s)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self._end()


def fork_on_demand(workspace: Workspace) -> None:
    """Read keys from standard input; fork for each, tell the process's id and, when it has ended, its status."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                run_sample(workspace, line.strip())
            except BaseException as error:  # noqa: BLE001  # told, and then the process is gone
                print(error, file=sys.stderr)
                os._exit(1)
            os._exit(0)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(status, flush=True)


def samples_in(workspace: Workspace) -> dict[str, str]:
    """Digests of all that the sample step wrote."""
    store = workspace.store
    paths = [path for place in ("samples", SAMPLES_ROOT) for path in store.list(place)]
    return {path: hashlib.sha256(store.get(path)).hexdigest() for path in paths}


def is_whole(workspace: Workspace) -> bool:
    """Whether what a manifest or plain Zarr shows is undamaged."""
    damaged = bool(damaged_in(workspace))
    root = Path(workspace.url) / SAMPLES_ROOT
    if (root / "zarr.json").exists():
        for _, subject in zarr.open_group(root, mode="r").groups():
            for _, scan in subject.groups():
                damaged |= any(np.asarray(array[:]).shape != array.shape for _, array in scan.arrays())
    return not damaged
