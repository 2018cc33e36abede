"""A trained head model: fields, codes and what is needed to use them. A model folder alone is enough."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import ValidationError
from torch import Tensor

from model.attribute_field import AttributeField, ColorField, RegionField
from model.bound_fields import BoundFields
from model.checkpoint import decode, encode
from model.codes import code_of
from model.config import FieldConfig
from model.head_fields import HeadFields
from model.imface_fields import KEYPOINTS
from model.meshing import extract
from model.model_document import FORMAT, ModelDocument
from model.networks import HeadNetworks
from model.shape_and_motion import MotionField, ShapeField
from model.trained_model import TrainedModel, WarmStart
from model.units import MM_PER_UNIT, to_mm, to_units
from registration.mesh import Mesh
from registration.pieces import without_crumbs
from registration.template import Template
from storage.bounded import read_bounded
from storage.digest import digest_bytes
from storage.errors import ConfigError, ScanRejected, one_line
from storage.frozen import first_fault
from storage.jsonfile import read_json

_FILES = ("model.safetensors", "codes.safetensors", "config.json", "template.npz")
_MAX_FILE_BYTES = 4 * 1024**3

CANONICAL = "canonical"
"""Name of the expression that deforms nothing."""


@dataclass(frozen=True)
class HeadModel:
    """A neural parametric head.

    Attributes:
        identity_field, deformation_field: the networks, not to be trained further.
        config: their sizes.
        subjects: ids, in the order of ``identity_codes``.
        scans: SUBJECT/EXPRESSION keys, in the order of ``expression_codes``.
        identity_codes: (S, D) float32.
        expression_codes: (E, F) float32.
        template: the template of the registrations that the model was trained on.
        box_mm: (2, 3) corners of the space in which heads lie, head frame.
        throat_plane: (4,) head frame, mm; nothing below it (``n x + d < 0``) was ever supervised.
        region_field: names the part of the head that a point belongs to; None where the config has none.
        color_field, appearance_codes: the colour of a point, and its codes (S, A) float32; likewise. A subject without
            coloured samples has the code 0, about which the others lie.
    """

    identity_field: ShapeField
    deformation_field: MotionField
    config: FieldConfig
    subjects: tuple[str, ...]
    scans: tuple[str, ...]
    identity_codes: NDArray[np.float32]
    expression_codes: NDArray[np.float32]
    template: Template
    box_mm: NDArray[np.float64]
    throat_plane: NDArray[np.float64]
    region_field: RegionField | None = None
    color_field: ColorField | None = None
    appearance_codes: NDArray[np.float32] | None = None

    @classmethod
    def of(
        cls,
        trained: TrainedModel,
        config: FieldConfig,
        subjects: Sequence[str],
        scans: Sequence[str],
        template: Template,
        box_mm: ArrayLike,
        throat_plane: ArrayLike,
    ) -> HeadModel:
        """Freeze what training returned, under the names of its subjects and scans."""
        fields = HeadNetworks(trained.identity, trained.deformation, trained.regions, trained.color)
        fields.frozen(trained.identity.device)
        appearance = None
        if trained.appearance_codes is not None:
            appearance = trained.appearance_codes.codes.detach().cpu().numpy()[: len(subjects)]
        return cls(
            trained.identity,
            trained.deformation,
            config,
            tuple(subjects),
            tuple(scans),
            trained.identity_codes.codes.detach().cpu().numpy()[: len(subjects)],
            trained.expression_codes.codes.detach().cpu().numpy()[: len(scans)],
            template,
            np.asarray(box_mm, np.float64).reshape(2, 3),
            np.asarray(throat_plane, np.float64).reshape(4),
            trained.regions,
            trained.color,
            appearance,
        )

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> HeadModel:
        """Read a model folder.

        Raises:
            ConfigError: a file is missing, damaged, or of another version.
        """
        root = Path(folder)
        files = {name: read_bounded(root / name, _MAX_FILE_BYTES) for name in _FILES if (root / name).is_file()}
        return cls.from_files(files, device, str(folder))

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], device: str = "cpu", where: str = "model") -> HeadModel:
        """Decode what ``to_files`` wrote.

        Raises:
            ConfigError: a file is missing, damaged, or of another version, or two disagree.
        """
        for name in _FILES:
            if name not in files:
                remedy = "name a model folder, or train one with 'nphm train'"
                raise ConfigError(one_line("is no model folder", where, f"{name} is missing", remedy))
        told = _document(files["config.json"], f"{where}/config.json")
        anchors = torch.as_tensor(to_units(np.array(told.mean_anchors_mm, np.float32).reshape(-1, 3)))
        weights, _ = decode(files["model.safetensors"], f"{where}/model.safetensors")
        fields = HeadNetworks.of_tensors(told.field, anchors, told.anchor_pairs, weights, f"{where}/model.safetensors")
        fields.frozen(device)
        template = Template.from_bytes(files["template.npz"], f"{where}/template.npz")
        if told.template_sha256 != digest_bytes(files["template.npz"]):
            why = "config.json has another digest"
            raise ConfigError(one_line("is not the model's", f"{where}/template.npz", why, "copy the model again"))
        wanted = {
            "identity": (len(told.subjects), fields.identity.layout.size),
            "expression": (len(told.scans), told.field.deformation.expression_dim),
        }
        if told.field.color is not None:
            wanted["appearance"] = (len(told.subjects), told.field.color.appearance_dim)
        codes = _codes(files["codes.safetensors"], wanted, f"{where}/codes.safetensors")
        return cls(
            fields.identity,
            fields.deformation,
            told.field,
            told.subjects,
            told.scans,
            codes["identity"],
            codes["expression"],
            template,
            np.array(told.box_mm, np.float64),
            np.array(told.throat_plane, np.float64),
            fields.regions,
            fields.color,
            codes.get("appearance"),
        )

    def to_files(self) -> dict[str, bytes]:
        """The model folder's files by name: weights, codes, config and template. Same model, same bytes."""
        codes = {"identity": self.identity_codes, "expression": self.expression_codes}
        codes |= {} if self.appearance_codes is None else {"appearance": self.appearance_codes}
        told = ModelDocument(
            format=FORMAT,
            field=self.config,
            anchor_pairs=self.identity_field.layout.pairs,
            mean_anchors_mm=self.mean_anchors_mm.tolist(),
            subjects=self.subjects,
            scans=self.scans,
            box_mm=self.box_mm.tolist(),
            throat_plane=self.throat_plane.tolist(),
            mm_per_unit=MM_PER_UNIT,
            template_sha256=self.template.digest(),
        )
        return {
            "model.safetensors": encode(self._networks().tensors()),
            "codes.safetensors": encode({name: torch.as_tensor(array) for name, array in codes.items()}),
            "config.json": json.dumps(told.model_dump(mode="json"), indent=1, sort_keys=True).encode(),
            "template.npz": self.template.to_bytes(),
        }

    def save(self, folder: str | Path) -> None:
        """Write a model folder."""
        root = Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        for name, data in self.to_files().items():
            (root / name).write_bytes(data)

    def warm_start(self, subjects: Sequence[str], scans: Sequence[str]) -> WarmStart:
        """What a new training of these subjects and scans goes on from: codes of new ones start at the mean."""
        known_subjects = dict(zip(self.subjects, self.identity_codes, strict=True))
        known_scans = dict(zip(self.scans, self.expression_codes, strict=True))
        return WarmStart(
            self._networks().tensors(),
            torch.as_tensor(np.stack([known_subjects.get(one, self.identity_mean) for one in subjects])),
            torch.as_tensor(np.stack([known_scans.get(one, self.expression_mean) for one in scans])),
            None if self.appearance_codes is None else torch.as_tensor(self._appearance_of(subjects)),
        )

    def _appearance_of(self, subjects: Sequence[str]) -> NDArray[np.float32]:
        """(n, A) the appearance of each subject; of one that is not known the middle, 0."""
        assert self.appearance_codes is not None
        known = dict(zip(self.subjects, self.appearance_codes, strict=True))
        return np.stack([known.get(one, np.zeros_like(self.appearance_codes[0])) for one in subjects])

    @property
    def device(self) -> torch.device:
        """Where the fields lie."""
        return self.identity_field.device

    @property
    def mean_anchors_mm(self) -> NDArray[np.float32]:
        """(K, 3) the anchors about which people's own are predicted, head frame."""
        return np.asarray(to_mm(self.identity_field.anchors_head.mean).cpu().numpy())

    @cached_property
    def identity_mean(self) -> NDArray[np.float32]:
        """(D,) mean of the training subjects' codes."""
        return np.asarray(self.identity_codes.mean(0), np.float32)

    @cached_property
    def identity_std(self) -> NDArray[np.float32]:
        """(D,) spread of the training subjects' codes."""
        return np.asarray(self.identity_codes.std(0), np.float32)

    @cached_property
    def expression_mean(self) -> NDArray[np.float32]:
        """(F,) mean of the training scans' codes."""
        return np.asarray(self.expression_codes.mean(0), np.float32)

    def identity_code(self, identity: str | ArrayLike) -> NDArray[np.float32]:
        """The code (D,) of a subject id; a code is checked and passed through.

        Raises:
            ConfigError: no such subject, or a code of another length.
        """
        return code_of(identity, self.subjects, self.identity_codes, "subject")

    def expression_code(self, expression: str | ArrayLike) -> NDArray[np.float32]:
        """The code (F,) of a scan key SUBJECT/EXPRESSION; a code is checked and passed through.

        Raises:
            ConfigError: no such scan, or a code of another length.
        """
        return code_of(expression, self.scans, self.expression_codes, "scan")

    @torch.no_grad()
    def sdf(self, points_head_mm: ArrayLike, identity: str | ArrayLike) -> NDArray[np.float32]:
        """Signed distance to a head in its canonical expression.

        Args:
            points_head_mm: (N, 3).
            identity: subject id or code (D,).

        Returns:
            (N,) float32 mm, negative inside; trained to be exact within about 25 mm of the surface.
        """
        prepared = self.identity_field.prepare(self._tensor(self.identity_code(identity))[None])
        points = to_units(self._tensor(np.asarray(points_head_mm, np.float32)))
        return np.asarray(to_mm(self.identity_field.sdf(prepared, points)).cpu().numpy())

    def mesh(
        self,
        identity: str | ArrayLike,
        expression: str | ArrayLike = CANONICAL,
        resolution: int = 256,
        crumbs: bool = False,
    ) -> Mesh:
        """The head as a mesh above the throat plane.

        Crumbs are left out: specks in front of the surface and bubbles under it, pieces of less than a hundredth of
        the largest one's area. A field has such where no sample speaks and its codes are no trained person's. Where the
        model has a colour field, the vertices have the subject's colours; a code has those of the middle.

        Args:
            identity: subject id or code (D,).
            expression: SUBJECT/EXPRESSION, "canonical" or a code (F,).
            resolution: cells along the longest edge of the box.
            crumbs: keep all pieces, as the field has them.

        Returns:
            Head frame, mm.
        """
        head = self.meshes(identity, [expression], resolution, crumbs)[0]
        if self.color_field is None:
            return head
        canonical = self.unpose(head.vertices, identity, expression)
        return replace(head, colors=self.colors(canonical, identity))

    def meshes(
        self,
        identity: str | ArrayLike,
        expressions: Sequence[str | ArrayLike],
        resolution: int = 256,
        crumbs: bool = False,
    ) -> list[Mesh]:
        """The head in several expressions; arguments as ``mesh``.

        A forward deformation moves the vertices of one canonical mesh. A backward one gives each expression a surface
        of its own, in which lips can part.
        """
        code = self.identity_code(identity)
        if self.config.deformation.direction == "backward":
            return [self._surface(self._distance(code, one), resolution, crumbs) for one in expressions]
        canonical = self._surface(self._distance(code, CANONICAL), resolution, crumbs)
        return [canonical.with_vertices(self.pose(canonical.vertices, code, one)) for one in expressions]

    @torch.no_grad()
    def _surface(self, distance: Callable[[Tensor], Tensor], resolution: int, crumbs: bool) -> Mesh:
        """The zero level of a distance in model units, above the throat plane."""

        def distance_mm(points_mm: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.asarray(to_mm(distance(to_units(self._tensor(points_mm)))).cpu().numpy())

        whole = extract(distance_mm, self.box_mm[0], self.box_mm[1], resolution, self.throat_plane)
        return whole if crumbs else without_crumbs(whole)

    def _distance(self, identity: NDArray[np.float32], expression: str | ArrayLike) -> Callable[[Tensor], Tensor]:
        """Distance to the canonical head, or to one that a backward deformation has posed."""
        if _is_canonical(expression):
            prepared = self.identity_field.prepare(self._tensor(identity)[None])
            return lambda points: self.identity_field.sdf(prepared, points)
        bound = self._bound(identity, self.expression_code(expression))
        return lambda points: bound.distance(points, points)

    @torch.no_grad()
    def pose(
        self, points_head_mm: ArrayLike, identity: str | ArrayLike, expression: str | ArrayLike
    ) -> NDArray[np.float32]:
        """Move canonical points (N, 3) to where an expression takes them, head frame, mm.

        Of a backward deformation these are roots; a point without one goes to the nearest place that was found.
        """
        points = np.asarray(points_head_mm, np.float32)
        if _is_canonical(expression):
            return points
        bound = self._bound(self.identity_code(identity), self.expression_code(expression))
        return np.asarray(to_mm(bound.posed(to_units(self._tensor(points))).place).cpu().numpy())

    @torch.no_grad()
    def unpose(
        self, points_head_mm: ArrayLike, identity: str | ArrayLike, expression: str | ArrayLike
    ) -> NDArray[np.float32]:
        """Where posed points (N, 3) come from in canonical space, head frame, mm; ``pose`` the other way."""
        points = np.asarray(points_head_mm, np.float32)
        if _is_canonical(expression):
            return points
        bound = self._bound(self.identity_code(identity), self.expression_code(expression))
        return np.asarray(to_mm(bound.canonical(to_units(self._tensor(points))).place).cpu().numpy())

    @torch.no_grad()
    def colors(self, points_head_mm: ArrayLike, identity: str | ArrayLike) -> NDArray[np.uint8]:
        """Colours (N, 3) sRGB of canonical points (N, 3); of a code instead of a subject those of the middle.

        Raises:
            ConfigError: the model was trained without a colour field.
        """
        field = _trained(self.color_field, "color")
        subject = identity if isinstance(identity, str) else ""
        found = self._attribute(field, points_head_mm, identity, self._tensor(self._appearance_of([subject])))
        return np.asarray((255 * found).round().cpu().numpy(), np.uint8)

    def _bound(self, identity: NDArray[np.float32], expression: NDArray[np.float32]) -> BoundFields:
        fields = HeadFields(self.identity_field, self.deformation_field)
        return fields.bind(self._tensor(identity)[None], self._tensor(expression)[None])

    @torch.no_grad()
    def regions(self, points_head_mm: ArrayLike, identity: str | ArrayLike) -> NDArray[np.uint8]:
        """The region (N,) of canonical points (N, 3), an index into ``REGIONS``; it means little far from the surface.

        Raises:
            ConfigError: the model was trained without a region field.
        """
        scores = self._attribute(_trained(self.region_field, "regions"), points_head_mm, identity)
        return np.asarray(scores.argmax(1).cpu().numpy(), np.uint8)

    def _attribute(
        self, field: AttributeField, points_head_mm: ArrayLike, identity: str | ArrayLike, *further_codes: Tensor
    ) -> Tensor:
        z_global, _ = self.identity_field.layout.split(self._tensor(self.identity_code(identity))[None])
        points = to_units(self._tensor(np.asarray(points_head_mm, np.float32)))
        answer: Tensor = field(field.prepare([z_global, *further_codes]), points)
        return answer

    def _networks(self) -> HeadNetworks:
        return HeadNetworks(self.identity_field, self.deformation_field, self.region_field, self.color_field)

    def anchors_mm(self, identity: str | ArrayLike) -> NDArray[np.float32]:
        """(K, 3) predicted anchors, head frame, mm."""
        with torch.no_grad():
            code = self._tensor(self.identity_code(identity))[None]
            z_global, _ = self.identity_field.layout.split(code)
            return np.asarray(to_mm(self.identity_field.anchors_head(z_global))[0].cpu().numpy())

    def _tensor(self, array: NDArray[np.float32]) -> Tensor:
        return torch.as_tensor(array).to(self.device)


def _document(data: bytes, where: str) -> ModelDocument:
    """Decode ``config.json``.

    Raises:
        ConfigError: it is damaged, or of another version.
    """
    try:
        told = read_json(data, where)
        if told["format"] != FORMAT or told["mm_per_unit"] != MM_PER_UNIT:
            why = f"format {told['format']} of {told['mm_per_unit']} mm, this program reads {FORMAT} of {MM_PER_UNIT:g}"
            raise ConfigError(one_line("is of another version", where, why, "train it again"))
        document = ModelDocument.model_validate(told)
        if document.field.imface is not None and len(document.mean_anchors_mm) != len(KEYPOINTS):
            raise ValueError(f"{len(document.mean_anchors_mm)} anchors")
    except ScanRejected as error:
        raise ConfigError(str(error)) from error
    except ValidationError as error:
        why = first_fault(error).removeprefix(": ")
        raise ConfigError(one_line("is damaged", where, why, "train the model again")) from error
    except (ValueError, KeyError, TypeError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ConfigError(one_line("is damaged", where, why, "train the model again")) from error
    return document


def _codes(data: bytes, wanted: Mapping[str, tuple[int, int]], where: str) -> dict[str, NDArray[np.float32]]:
    """The codes by name, of these shapes.

    Raises:
        ConfigError: one is missing, or of another shape or kind.
    """
    found, _ = decode(data, where)
    for name, shape in wanted.items():
        code = found.get(name)
        if code is None or code.dtype != torch.float32 or tuple(code.shape) != shape or not code.isfinite().all():
            is_there = "is missing" if code is None else f"is {code.dtype} of the shape {tuple(code.shape)}"
            why = f"{name} {is_there}, finite float32 of the shape {shape} is wanted"
            raise ConfigError(one_line("codes and names disagree", where, why, "train the model again"))
    return {name: found[name].numpy() for name in wanted}


def _is_canonical(expression: str | ArrayLike) -> bool:
    return isinstance(expression, str) and expression == CANONICAL


def _trained(field: AttributeField | None, name: str) -> AttributeField:
    """The field, or an error that says how a model comes to have one."""
    if field is None:
        remedy = f"set train.training.field.{name} and train again"
        raise ConfigError(one_line(f"has no field of {name}", "model", "it was trained without one", remedy))
    return field
