"""Repair of mesh topology with pymeshlab (GPL-3): the one place that imports it.

What it does is deterministic: no filter used here draws random numbers or runs in parallel.
"""

from __future__ import annotations

import numpy as np
import pymeshlab

from registration.mesh import Mesh


def repair(mesh: Mesh, merge_mm: float = 0.0) -> Mesh:
    """Make a mesh edge- and vertex-manifold, without faces that are doubled, folded or without area.

    Args:
        mesh: any; colours and attributes follow their vertices.
        merge_mm: vertices closer than this become one; 0 merges equal ones alone.

    Returns:
        The repaired mesh; vertices that no face uses are dropped. Faces are removed where an edge has three or more.
    """
    if merge_mm == 0 and is_sound(mesh):
        return mesh
    # Each vertex carries its own number through the filters, so that every column can follow.
    order = np.arange(len(mesh.vertices), dtype=np.float64)
    work = pymeshlab.MeshSet(verbose=False)
    work.add_mesh(
        pymeshlab.Mesh(mesh.vertices.astype(np.float64), mesh.faces.astype(np.int32), v_scalar_array=order), "scan"
    )
    if merge_mm > 0:
        work.meshing_merge_close_vertices(threshold=pymeshlab.PureValue(merge_mm))
    else:
        work.meshing_remove_duplicate_vertices()
    work.meshing_remove_null_faces()
    work.meshing_remove_duplicate_faces()
    work.meshing_repair_non_manifold_edges(method="Remove Faces")
    work.meshing_repair_non_manifold_vertices(vertdispratio=0)
    work.meshing_remove_unreferenced_vertices()
    out = work.current_mesh()
    source = out.vertex_scalar_array().astype(np.int64)
    return Mesh.of(
        out.vertex_matrix(),
        out.face_matrix(),
        None if mesh.colors is None else mesh.colors[source],
        **{name: column[source] for name, column in mesh.attributes.items()},
    )


def is_sound(mesh: Mesh) -> bool:
    """Whether no edge has more than two faces, no face is doubled or folded, and every vertex is used."""
    if len(mesh.faces) == 0:
        return True
    faces = mesh.faces.astype(np.int64)
    n = len(mesh.vertices)
    folded = (faces[:, 0] == faces[:, 1]) | (faces[:, 1] == faces[:, 2]) | (faces[:, 2] == faces[:, 0])
    if folded.any() or np.bincount(faces.ravel(), minlength=n).min() == 0:
        return False
    # Each directed edge at most once: then an undirected one has at most two faces, which agree in orientation.
    directed = np.sort((faces * n + faces[:, [1, 2, 0]]).ravel())
    return bool((directed[1:] != directed[:-1]).all())
