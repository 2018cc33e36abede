"""Training in two processes, started and, after one was killed, restarted by torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

from model.processes import ALONE, Processes, own_store
from model.training import train
from storage.errors import ConfigError, NphmError
from tests.model import train_in_processes

ROOT = Path(__file__).resolve().parents[2]


def test_two_processes_take_the_steps_of_one_and_go_on_after_a_death(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    call = [*torchrun, "--max-restarts", "3", "-m", "tests.model.train_in_processes", str(tmp_path)]
    done = subprocess.run(call, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "killed").exists()
    together = json.loads((tmp_path / "curve.json").read_text())
    alone = train(train_in_processes.config(), train_in_processes.data(), lambda name, data: None)
    assert [(line["stage"], line["step"]) for line in together] == [
        (line["stage"], line["step"]) for line in alone.curve
    ]
    for one, other in zip(together, alone.curve, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("late", [0, 1, 2])
def test_processes_started_again_do_not_find_what_the_dead_left(late: int) -> None:
    store = dist.HashStore()

    def start(rank: int, pause_s: float) -> bytes:
        time.sleep(pause_s)
        own = own_store(store, rank, 3, timedelta(seconds=30))
        own.set(str(rank), f"{rank} of {round_}")
        return b" ".join(own.get(str(other)) for other in range(3))

    for round_ in range(3):
        if round_ == 1:
            store.add("starts/1", 1)  # one that died as soon as it was there
        with ThreadPoolExecutor(3) as threads:
            found = list(threads.map(start, range(3), [0.3 * (rank == late) for rank in range(3)]))
        assert found == [f"0 of {round_} 1 of {round_} 2 of {round_}".encode()] * 3


def test_a_process_that_waits_in_vain_says_so() -> None:
    with pytest.raises(NphmError, match="process 1: processes missed each other"):
        own_store(dist.HashStore(), 1, 2, timedelta(seconds=0.3))


def test_lines_are_dealt_out_once_each() -> None:
    batch = {"subject": np.arange(6), "near": np.arange(12).reshape(6, 2)}
    parts = [Processes(rank, 3).part(batch) for rank in range(3)]
    assert sorted(np.concatenate([part["subject"] for part in parts])) == list(range(6))
    assert all((part["near"][:, 0] == 2 * part["subject"]).all() for part in parts)
    assert ALONE.part(batch)["subject"].tolist() == list(range(6))


def test_uneven_batches_are_refused() -> None:
    with pytest.raises(ConfigError, match="5 lines a batch for 2 processes"):
        Processes(0, 2).lines(5)
