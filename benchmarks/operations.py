#!/usr/bin/env python3
"""The service under load and under fire.

scale      many tiny scans through ingest, plan, status and steps that write a small fixed output: milliseconds a scan
           and step, a rerun with nothing changed, three scans changed, peak memory of flow and server
dask       real cleaning and registration on two Dask workers of one thread over one
kills      SIGKILL of flow, worker, server, Dask worker and training at random moments: does each run end in the
           undisturbed run's digests, by the engine's own retries or one rerun?
full       the disk fills up under a run, then there is room again
cut        the store of a run does not answer for a minute
days       48 hours at speed: a session an hour, nightly retraining, bad scans, withdrawals, one release; is every scan
           accounted for exactly once?

    python benchmarks/operations.py [--quick] [--json FILE] [--work DIR] [--only scale dask kills full cut days]

Finished rows are kept in DIR by the code that made them, so a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # before this folder, whose files are named like packages
os.environ["PYTHONPATH"] = str(ROOT)  # steps of the benchmarks' own are imported by workers, which see no folder else

from benchmarks.operation_days import days
from benchmarks.operation_faults import cut_off, disk_full, kills
from benchmarks.operation_runs import Rows, finish, make_workspace, start, tiny_session, write_depth
from pipeline.ingest import ingest_session
from pipeline.opening import open_workspace
from pipeline.rig import simulate

STEPS_OF_A_SCAN = ("ingest", "clean", "register", "sample")


def scale(rows: Rows, quick: bool) -> dict[str, float]:
    """The paper's number of scans; quick: one in fifty."""
    work = rows.work
    subjects, expressions = (5, 23) if quick else (255, 23)
    session = tiny_session(work / f"tiny-{subjects}x{expressions}", subjects, expressions)
    scans = subjects * expressions
    folder = work / f"scale-{scans}"

    def verb(name: str) -> dict[str, Any]:
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "flows", name, "-w", folder, "-q"], check=True, cwd=ROOT)
        return {"whole_seconds": time.monotonic() - began}

    def run(until: str, source: Path | str = "") -> dict[str, Any]:
        began = time.monotonic()
        told = finish(start(str(folder), until, session=source))
        return told | {"whole_seconds": time.monotonic() - began}

    def taken_in() -> dict[str, Any]:
        make_workspace(folder)
        return run("ingest", session)

    def changed() -> dict[str, Any]:
        for name in ("neutral", "e01", "e02"):
            file = session / "001" / name / "depth/000.png"
            depth = np.asarray(Image.open(file)).astype(np.int64)
            write_depth(file, np.where(depth > 0, depth + 1, 0))
        return run("train")

    def kept(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        row = rows.kept(f"scale-{scans}-{name}", make)
        print(f"scale: {name}: {row['whole_seconds']:.1f} s, of the processor {row.get('processor_seconds', 0):.1f}")
        return row

    # A row a part, so that one that was cut off goes on with the next part.
    parts = [kept("ingest", taken_in), kept("plan", lambda: verb("plan")), kept("status", lambda: verb("status"))]
    parts += [kept(step, partial(run, step)) for step in ("clean", "register", "sample", "train")]
    rerun = kept("rerun", lambda: run("train"))
    fresh = {name: kept(f"fresh-{name}", partial(verb, name)) for name in ("plan", "status")}
    redone = kept("changed", changed)["cost"]
    share = 1000 / (scans * len(STEPS_OF_A_SCAN))
    return {
        "scans": scans,
        "scan_step_ms": share * sum(part["whole_seconds"] for part in parts),
        "scan_step_processor_ms": share * sum(part.get("processor_seconds", 0) for part in parts),
        "rerun_seconds": rerun["seconds"],
        "rerun_processor_seconds": rerun["processor_seconds"],
        "fresh_plan_seconds": fresh["plan"]["whole_seconds"],
        "fresh_status_seconds": fresh["status"]["whole_seconds"],
        "flow_mib": max(part.get("flow_mib", 0) for part in parts),
        "server_mib": max(part.get("server_mib", 0) for part in parts),
    } | {f"{step}_redone_of_3": redone.get(step, {}).get("results", 0) for step in STEPS_OF_A_SCAN[1:]}


def dask(rows: Rows, quick: bool) -> dict[str, float]:
    """Two workers over one, from the start of the first step to the end of the last."""
    work = rows.work
    subjects = 2 if quick else 4
    captures = work / f"dask-captures-{subjects}"
    simulate(captures, subjects, 3, 0)

    def took(count: int) -> dict[str, float]:
        """Seconds from each step's first start to its last end, a worker's own start included."""
        url = make_workspace(work / f"dask-{count}")
        ingest_session(open_workspace(url), captures / "session")
        told = finish(start(url, "register", "pipeline.steps:STEPS", "local", count))
        return {step: told["cost"][step]["elapsed"] for step in ("clean", "register")}

    # One after the other and not kept: what they are compared for is the machine of this very moment.
    one, two = took(1), took(2)
    row = {f"dask_{step}_speed": one[step] / two[step] for step in one}
    print(f"dask: one worker {sum(one.values()):.0f} s, two {sum(two.values()):.0f} s")
    return row | {"dask_speed": sum(one.values()) / sum(two.values())}


PARTS = {"scale": scale, "dask": dask, "kills": kills, "full": disk_full, "cut": cut_off, "days": days}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the scans, five kills, eight hours")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--most-rows", type=int, help="end after so many new rows")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    options = parser.parse_args()
    work = options.work.resolve() / "operations"
    work.mkdir(parents=True, exist_ok=True)
    rows = Rows(work, options.most_rows)
    row: dict[str, float] = {}
    for name in options.only:
        row |= PARTS[name](rows, options.quick)
    row["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for name, value in row.items():
        print(f"{name:<28}{value:.4g}")
    if options.json:
        options.json.write_text(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
