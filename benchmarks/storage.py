#!/usr/bin/env python3
"""Samples and shards: how fast they are made and read, how small they are, and what harm they stand.

    python benchmarks/storage.py [--quick] [--json FILE] [--work DIR] [--rows NAMES] [--store-gb N]

One head of the embedded rig goes through cleaning and registration; the rest is measured on its samples, and on stores
of real arrays with its content over and over. Both sides of a ratio run in one process, on one thread, and are timed by
the processor's seconds. `--quick` makes everything smaller. Finished rows are kept in DIR.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # told before NumPy is there: idle threads' waiting would count

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # before this folder, whose files are named like packages

from benchmarks.storage_adding import measure_adding
from benchmarks.storage_bench import Bench, Row
from benchmarks.storage_flips import measure_flips
from benchmarks.storage_kills import fork_on_demand, measure_kills
from benchmarks.storage_loader import measure_loader
from benchmarks.storage_memory import build_big, measure_memory, read_big
from benchmarks.storage_reading import measure_reading
from benchmarks.storage_sampling import measure_sampling
from pipeline.config import preset_config
from pipeline.sample_config import SampleConfig
from pipeline.steps import STEPS
from pipeline.workspace import Workspace
from storage.store import LocalStore

GOALS = {
    "sdf_share": ">= 0.7",
    "bytes_surface": "<= 10",
    "bytes_pair": "<= 14",
    "read_speed": ">= 0.5",
    "loader_share": "< 0.03",
    "add_cost": "<= 1.2",
    "peak_mib": "< 1024",
    "kills_equal_of_50": "50",
    "flips_found_of_150": "150",
}
MEASURED: Mapping[str, Callable[[Bench], Row]] = {
    "sampling": measure_sampling,
    "reading": measure_reading,
    "loader": measure_loader,
    "adding": measure_adding,
    "memory": measure_memory,
    "kills": measure_kills,
    "flips": measure_flips,
}


def code_digest() -> str:
    """Of the code that the rows depend on."""
    files = [*(ROOT / "storage").glob("*.py"), *(ROOT / "pipeline").glob("*sampl*.py")]
    files += (ROOT / "benchmarks").glob("storage*.py")
    files += [ROOT / "pipeline" / name for name in ("batches.py", "row_decoding.py", "scan_rows.py", "train.py")]
    geometry = ("compiled.py", "face_skin.py", "mesh.py", "motion_extension.py", "signed_distance.py", "surface.py")
    files += [ROOT / "registration" / name for name in geometry]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()[:16]


def rows_of(bench: Bench, names: list[str]) -> Iterator[Row]:
    """Each row, measured now or by an earlier run of the same code."""
    for name in names:
        kept = bench.folder / "rows" / f"{name}-{code_digest()}.json"
        if not kept.exists():
            row = MEASURED[name](bench)
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(row))
        yield json.loads(kept.read_text())


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--rows", default=",".join(MEASURED), help="which to measure")
    parser.add_argument("--store-gb", type=float, help="size of the big store; 20, or 10 where the disk is short")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task == "fork":
        config = preset_config("small")
        few = SampleConfig.model_validate_json((options.work / "few.json").read_text())
        fork_on_demand(Workspace(LocalStore(options.work), config.model_copy(update={"sample": few}), STEPS))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    roomy = shutil.disk_usage(options.work).free > 40e9
    size = options.store_gb or (0.3 if options.quick else 20 if roomy else 10)
    bench = Bench(options.work.absolute(), options.quick, size)
    if options.task:
        print(json.dumps({"build": build_big, "read": read_big}[options.task](bench)))
        return
    bench.folder.mkdir(parents=True, exist_ok=True)
    figures: Row = {}
    for row in rows_of(bench, options.rows.split(",")):
        figures |= row
        for name, value in row.items():
            print(f"{name:<44}{value:>14.4g}   {GOALS.get(name, '')}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
