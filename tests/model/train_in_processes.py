"""What each of the processes in test_processes.py does: train, die once on the way, and go on from the checkpoint.

torchrun --nproc-per-node 2 --max-restarts 3 -m tests.model.train_in_processes FOLDER
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.config import TrainingConfig
from model.processes import join, leave
from model.training import train
from model.training_data import TrainingData
from tests.model.test_blends import BlendedBalls, BlendedShifts
from tests.model.test_training import DIRECTIONS, RADII_MM, Balls, Shifts, a_config

KILLED_AT = 14


class TwoShifts(Shifts):
    """As many scans a batch as two processes can share."""

    def __next__(self) -> dict[str, NDArray]:
        return {name: values[:2] for name, values in super().__next__().items()}


class Mortal(Balls):
    """Batches of which one ends the second process, the first time that it is reached."""

    def __init__(self, marker: Path | None) -> None:
        super().__init__()
        self.marker = marker

    def __next__(self) -> dict[str, NDArray]:
        if self.step == KILLED_AT and self.marker is not None and not self.marker.exists():
            self.marker.touch()
            os._exit(9)
        return super().__next__()


def data(marker: Path | None = None) -> TrainingData:
    """Two ellipsoids and two shifts, and blends of them."""
    anchors = (DIRECTIONS * RADII_MM.mean(0)).astype(np.float32)
    blends = {"shape_blends": BlendedBalls(), "motion_blends": BlendedShifts()}
    return TrainingData(Mortal(marker), TwoShifts(), 2, 3, anchors, 3, **blends)


def config() -> TrainingConfig:
    """Short stages with a checkpoint before the death."""
    return a_config(20, 10)


def main(folder: Path) -> None:
    """Train as one of the processes; the first one writes the curve."""
    rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if rank == 1 and (folder / "killed").exists():
        time.sleep(1)  # the other is early, and must not find where this one's predecessor was
    processes, device = join(rank, world, local, timedelta(minutes=1))
    kept = sorted(folder.glob("*.safetensors"))
    resume = kept[-1].read_bytes() if kept else None
    processes.wait()
    marker = folder / "killed" if rank == 1 else None
    model = train(
        config(),
        data(marker),
        lambda name, blob: (folder / name).write_bytes(blob) and None,
        resume,
        device=device,
        processes=processes,
    )
    if processes.first:
        (folder / "curve.json").write_text(json.dumps(model.curve))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
