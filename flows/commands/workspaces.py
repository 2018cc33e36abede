"""Verbs that bring something in: simulated captures, a workspace, sessions; and the documents' schemas."""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from flows.commands import Workspace
from flows.console import PLAIN, Exit, Output, Reply, counted
from flows.progress import progress_for
from storage.bounded import read_bounded
from storage.errors import ConfigError, one_line

SCHEMAS = {
    "session": "pipeline.session:Session",
    "pipeline": "pipeline.config:PipelineConfig",
    "report": "storage.manifest:Manifest",
    "judgement": "storage.manifest:Judgement",
    "fit": "pipeline.fit_document:FitDocument",
    "latest": "pipeline.models:Latest",
    "release": "pipeline.release_documents:ReleaseManifest",
    "release-scans": "pipeline.release_documents:ReleasedScans",
    "release-splits": "pipeline.release_documents:ReleasedSplits",
    "tombstone": "pipeline.tombstones:Tombstone",
    "metrics": "pipeline.train_config:Metrics",
    "config": "model.model_document:ModelDocument",
    "landmarks": "pipeline.fit_document:FittedLandmarks",
    "rejected": "pipeline.rejected:RejectedScan",
}
"""Where the class behind each document is found."""


def simulate(
    out: Annotated[Path, Parameter(name="OUT")],
    /,
    *,
    subjects: int = 4,
    expressions: int = 4,
    seed: int = 0,
    profile: Literal["studio", "handheld", "phone", "perfect"] = "studio",
    layout: Literal["depth_frames", "view_clouds", "fused_mesh"] = "depth_frames",
    views: int | None = None,
    output: Output = PLAIN,
) -> Reply:
    """Make captures with the simulated rig: OUT/session as a capture team hands it over, and OUT/truth for tests alone.

    Scans that are there already stay, so a second call goes on where the first was stopped.

    For example:

        nphm simulate captures --subjects 4 --expressions 4

    Parameters
    ----------
    out
        The folder to write to.
    subjects
        How many heads.
    expressions
        How many expressions of each, the canonical one included; at most 22.
    seed
        Same seed, same captures.
    profile
        How the rig errs: poses, noise, missing returns.
    layout
        How the scans are handed over.
    views
        Cameras; 12 by default.
    """
    from pipeline.rig import RigConfig
    from pipeline.rig import simulate as simulate_rig

    if views is not None and not 1 <= views <= 200:
        raise ConfigError(one_line(f"can't be simulated with {views} views", "simulate", "", "ask for 1 to 200"))
    told = {"profile": profile, "layout": layout} | ({} if views is None else {"views": views})
    rig = RigConfig.model_validate(told)

    with progress_for(output) as progress:
        done = itertools.count(1)

        def simulated(key: str) -> None:
            progress.update("simulate", next(done), key)

        progress.start("simulate", subjects * expressions)
        simulate_rig(
            out,
            subjects=subjects,
            expressions=expressions,
            seed=seed,
            config=rig,
            progress=simulated,
        )
        progress.finish("simulate")
    session = out / "session"
    return Reply({"session": str(session), "truth": str(out / "truth")}, (f"captures in {session}",))


def init(
    workspace: Annotated[str, Parameter(name="WS")],
    /,
    *,
    preset: Literal["demo", "small", "paper"] = "small",
    template: Path | None = None,
    output: Output = PLAIN,
) -> Reply:
    """Make a workspace with its pipeline.toml and template.

    For example:

        nphm init heads --preset small --template ict.npz

    Parameters
    ----------
    workspace
        The folder to make, or a store's address.
    preset
        Values to start from: `demo` trains minutes on 2 cores, `small` an hour, `paper` wants a GPU.
    template
        A file made by `nphm template`; by default the project's own procedural head.
    """
    from pipeline.config import preset_config
    from pipeline.opening import create_workspace
    from registration.procedural_head import head_template
    from registration.template import MAX_BYTES, Template

    head = (
        head_template() if template is None else Template.from_bytes(read_bounded(template, MAX_BYTES), str(template))
    )
    made = create_workspace(workspace, preset_config(preset), head)
    document = {"workspace": made.url, "preset": preset, "template": head.name, "vertices": len(head.mesh.vertices)}
    return Reply(document, (f"workspace {workspace} with preset {preset} and template {head.name}",))


def ingest(
    sessions: Annotated[tuple[Path, ...], Parameter(name="SESSION", allow_leading_hyphen=False)],
    /,
    *,
    workspace: Workspace,
    layout: Literal["session", "nphm", "facescape"] = "session",
    landing: Path | None = None,
    subject_prefix: str = "",
    strict: bool = False,
    output: Output = PLAIN,
) -> Reply:
    """Take capture sessions into a workspace. Taking the same in again changes nothing; what is new is added.

    For example:

        nphm ingest captures/session -w heads

    Parameters
    ----------
    sessions
        Folders with a session.json, or with a foreign data set.
    layout
        `nphm` or `facescape` where the folders are those data sets as they ship.
    landing
        Where a foreign data set is laid out as a session, by links where that is possible; the folder has to stay. By
        default WS-foreign, beside the workspace.
    subject_prefix
        Put before each subject's id, where two studios use the same ids.
    strict
        Exit with 1 if any scan was rejected.
    """
    from flows.run import take_sessions_in

    if layout != "session":
        from pipeline.foreign import write_session

        if landing is None and "://" in workspace:
            raise ConfigError(one_line("needs a folder for the sessions", workspace, "a bucket", "give --landing"))
        place = landing or Path(f"{workspace.rstrip('/')}-foreign")
        sessions = tuple(write_session(root, layout, place / root.resolve().name) for root in sessions)
    with progress_for(output) as progress:
        report = take_sessions_in(workspace, sessions, subject_prefix, progress)
    refused = [{"key": refusal.key, "reason": refusal.line} for refusal in report.refused]
    document = {
        "accepted": report.accepted,
        "rejected": report.rejected,
        "unchanged": report.unchanged,
        "refused": refused,
        "gone": report.gone,
        "faults": report.faults,
    }
    bad = len(report.rejected) + len(refused)
    lines = [*report.gone, *(f"still rejected: {line}" for line in report.still_rejected.values())]
    lines += [refusal.line for refusal in report.refused]
    last = f"{counted(len(report.accepted), 'scan')} taken in, {len(report.unchanged)} unchanged, {bad} rejected"
    unread = len(report.faults)
    lines.append(f"{last}; sessions not read: {unread}" if unread else last)
    exit = Exit.DONE
    if not (report.accepted or report.unchanged):
        exit = Exit.NOTHING_USABLE
    elif strict and (bad or report.faults):
        exit = Exit.FAILED
    return Reply(document, tuple(lines), exit, tuple(report.faults))


def schema(
    name: Annotated[str, Parameter(name="NAME", help=f"One of {', '.join(SCHEMAS)}.")],
    /,
    *,
    output: Output = PLAIN,
) -> Reply:
    """Print the JSON schema of a document that the project reads or writes.

    For example:

        nphm schema report
    """
    import json

    where = SCHEMAS.get(name)
    if where is None:
        raise ConfigError(one_line("is no document", repr(name), "", f"choose one of {', '.join(SCHEMAS)}"))
    module, _, attribute = where.partition(":")
    document: dict[str, Any] = getattr(importlib.import_module(module), attribute).model_json_schema()
    return Reply(document, (json.dumps(document, indent=1),))
