"""Verbs that make templates, of head models, meshes and earlier registrations. Each leaves a picture to check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from flows.commands import Out, Workspace
from flows.console import PLAIN, Output, Reply

if TYPE_CHECKING:
    from registration.template import Template

template = App(name="template", help="Make a template from a head model or a mesh.")

Anchors = Annotated[int, Parameter(help="Number of anchors: 39 or 65 as in the papers, or another.")]
Pairs = Annotated[
    int | None, Parameter(help="Mirrored pairs among them; by default 16 of 39, 30 of 65, else two fifths.")
]
LandmarksFile = Annotated[
    Path | None,
    Parameter(name="--landmarks", help="A JSON file with 68 points or vertex numbers; without it they are found."),
]


@template.command(name="import-ict")
def import_ict(
    source: Annotated[Path, Parameter(name="DIR_OR_NPZ")],
    /,
    *,
    out: Out,
    anchors: Anchors = 39,
    pairs: Pairs = None,
    output: Output = PLAIN,
) -> Reply:
    """Make a template of the ICT face model: its skin with 100 identity and 53 expression modes.

    For example:

        nphm template import-ict ICT-FaceKit -o ict.npz

    Parameters
    ----------
    source
        A checkout of ICT-FaceKit, or the npz file with its heads.
    out
        The template's file; a picture is left beside it.
    """
    from registration.template_import import import_ict

    return _written(import_ict(source), Path(out), anchors, pairs)


@template.command(name="import-flame")
def import_flame(
    source: Annotated[Path, Parameter(name="FILE")],
    /,
    *,
    landmarks: LandmarksFile = None,
    out: Out,
    anchors: Anchors = 39,
    pairs: Pairs = None,
    output: Output = PLAIN,
) -> Reply:
    """Make a template of your own FLAME file, with its identity, expression and jaw modes. No code of the file is run.

    For example:

        nphm template import-flame generic_model.pkl -o flame.npz

    Parameters
    ----------
    source
        FLAME's pickle, or an npz with the same arrays.
    out
        The template's file; a picture is left beside it.
    """
    from registration.flame import import_flame

    return _written(import_flame(source, landmarks), Path(out), anchors, pairs)


@template.command(name="import-mesh")
def import_mesh(
    mesh: Annotated[Path, Parameter(name="MESH")],
    /,
    *,
    landmarks: LandmarksFile = None,
    unit: Annotated[
        Literal["mm", "cm", "m"] | None, Parameter(help="Of the mesh; found by the head's size where it is not told.")
    ] = None,
    out: Out,
    anchors: Anchors = 39,
    pairs: Pairs = None,
    output: Output = PLAIN,
) -> Reply:
    """Make a template of a head mesh of any topology. Regions, anchors and mirror map are found, and may be checked.

    For example:

        nphm template import-mesh head.ply --landmarks head.json -o head.npz

    Parameters
    ----------
    mesh
        A PLY or OBJ file.
    out
        The template's file; a picture is left beside it.
    """
    from registration.template_import import import_mesh

    return _written(import_mesh(mesh, landmarks, unit), Path(out), anchors, pairs)


@template.command(name="learn")
def learn(
    *,
    workspace: Workspace,
    identity_modes: Annotated[int, Parameter(help="Identity modes kept, at most as many as the people give.")] = 80,
    expression_modes: Annotated[int, Parameter(help="Expression modes kept, likewise.")] = 40,
    out: Out,
    anchors: Anchors = 39,
    pairs: Pairs = None,
    output: Output = PLAIN,
) -> Reply:
    """Make a template of a workspace's registrations: their mean head with its modes. Held-out people are left out.

    For example:

        nphm template learn -w heads -o learned.npz

    Parameters
    ----------
    out
        The template's file; a picture is left beside it.
    """
    from pipeline.learned_template import learn_template
    from pipeline.opening import open_workspace

    made = learn_template(open_workspace(workspace), identity_modes, expression_modes)
    return _written(made, Path(out), anchors, pairs)


def _written(made: Template, path: Path, anchors: int, pairs: int | None) -> Reply:
    from registration.anchors import with_anchors
    from registration.pictures import to_png
    from registration.template_checks import template_doubts, template_figures
    from registration.template_picture import template_sheet

    made = with_anchors(made, anchors, pairs)
    doubts = template_doubts(made)
    picture = path.with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(made.to_bytes())
    picture.write_bytes(to_png(template_sheet(made)))
    document = {"template": str(path), "picture": str(picture), "name": made.name, "doubts": doubts}
    document |= template_figures(made)
    lines = [f"look at it: {doubt}" for doubt in doubts]
    lines.append(f"template {made.name} with {len(made.mesh.vertices)} vertices in {path}, its picture in {picture}")
    return Reply(document, tuple(lines))
