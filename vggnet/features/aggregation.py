"""How the map of a layer becomes one vector: every choice a named field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..evaluate import Protocol
from ..evaluate.protocol import check_scales

if TYPE_CHECKING:
    from ..models import VGG

VOC_SCALES = (256, 384, 512, 640, 768)  # Q at the paper's input size, 224; averaged
CALTECH_SCALES = (256, 384, 512)  # stacked
COMBINE = ("mean", "stack")


@dataclass(frozen=True)
class Aggregation:
    """How an image becomes a descriptor (paper, appendix B); every choice is a named field.

    For each scale Q: the image is rescaled to a shorter side of Q, the net runs over it and over its mirror image fully
    convolutionally, the layer's map is averaged over all positions of both, and the result is divided by its L2 norm. Then the
    descriptors of the scales are averaged, or stacked.

    Parameters
    ----------
    layer : one of ``model.layer_names``; "relu7" is the paper's. A layer before fc6 is pooled over its whole map
    scales : ints, the sizes Q of the image's shorter side after isotropic rescaling
    combine : "mean" (the paper, on VOC) or "stack" (the paper, on Caltech-101 and -256): descriptors of the scales one after
        the other
    mirror : also of the mirrored image
    filter : Pillow's resampling filter, one of :data:`vggnet.preprocess.FILTERS`
    batch, memory : as in :class:`vggnet.evaluate.Protocol`; they change speed and memory alone, up to rounding

    Raises
    ------
    ValueError, TypeError
        A field is out of its range; the message names it.

    Examples
    --------
    >>> Aggregation("relu7", (256, 384), "stack").scales
    (256, 384)
    """

    layer: str = "relu7"
    scales: tuple[int, ...] = VOC_SCALES
    combine: str = "mean"
    mirror: bool = True
    filter: str = "bicubic"
    batch: int = 32
    memory: int = 1 << 30

    def __post_init__(self) -> None:
        if self.combine not in COMBINE:
            raise ValueError(f"combine is {self.combine!r}; expected one of {', '.join(map(repr, COMBINE))}")
        if not isinstance(self.mirror, bool):
            raise TypeError(f"mirror is {self.mirror!r}; expected True or False")
        object.__setattr__(self, "scales", self.protocol.scales)  # frozen: a tuple replaces what came

    @property
    def protocol(self) -> Protocol:
        """The dense passes that this takes."""
        return Protocol(
            "dense", self.scales, self.mirror, filter=self.filter, batch=self.batch, memory=self.memory
        )

    @classmethod
    def for_model(
        cls, model: VGG, combine: str = "mean", scales: Sequence[int] | int | None = None, **fields: Any
    ) -> Aggregation:
        """The paper's aggregation for a net of any input size.

        Without `scales`: those that the paper averaged (256 to 768) or stacked (256, 384, 512), in proportion to the input
        size. `fields` are the others by name.
        """
        if scales is None:
            paper = CALTECH_SCALES if combine == "stack" else VOC_SCALES
            scales = tuple((q * model.input_size + 112) // 224 for q in paper)
        return cls(scales=scales, combine=combine, **fields)  # type: ignore[arg-type]  # __post_init__ makes the tuple

    def check(self, model: VGG) -> None:
        """Raise ValueError unless the model has the layer, and its scales are no smaller than its input where that matters."""
        if model.trunk_layer(self.layer) != self.layer:
            check_scales(model, self.protocol)

    def describe(self) -> str:
        """The aggregation in words, with the choices that the paper leaves open."""
        whole = "image and on its mirror image" if self.mirror else "image"
        both = " of both" if self.mirror else ""
        lines = [
            f"{self.layer}, Q = {', '.join(map(str, self.scales))}, {self.combine}.",
            "Images are rescaled isotropically to shorter side Q, longer side = floor(longer * Q / shorter",
            f"+ 0.5) (our inference), by Pillow's antialiased {self.filter} filter; the mean is subtracted.",
            f"The net runs fully convolutionally on the whole {whole}; the map of {self.layer} is averaged",
            f"over all positions{both}, then divided by its L2 norm, at each scale (our inference: the paper",
            "normalises, and leaves open whether before or after scales are combined).",
        ]
        if len(self.scales) > 1:
            how = "averaged, and not normalised again" if self.combine == "mean" else "stacked, in this order"
            lines.append(f"Descriptors of the scales are {how}.")
        return "\n".join(lines)


def resolve(aggregation: Aggregation | str, model: VGG) -> Aggregation:
    """An Aggregation as it is; "mean" or "stack" means :meth:`Aggregation.for_model`. Checked against the model."""
    if not isinstance(aggregation, Aggregation):
        aggregation = Aggregation.for_model(model, aggregation)
    aggregation.check(model)
    return aggregation
