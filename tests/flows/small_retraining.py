"""What a retraining calls, in a few bytes: the workspace's own small training, and errors told by the environment."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

from pipeline.execute import execute_in
from pipeline.workspace import Workspace


def train_on(workspace: Workspace, parent: str) -> dict[str, Any]:
    """Train the model that the data calls for."""
    return asdict(execute_in(workspace, "train", ""))


def compare_models(workspace: Workspace, candidate: str, last: str) -> dict[str, Any]:
    """A comparison that ends as the test wants it."""
    worse = os.environ.get("SMALL_MODEL_IS_WORSE") == "1"
    return {"candidate": candidate, "last": last, "promote": not worse, "why": "as the test wants it"}
