"""What the planner needs to know of a step: its name, version, config, inputs and cost."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pipeline.workspace import Workspace
    from storage.manifest import Manifest

Over = Literal["own", "canonical", "train", "held_out", "all", "model"]
"""Whose results a step needs.

``own``: of its own key. ``canonical``: of its subject's canonical scan, where that is another scan.
``train``, ``held_out`` and ``all``: of every accepted scan of these subjects. ``model``: of its own model.
"""


@dataclass(frozen=True)
class Need:
    """Results of an earlier step that a step reads.

    Attributes:
        step: the earlier step.
        over: whose results.
        rejected_too: whether rejected results are read as well.
        optional: of its own model, whether the step does without, where there is none.
    """

    step: str
    over: Over = "own"
    rejected_too: bool = False
    optional: bool = False

    def takes(self, manifest: Manifest) -> bool:
        """Whether a result may be read."""
        return manifest.accepted or self.rejected_too


@dataclass(frozen=True)
class Later:
    """A step's function that is imported when it is first called: a plan or a status must not wait for what computes.

    Attributes:
        module: where the function is found.
        name: of the function.
    """

    module: str
    name: str

    def __call__(self, workspace: Workspace, key: str) -> Manifest:
        """Run the step for one key."""
        run: Callable[[Workspace, str], Manifest] = getattr(importlib.import_module(self.module), self.name)
        return run(workspace, key)


@dataclass(frozen=True)
class StepSpec:
    """One step as the planner and the executor see it.

    Attributes:
        name: as on the command line and in ``PipelineConfig``.
        folder: where its manifests lie in a workspace: FOLDER/KEY/report.json.
        version: raised when the step's code gives other results for the same inputs.
        run: function of (workspace, key) that computes and commits; None for what no plan runs by key.
        judge: function of (figures, thresholds) that lists what speaks against the result.
        scope: one result a ``scan``, or one a ``model``.
        needs: what it reads. Without a result of the first one, and of each of the scan's own, there is nothing to do.
        heeds: what a person may say over its verdict.
        wanted: whether the step's settings ask for it at all; always by default.
        uses_template: whether the template is among its inputs.
        own_folder: whether nobody else writes in FOLDER/KEY.
        minutes: rough cost of one key on 2 cores.
        expect: the same, from the step's settings, where it follows from them.
        megabytes: rough size of one key's outputs.
        limit_minutes: after which one key is given up; None for what may take days.
    """

    name: str
    folder: str
    version: int
    run: Callable[[Workspace, str], Manifest] | None
    judge: Callable[[Mapping[str, Any], Any], list[str]]
    scope: Literal["scan", "model"] = "scan"
    needs: tuple[Need, ...] = ()
    heeds: tuple[Literal["accept", "reject"], ...] = ()
    wanted: Callable[[Any], bool] | None = None
    uses_template: bool = False
    own_folder: bool = True
    minutes: float = 0.0
    expect: Callable[[Any], float] | None = None
    megabytes: float = 0.0
    limit_minutes: float | None = 60.0

    def manifest_path(self, key: str) -> str:
        """Where the manifest of a key lies in the workspace."""
        return f"{self.folder}/{key}/report.json"
