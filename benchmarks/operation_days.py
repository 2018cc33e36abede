"""Two days of the service at speed: is every scan accounted for exactly once?"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.operation_runs import SMALL, Rows, ball_session, make_workspace
from benchmarks.operation_steps import STEPS
from pipeline.opening import open_workspace
from pipeline.pseudonyms import Pseudonyms
from pipeline.rejected import list_rejected
from pipeline.release_documents import SCANS_PATH, ReleasedScans
from pipeline.snapshot import take_snapshot
from pipeline.withdrawal import withdraw_subject
from storage.store import open_store

NAMES = ("neutral", "smile", "frown", "open", "pout")
BAD_SHARE = 0.05
"""Exactly so many of all scans; none is a canonical one, whose subject's other scans would be rejected with it."""


def days(rows: Rows, quick: bool) -> dict[str, float]:
    """A session an hour for two days; quick: for eight hours, with a night after the fourth and the last."""
    work = rows.work
    hours, night = (8, 4) if quick else (48, 24)
    return rows.kept(f"days-{hours}", lambda: _days(work, hours, night))


def _days(work: Path, hours: int, night: int) -> dict[str, Any]:
    from flows.engine import OwnServer, quiet_engine

    rng = np.random.default_rng(0)
    subjects = [f"p{hour:03d}" for hour in range(hours)]
    bad = rng.permutation([f"{subject}/{name}" for subject in subjects for name in NAMES[1:]])
    bad = bad[: round(BAD_SHARE * len(subjects) * len(NAMES))].tolist()
    # Half of the bad scans are found when they are taken in, half by cleaning.
    empty, worthless = bad[::2], bad[1::2]
    os.environ["OPERATION_BAD_SCANS"] = ",".join(worthless)
    os.environ["PREFECT_API_URL"] = OwnServer(work / "engine", work / "engine.log").url
    quiet_engine()
    from flows.deployments import ingest_session, process, release, retrain

    url = make_workspace(work / "days")
    inbox, out = work / "days-inbox", work / "days-release"
    for folder in (inbox, out):
        shutil.rmtree(folder, ignore_errors=True)
    withdrawn: list[str] = []
    models = 0
    for hour, subject in enumerate(subjects):
        session = ball_session(inbox / f"hour-{hour:02d}", subject, NAMES, rng, empty)
        ingest_session(url, str(session))
        process(url, 2, SMALL)
        if hour % night == night - 1:
            models += retrain(url, 2, SMALL, functions="benchmarks.operation_steps")["trained"]
        if hour in (hours // 3, 2 * hours // 3):
            withdrawn.append(subjects[hour // 2])
            withdraw_subject(open_workspace(url, STEPS), withdrawn[-1], reason="asked for it", on="2026-01-03")
    process(url, 2, SMALL)
    release(url, "1.0.0", str(out), ("clean",))

    workspace = open_workspace(url, STEPS)
    released = ReleasedScans.model_validate_json(open_store(str(out)).get(SCANS_PATH)).scans
    rejected = Counter(line["key"] for line in list_rejected(take_snapshot(workspace)))
    # A withdrawn subject's scans are looked for first: of them nothing else may be told.
    names = Pseudonyms.of(workspace.store)
    delivered = [f"{subject}/{name}" for subject in subjects for name in NAMES]
    keys = {names.scan(key): key for key in delivered}
    given_out = Counter(keys[scan.key] for scan in released)

    def as_it_should(key: str) -> bool:
        wanted = (0, 0) if key.split("/")[0] in withdrawn else (0, 1) if key in bad else (1, 0)
        return (given_out[key], rejected[key]) == wanted

    once = sum(map(as_it_should, delivered))
    print(f"days: {len(released)} released, {sum(rejected.values())} rejected, {len(withdrawn)} people withdrawn")
    return {
        "delivered": len(delivered),
        "bad": len(bad),
        "released": len(released),
        "rejected": sum(rejected.values()),
        "withdrawn": len(withdrawn) * len(NAMES),
        "models_trained": models,
        "accounted_share": once / len(delivered),
    }
