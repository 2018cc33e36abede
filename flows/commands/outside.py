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
    scale: Annotated[bool, Parameter(negative=())] = False,
    sequence: Annotated[bool, Parameter(negative=())] = False,
    sensor: tuple[float, float, float] | None = None,
    strict: Annotated[bool, Parameter(negative=())] = False,
    seed: int = 0,
    output: Output = PLAIN,
) -> Reply:
    """Fit a model to clouds, meshes or depth frames of one person, in any pose and in mm, cm or m.

    For example:

        nphm fit heads/models/first smile.ply neutral.ply -o fitted

    Parameters
    ----------
    scans
        PLY or OBJ files, or folders with transforms.json and depth images, each one expression of the same person.
    out
        The folder for fit.json, meshes and landmarks.
    unit
        The scans' unit, where it is known; found by default.
    scale
        Refine the unit by some per cent, for scans whose scale is not sure, such as photogrammetry's.
    sequence
        The scans are consecutive frames in one world frame: expression and pose change little between them.
    sensor
        X Y Z where the scans were seen from, in their frame and unit: nothing of the head lies before what was seen.
    strict
        Exit with 1 if any scan was rejected.
    seed
        Of everything drawn.
    """
    from pipeline.drawn_mesh import find_model
    from pipeline.fit import SCALE_SHARE, ScanFitConfig
    from pipeline.fit_files import fit_files
    from pipeline.session import MM_PER_UNIT

    folder = find_model(model, workspace)
    config = ScanFitConfig(sequence=sequence)
    if unit is not None:
        config = config.model_copy(update={"units_to_mm": (MM_PER_UNIT[unit],)})
    if scale:
        config = config.model_copy(update={"fit": config.fit.model_copy(update={"scale_share": SCALE_SHARE})})
    with progress_for(output) as progress:
        progress.start("fit", len(scans))
        document = fit_files(folder, scans, Path(out), config, seed, sensor)
        progress.finish("fit")
    verdicts = {name: scan["verdict"] for name, scan in document["scans"].items()}
    rejected = [name for name, verdict in verdicts.items() if verdict != "accepted"]
    lines = [f"{name}: rejected: {'; '.join(document['scans'][name]['reasons'])}" for name in rejected]
    lines.append(f"{len(verdicts) - len(rejected)} fitted, {len(rejected)} rejected, in {out}")
    exit = Exit.NOTHING_USABLE if len(rejected) == len(verdicts) else Exit.FAILED if strict and rejected else Exit.DONE
    return Reply(document, tuple(lines), exit)
