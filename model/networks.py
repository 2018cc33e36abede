"""All networks of a head model together, as its config wants them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.attribute_field import ColorField, RegionField
from model.checkpoint import load_module, module_tensors
from model.config import FieldConfig
from model.deformation_field import DeformationField
from model.identity_field import IdentityField
from model.imface_fields import ImFaceExpression, ImFaceShape
from model.shape_and_motion import MotionField, ShapeField
from storage.errors import ConfigError, one_line


@dataclass(frozen=True)
class HeadNetworks:
    """The fields of a head model.

    Attributes:
        identity, deformation: there always.
        regions, color: None where the config has none.
    """

    identity: ShapeField
    deformation: MotionField
    regions: RegionField | None = None
    color: ColorField | None = None

    @classmethod
    def build(cls, config: FieldConfig, anchors: Tensor, pairs: int, generator: torch.Generator) -> HeadNetworks:
        """Networks with weights drawn from a generator.

        Args:
            config: their sizes.
            anchors: (K, 3) model units, mirrored pairs first, interleaved.
            pairs: number of mirrored pairs.
            generator: where the weights are drawn from.
        """
        if config.imface is not None:
            shape = ImFaceShape(config.imface, anchors, generator)
            return cls(shape, ImFaceExpression(config.imface, config.deformation, anchors, generator))
        identity = IdentityField(config.identity, anchors, pairs, generator, config.deformation.hyper_dim)
        deformation = DeformationField(config.deformation, identity.layout.size, len(anchors), generator)
        global_dim = config.identity.global_dim
        regions = None if config.regions is None else RegionField(config.regions, global_dim, generator)
        color = None if config.color is None else ColorField(config.color, global_dim, generator)
        return cls(identity, deformation, regions, color)

    @classmethod
    def of_tensors(
        cls, config: FieldConfig, anchors: Tensor, pairs: int, tensors: Mapping[str, Tensor], where: str
    ) -> HeadNetworks:
        """Networks that have what ``tensors`` gave for weights. No more memory is taken than that has.

        Arguments as ``build``; ``where`` is for messages.

        Raises:
            ConfigError: the sizes are none of networks, or a tensor is missing or of another size.
        """
        generator = torch.Generator()
        try:
            with torch.device("meta"):  # sizes from anywhere must not be taken at their word
                fields = cls.build(config, anchors, pairs, generator)
        except (RuntimeError, ValueError, TypeError, OverflowError, ArithmeticError) as error:
            why = " ".join(str(error).split())[:200]
            raise ConfigError(one_line("sizes are those of no network", where, why, "train again")) from error
        for prefix, part in fields.parts().items():
            whole = {name: buffer for name, buffer in part.named_buffers() if not buffer.is_floating_point()}
            load_module(part, prefix, tensors, where, assign=True)
            for name, buffer in part.named_buffers():
                if name in whole and not torch.equal(buffer, whole[name]):
                    raise ConfigError(
                        one_line(f"{prefix}.{name} is not as its sizes ask for", where, "", "train again")
                    )
        return fields

    def parts(self) -> dict[str, nn.Module]:
        """The networks that there are, by the name that their weights begin with."""
        whole = {
            "identity": self.identity,
            "deformation": self.deformation,
            "regions": self.regions,
            "color": self.color,
        }
        return {name: part for name, part in whole.items() if part is not None}

    def tensors(self) -> dict[str, Tensor]:
        """All weights and buffers by name."""
        return {
            name: tensor
            for prefix, part in self.parts().items()
            for name, tensor in module_tensors(part, prefix).items()
        }

    def frozen(self, device: str | torch.device) -> HeadNetworks:
        """The same networks, not to be trained further, on a device."""
        for part in self.parts().values():
            part.requires_grad_(False).to(device)
        return self
