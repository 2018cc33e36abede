"""Verbs that make heads of a trained model: a mesh, others' expressions on a person, the way between two heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from flows.commands import Out
from flows.commands.outside import Model, Where
from flows.console import PLAIN, Output, Reply
from flows.progress import progress_for

if TYPE_CHECKING:
    from pipeline.mesh_files import NamedMesh

Identity = Annotated[str, Parameter(help="A subject's id, `mean`, `random`, or the folder of a fit's results.")]
Cells = Annotated[int, Parameter(help="Cells along the longest side.", validator=Number(gte=8, lte=1024))]
Seconds = Annotated[float, Parameter(help="From one frame of a GLB file to the next.", validator=Number(gt=0))]


def mesh(
    model: Model,
    /,
    *,
    out: Out,
    workspace: Where = ".",
    identity: Identity = "mean",
    expression: str = "canonical",
    resolution: Cells = 256,
    seed: int = 0,
    plain: Annotated[bool, Parameter(negative=())] = False,
    output: Output = PLAIN,
) -> Reply:
    """Make a mesh of a head that a model knows, or of a new one.

    For example:

        nphm mesh heads/models/first -o head.ply --identity random --seed 3

    Parameters
    ----------
    out
        A PLY, OBJ or GLB file, head frame, mm. A picture is put beside it.
    expression
        SUBJECT/NAME, `canonical`, `random`, or FOLDER/NAME of a fit's results.
    seed
        Of what is drawn at random.
    plain
        Triangles alone: no normals, regions and places on the template at the vertices.
    """
    from pipeline.drawn_mesh import draw_meshes, find_model
    from pipeline.mesh_files import check_ending

    check_ending(Path(out))
    made = draw_meshes(find_model(model, workspace), identity, [expression], resolution, seed, plain)
    return _written(made, out)


def transfer(
    model: Model,
    /,
    *,
    out: Out,
    expression: Annotated[tuple[str, ...], Parameter(negative=())],
    identity: Identity = "mean",
    workspace: Where = ".",
    resolution: Cells = 256,
    seconds: Seconds = 0.5,
    seed: int = 0,
    output: Output = PLAIN,
) -> Reply:
    """Put one person's expressions on another's head.

    For example:

        nphm transfer first -w heads --identity 002 --expression 001/smile --expression 001/jaw_open -o faces.glb

    Parameters
    ----------
    out
        A GLB file with all expressions in a sequence, or PLY or OBJ files, numbered where there are several.
    expression
        SUBJECT/NAME, SUBJECT for all that the model knows of it, FOLDER or FOLDER/NAME of a fit's results, or
        `random`. May be given several times.
    seed
        Of what is drawn at random.
    """
    from pipeline.drawn_mesh import draw_meshes

    def draw(folder: Path, progress: Callable[[int, int], None]) -> list[NamedMesh]:
        return draw_meshes(folder, identity, expression, resolution, seed, progress=progress)

    return _written(_drawn("transfer", draw, model, workspace, out, len(expression), output), out, seconds)


def interpolate(
    model: Model,
    /,
    *,
    out: Out,
    identity: Identity = "mean",
    to_identity: Annotated[str | None, Parameter(help="The last frame's; the first's if left out.")] = None,
    expression: str = "canonical",
    to_expression: Annotated[str | None, Parameter(help="The last frame's; the first's if left out.")] = None,
    frames: Annotated[int, Parameter(help="Both ends included.", validator=Number(gte=2, lte=1000))] = 9,
    workspace: Where = ".",
    resolution: Cells = 128,
    seconds: Seconds = 0.1,
    seed: int = 0,
    output: Output = PLAIN,
) -> Reply:
    """Go from one head to another in equal steps of the codes.

    For example:

        nphm interpolate first -w heads --identity 001 --expression 001/neutral --to-expression 001/smile -o smile.glb

    Parameters
    ----------
    out
        A GLB file with all frames in a sequence, or PLY or OBJ files, numbered.
    expression
        SUBJECT/NAME, `canonical`, `random`, or FOLDER/NAME of a fit's results.
    seed
        Of what is drawn at random.
    """
    from pipeline.drawn_mesh import meshes_between

    def draw(folder: Path, progress: Callable[[int, int], None]) -> list[NamedMesh]:
        ends = (identity, to_identity), (expression, to_expression)
        return meshes_between(folder, *ends, frames, resolution, seed, progress=progress)

    return _written(_drawn("interpolate", draw, model, workspace, out, frames, output), out, seconds)


def _drawn(
    verb: str,
    draw: Callable[[Path, Callable[[int, int], None]], list[NamedMesh]],
    model: str,
    workspace: str,
    out: str,
    count: Annotated[int, Parameter(validator=Number(gte=1, lte=1000))],
    output: Output,
) -> list[NamedMesh]:
    """What ``draw`` makes of the model's folder, with a bar that tells how far it is."""
    from pipeline.drawn_mesh import find_model
    from pipeline.mesh_files import check_ending

    check_ending(Path(out))
    folder = find_model(model, workspace)
    with progress_for(output) as progress:
        progress.start(verb, count, "head")
        made = draw(folder, lambda done, of: progress.update(verb, done, total=of))
        progress.finish(verb)
    return made


def _written(made: Sequence[NamedMesh], out: str, seconds: float = 0.5) -> Reply:
    from pipeline.mesh_files import write_meshes

    *files, picture = write_meshes(made, Path(out), seconds)
    heads = [{"name": one.name, "vertices": len(one.mesh.vertices), "faces": len(one.mesh.faces)} for one in made]
    document: dict[str, Any] = {"files": [str(path) for path in files], "picture": str(picture), "heads": heads}
    if len(made) == 1:
        document |= {"mesh": str(files[0]), "vertices": heads[0]["vertices"], "faces": heads[0]["faces"]}
        told = f"{heads[0]['vertices']} vertices in {files[0]}"
    else:
        told = f"{len(made)} heads in {files[0]}" + (f" to {files[-1].name}" if len(files) > 1 else "")
    return Reply(document, (f"{told}, picture in {picture}",))
