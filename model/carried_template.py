"""The template on a person's head: what gives a model's surface the template's names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model.head_model import HeadModel
from registration.mesh import Mesh, transform_points
from registration.register_head import register_canonical
from registration.surface import SurfaceIndex
from registration.template import Template

_COARSE_CELLS = 160


@dataclass(frozen=True)
class CarriedTemplate:
    """A template's vertices on one person's canonical head.

    Attributes:
        template: whose topology, regions and landmarks they have.
        vertices_mm: (n, 3) float64, head frame.
    """

    template: Template
    vertices_mm: NDArray[np.float64]

    @classmethod
    def onto(cls, head: HeadModel, identity: str | ArrayLike, seed: int) -> CarriedTemplate:
        """Register the model's template to a person's canonical head.

        Args:
            head: the model.
            identity: subject id or code (D,).
            seed: of the search for the face, where the head is not where heads are.

        Raises:
            storage.errors.ScanRejected: the surface has no face that the template could be laid on.
        """
        canonical = head.mesh(identity, resolution=_COARSE_CELLS)
        registered = register_canonical(canonical, head.template, seed=seed, start=np.eye(4))
        return cls(head.template, transform_points(registered.T_world_from_head, registered.vertices_head_mm))

    @cached_property
    def _surface(self) -> SurfaceIndex:
        return SurfaceIndex(Mesh.of(self.vertices_mm, self.template.mesh.faces))

    def columns(self, canonical_mm: NDArray[np.floating]) -> dict[str, NDArray]:
        """The nearest place on the template for canonical points (n, 3), as per-vertex columns.

        Returns:
            ``region`` uint8, the code of the nearest corner's region; ``template_face`` int32, the triangle;
            ``template_u`` and ``template_v`` float32, weights of its second and third corner; ``template_mm`` float32,
            how far the place is: beyond some millimetres (hair, worn things) it names no skin.
        """
        found = self._surface.closest(canonical_mm)
        corner = self.template.mesh.faces[found.faces, found.bary.argmax(1)]
        return {
            "region": self.template.regions[corner],
            "template_face": found.faces.astype(np.int32),
            "template_u": found.bary[:, 1].astype(np.float32),
            "template_v": found.bary[:, 2].astype(np.float32),
            "template_mm": found.distance_mm.astype(np.float32),
        }
