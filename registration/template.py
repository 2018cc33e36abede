"""The template: one topology with everything that the later steps need to know of it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, wraps
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from registration.mesh import Mesh
from storage.errors import ConfigError, one_line
from storage.npz import Npz

REGIONS = ("face", "scalp", "ears", "neck", "lips", "eyes", "hair", "worn")
"""Region names; a region's code is its place in this tuple. The template itself uses the first six."""

MAX_BYTES = 1024**3
"""Of an encoded template, packed or not."""
MAX_VERTICES = 200_000

PER_VERTEX, ANY = -1, -2
_SHAPES: dict[str, tuple[str, tuple[int, ...]]] = {
    "vertices": ("f", (PER_VERTEX, 3)),
    "faces": ("iu", (ANY, 3)),
    "landmarks": ("iu", (68,)),
    "anchors": ("iu", (ANY,)),
    "regions": ("iu", (PER_VERTEX,)),
    "face_mask": ("b", (PER_VERTEX,)),
    "mirror": ("iu", (PER_VERTEX,)),
    "throat": ("iu", (3,)),
    "identity_basis": ("f", (ANY, PER_VERTEX, 3)),
    "expression_basis": ("f", (ANY, PER_VERTEX, 3)),
    "expression_names": ("U", (ANY,)),
    "expression_low": ("f", (ANY,)),
}
"""Kinds and shape of each array: truth values, integers, floats or text."""

Kind = TypeVar("Kind", bound=np.floating)


@dataclass(frozen=True)
class Template:
    """A head template in the head frame: origin between the ears, +x to the head's left, +y up, +z out of the face, mm.

    Attributes:
        name: what the template calls itself.
        mesh: the neutral head, n vertices.
        landmarks: (68,) int32 vertex of each of the usual 68 landmarks (0 is on the head's right, at -x).
        anchors: (K,) int32 vertex of each anchor; mirrored pairs first, interleaved, then those in the middle.
        anchor_pairs: number of mirrored pairs.
        regions: (n,) uint8 index into ``REGIONS``.
        face_mask: (n,) bool, brow to chin, no ears, no throat.
        mirror: (n,) int32 the vertex on the other side; its own on the middle line.
        throat: (3,) int32 vertices that span the throat plane.
        identity_basis: (I, n, 3) float32 mm per unit of a coefficient with unit spread; I may be 0.
        expression_basis: (E, n, 3) float32 mm at full expression (a coefficient of 1); E may be 0.
        expression_names: name of each expression mode.
        expression_low: (E,) float32 least coefficient of each: 0 where a mode goes one way, -1 where it has either
            sign; empty where all are 0.
    """

    name: str
    mesh: Mesh
    landmarks: NDArray[np.int32]
    anchors: NDArray[np.int32]
    anchor_pairs: int
    regions: NDArray[np.uint8]
    face_mask: NDArray[np.bool_]
    mirror: NDArray[np.int32]
    throat: NDArray[np.int32]
    identity_basis: NDArray[np.float32]
    expression_basis: NDArray[np.float32]
    expression_names: tuple[str, ...] = ()
    expression_low: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))

    def to_bytes(self) -> bytes:
        """Encode as an npz without pickle. Same template, same bytes."""
        out = io.BytesIO()
        signed: dict[str, Any] = {"expression_low": self.expression_low} if self.expression_low.any() else {}
        np.savez(
            out,
            name=np.array(self.name),
            vertices=self.mesh.vertices,
            faces=self.mesh.faces,
            landmarks=self.landmarks,
            anchors=self.anchors,
            anchor_pairs=np.int32(self.anchor_pairs),
            regions=self.regions,
            face_mask=self.face_mask,
            mirror=self.mirror,
            throat=self.throat,
            identity_basis=self.identity_basis.astype(np.float16),
            expression_basis=self.expression_basis.astype(np.float16),
            expression_names=np.array(self.expression_names, dtype=np.str_),
            **signed,
        )
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, where: str = "template") -> Template:
        """Decode what ``to_bytes`` wrote.

        Raises:
            ConfigError: no template, too large, or its parts disagree.
        """
        try:
            parts = _unpacked(data)
            template = cls(
                str(parts["name"]),
                Mesh(parts["vertices"].astype(np.float32), parts["faces"]),
                parts["landmarks"],
                parts["anchors"],
                int(parts["anchor_pairs"]),
                parts["regions"],
                parts["face_mask"],
                parts["mirror"],
                parts["throat"],
                parts["identity_basis"].astype(np.float32),
                parts["expression_basis"].astype(np.float32),
                tuple(parts["expression_names"].tolist()),
                parts.get("expression_low", np.zeros(0, np.float32)),
            )
        except ValueError as error:
            remedy = "make it with 'nphm template import-mesh', 'import-ict' or 'import-flame'"
            raise ConfigError(one_line("is no template", where, str(error), remedy)) from error
        template.check(where)
        return replace(template, mesh=Mesh.of(template.mesh.vertices, template.mesh.faces))

    def check(self, where: str = "template") -> None:
        """Hold the parts against each other.

        Raises:
            ConfigError: naming the part that disagrees.
        """
        n = len(self.mesh.vertices)
        for part in _SHAPES:
            array = getattr(self.mesh if part in ("vertices", "faces") else self, part)
            if isinstance(array, tuple):
                continue  # of names
            fault = _shape_fault(part, array.shape, array.dtype, n) or _value_fault(part, array, n)
            if fault:
                raise ConfigError(one_line(fault, where, f"{n} vertices", "import it again"))
        if not 0 <= 2 * self.anchor_pairs <= len(self.anchors):
            why = f"{len(self.anchors)} anchors"
            raise ConfigError(one_line(f"has {self.anchor_pairs} pairs of anchors", where, why, "import it again"))
        modes = len(self.expression_basis)
        if len(self.expression_names) not in (0, modes) or len(self.expression_low) not in (0, modes):
            why = f"{len(self.expression_names)} names, {len(self.expression_low)} bounds"
            raise ConfigError(one_line(f"has {modes} expression modes", where, why, "import it again"))

    @cached_property
    def shape_digest(self) -> str:
        """SHA-256 of the neutral head: its mesh, landmarks and regions."""
        parts = (self.mesh.vertices, self.mesh.faces, self.landmarks, self.regions)
        return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()

    def digest(self) -> str:
        """SHA-256 of the encoded template."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def _unpacked(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of an encoded template, their shapes held against one another before any is unpacked.

    Raises:
        ValueError: one is missing, is of another shape or kind, or all are too large.
    """
    packed = Npz(data, MAX_BYTES)
    headers = packed.headers
    missing = sorted({*_SHAPES, "name", "anchor_pairs"} - {"expression_low"} - set(headers))
    if missing:
        raise ValueError(f"{', '.join(missing)} missing")
    n = headers["vertices"].shape[0] if headers["vertices"].shape else 0
    if not 0 < n <= MAX_VERTICES:
        raise ValueError(f"{n} vertices, at most {MAX_VERTICES} are read")
    for part in _SHAPES:
        if part in headers and (fault := _shape_fault(part, headers[part].shape, headers[part].dtype, n)):
            raise ValueError(fault)
    for part, kinds in (("name", "U"), ("anchor_pairs", "iu")):
        if headers[part].shape or headers[part].dtype.kind not in kinds:
            raise ValueError(f"{part} is {headers[part].dtype} of the shape {headers[part].shape}")
    return {part: packed[part] for part in headers if part in _SHAPES or part in ("name", "anchor_pairs")}


def _shape_fault(part: str, shape: tuple[int, ...], dtype: np.dtype[Any], n: int) -> str:
    """What is wrong with an array's shape or kind in a template of n vertices; empty if nothing."""
    kinds, wanted = _SHAPES[part]
    lengths = tuple(n if length == PER_VERTEX else length for length in wanted)
    fits = len(shape) == len(lengths) and all(w in (ANY, h) for w, h in zip(lengths, shape, strict=True))
    return "" if fits and dtype.kind in kinds else f"{part} is {dtype} of the shape {shape}"


def _value_fault(part: str, array: NDArray[Any], n: int) -> str:
    """What is wrong with an array's values; empty if nothing."""
    if array.dtype.kind == "f":
        return "" if np.isfinite(array).all() else f"{part} has values that are no numbers"
    if array.dtype.kind in "iu" and array.size:
        count, what = (len(REGIONS), "regions") if part == "regions" else (n, "vertices")
        if array.min() < 0 or array.max() >= count:
            return f"{part} names {what} from {array.min()} to {array.max()}, beyond 0 to {count - 1}"
    return ""


def once_a_template(
    make: Callable[[Template], NDArray[Kind]],
) -> Callable[[Template], NDArray[Kind]]:
    """Keep the last results of a function of the neutral head: all scans share the template."""
    kept: dict[str, NDArray[Kind]] = {}

    @wraps(make)
    def made(template: Template) -> NDArray[Kind]:
        key = template.shape_digest
        if key not in kept:
            while len(kept) >= 2:
                kept.pop(next(iter(kept)))
            kept[key] = make(template)
            kept[key].setflags(write=False)
        return kept[key]

    return made
