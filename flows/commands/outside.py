"""The verb that fits a trained model to scans from outside a workspace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from flows.commands import Out
from flows.console import PLAIN, Exit, Output, Reply
from flows.progress import progress_for

Model = Annotated[str, Parameter(name="MODEL", help="A model's folder, or its name in the workspace.")]
Where = Annotated[
    str, Parameter(name=["--workspace", "-w"], help="The workspace in which MODEL is looked for by name.")
]


def fit(
    model: Model,
    scans: Annotated[tuple[Path, ...], Parameter(name="SCAN")],
    /,
    *,
    out: Out,
    workspace: Where = ".",
    unit: Literal["mm", "cm", "m"] | None = None,
    strict: Annotated[bool, Parameter(negative=())] = False,
    seed: int = 0,
    output: Output = PLAIN,
) -> Reply:
    """Fit a model to clouds or meshes of one person, in any pose and in mm, cm or m.

    For example:

        nphm fit heads/models/first smile.ply neutral.ply -o fitted

    Parameters
    ----------
    scans
        PLY or OBJ files, each one expression of the same person.
    out
        The folder for fit.json, meshes and landmarks.
    unit
        The scans' unit, where it is known; found by default.
    strict
        Exit with 1 if any scan was rejected.
    seed
        Of everything drawn.
    """
    from pipeline.drawn_mesh import find_model
    from pipeline.fit import ScanFitConfig
    from pipeline.fit_files import fit_files
    from pipeline.session import MM_PER_UNIT

    folder = find_model(model, workspace)
    config = ScanFitConfig() if unit is None else ScanFitConfig(units_to_mm=(MM_PER_UNIT[unit],))
    with progress_for(output) as progress:
        progress.start("fit", len(scans))
        document = fit_files(folder, scans, Path(out), config, seed)
        progress.finish("fit")
    verdicts = {name: scan["verdict"] for name, scan in document["scans"].items()}
    rejected = [name for name, verdict in verdicts.items() if verdict != "accepted"]
    lines = [f"{name}: rejected: {'; '.join(document['scans'][name]['reasons'])}" for name in rejected]
    lines.append(f"{len(verdicts) - len(rejected)} fitted, {len(rejected)} rejected, in {out}")
    exit = Exit.NOTHING_USABLE if len(rejected) == len(verdicts) else Exit.FAILED if strict and rejected else Exit.DONE
    return Reply(document, tuple(lines), exit)
