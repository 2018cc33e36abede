"""Train a workspace's model in several processes and on several hosts, started by ``torchrun``.

    torchrun --nproc-per-node 8 -m pipeline.train_processes WORKSPACE

Where that model stands already there is nothing to do; evaluation and report are for ``nphm run`` afterwards. Every
process reads the samples and sees its own lines of each batch; the first one saves and publishes. The model is
the one that ``nphm train`` would make, but for the order of sums. A worker that dies takes the others with it;
``torchrun --max-restarts N`` starts them again, and they go on from the last checkpoint.
"""

from __future__ import annotations

import os
import sys

from model.processes import join, leave
from pipeline.inputs import model_name
from pipeline.opening import open_workspace
from pipeline.planner import decide
from pipeline.train import run_train_together
from storage.errors import NphmError, one_line

_PLACES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def main(words: list[str]) -> int:
    """Train as one of the processes; returns the exit status."""
    missing = [name for name in _PLACES if name not in os.environ]
    if len(words) != 1 or missing:
        remedy = "torchrun --nproc-per-node N -m pipeline.train_processes WORKSPACE"
        why = f"{missing[0]} is not set" if missing else f"{len(words)} words"
        sys.stderr.write(one_line("is started by torchrun, with a workspace", "train_processes", why, remedy) + "\n")
        return 2
    rank, world, local = (int(os.environ[name]) for name in _PLACES)
    try:
        processes, device = join(rank, world, local)
        try:
            workspace = open_workspace(words[0])
            key = model_name(workspace)
            if decide(workspace, workspace.steps["train"], key) is not None:
                run_train_together(workspace, key, processes, device)
        finally:
            leave()
    except NphmError as error:
        sys.stderr.write(f"{error}\n")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
