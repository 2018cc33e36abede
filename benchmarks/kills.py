#!/usr/bin/env python3
"""SIGKILL at random moments of the demo's run: does what follows end in the undisturbed run's bytes?

One workspace is brought up to date undisturbed. A second one, with the same captures, is killed again and again at
random moments and started anew each time. Every result before training must then be the same to the byte, and training
must go on from its checkpoint.

    python benchmarks/kills.py [--quick] [--json FILE] [--work DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before this folder, whose files are named like packages

from pipeline.opening import open_workspace

BEFORE_TRAINING = ("ingest", "clean", "registrations", "samples", "samples.zarr")


def nphm(*words: str | Path) -> subprocess.Popen[str]:
    """Start a command as a user would."""
    command = [sys.executable, "-m", "flows", *map(str, words)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def finish(*words: str | Path) -> str:
    """Run a command to its end and return what it told on standard error."""
    process = nphm(*words)
    _, told = process.communicate()
    if process.returncode:
        raise SystemExit(f"nphm {' '.join(map(str, words))} ended with {process.returncode}:\n{told}")
    return told


def make_workspace(folder: Path, session: Path) -> None:
    """A workspace with the captures taken in and nothing else done."""
    shutil.rmtree(folder, ignore_errors=True)
    finish("init", folder, "--preset", "demo")
    finish("ingest", session, "-w", folder)


def results(folder: Path) -> dict[str, bytes]:
    """Every object that a step before training made."""
    store = open_workspace(str(folder)).store
    return {path: store.get(path) for place in BEFORE_TRAINING for path in store.list(place)}


def steps_told(told: str) -> list[int]:
    """How many training steps were done, as the run told it now and then."""
    return [int(done) for done in re.findall(r"^train: (\d+) of", told, re.MULTILINE)]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 subjects, 3 kills, no training")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    subjects, kills, until = (2, 3, "sample") if options.quick else (5, 10, "train")
    captures = options.work / f"demo-captures-{subjects}"
    session = captures / "session"
    if not (session / "session.json").is_file():
        finish("simulate", captures, "--subjects", str(subjects), "--expressions", "4")

    calm, shaken = options.work / "kills-calm", options.work / "kills-shaken"
    make_workspace(calm, session)
    began = time.monotonic()
    finish("run", "-w", calm, "--until", until)
    seconds = time.monotonic() - began

    make_workspace(shaken, session)
    rng = np.random.default_rng(options.seed)
    survived: list[float] = []
    while len(survived) < kills:
        # Long enough, on the average, to spread the kills over the whole run.
        patience = float(rng.uniform(0.02, 1.98)) * seconds / kills
        running = nphm("run", "-w", shaken, "--until", until)
        try:
            running.communicate(timeout=patience)
            make_workspace(shaken, session)  # it was done before it could be killed: begin anew
        except subprocess.TimeoutExpired:
            os.kill(running.pid, signal.SIGKILL)
            running.communicate()
            survived.append(patience)
    checkpoints = len(open_workspace(str(shaken)).store.list("checkpoints"))
    told = finish("run", "-w", shaken, "--until", until)

    expected, found = results(calm), results(shaken)
    differing = sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))
    went_on = steps_told(told)[:1]
    row = {
        "kills": kills,
        "results": len(expected),
        "results_equal": len(expected) - len(differing),
        "checkpoint_files_before_last_run": checkpoints,
        "first_training_step_of_last_run": went_on[0] if went_on else 0,
        "undisturbed_seconds": round(seconds, 1),
    }
    for name, value in row.items():
        print(f"{name:<36}{value}")
    for path in differing[:10]:
        print("differs:", path)
    if options.json:
        options.json.write_text(json.dumps(row, indent=1))
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
