"""How an image becomes posteriors: every choice a named field."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..preprocess import FILTERS

if TYPE_CHECKING:
    from ..models import VGG

KINDS = ("center", "ten-crop", "multi-crop", "dense", "combined")
PAPER_SIZE = 224  # the input size of the paper's nets
PAPER_SCALES = (256, 384, 512)  # at that size


@dataclass(frozen=True)
class Protocol:
    """How an image becomes posteriors (paper, section 3.2); every choice is a named field.

    Parameters
    ----------
    kind : "center", "ten-crop", "multi-crop", "dense" or "combined" (the mean of multi-crop and dense)
    scales : ints, the sizes Q of the image's shorter side after isotropic rescaling; posteriors are averaged
        over them
    mirror : average with the mirrored image; None means True, but False for "center"
    grid : multi-crop takes ``grid`` x ``grid`` crops at each scale (the paper: 5)
    averaging : dense: "scores" averages the class-score map, then takes the soft-max (the paper);
        "posteriors" takes the soft-max at each position, then averages
    filter : Pillow's resampling filter, one of :data:`vggnet.preprocess.FILTERS`
    batch : crops in one forward pass; a dense pass takes images of one shape, up to the same number of pixels
    memory : bytes that the maps of one dense pass may take: fewer images share a pass, and one that is too
        large by itself goes in bands, with the same result

    Raises
    ------
    ValueError, TypeError
        A field is out of its range; the message names it.
    """

    kind: str
    scales: tuple[int, ...] = PAPER_SCALES
    mirror: bool | None = None
    grid: int = 5
    averaging: str = "scores"
    filter: str = "bicubic"
    batch: int = 32
    memory: int = 1 << 30

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, KINDS)
        _one_of("averaging", self.averaging, ("scores", "posteriors"))
        _one_of("filter", self.filter, FILTERS)
        given = (self.scales,) if isinstance(self.scales, int | np.integer) else self.scales
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise TypeError(f"scales is {self.scales!r}; expected one or more ints, such as (256, 384, 512)")
        scales = tuple(_integer("scales", s, 1) for s in given)
        if not scales or len(set(scales)) != len(scales):
            raise ValueError(
                f"scales is {self.scales!r}; expected one or more different ints, such as (256, 384, 512)"
            )
        mirror = self.kind != "center" if self.mirror is None else self.mirror
        if not isinstance(mirror, bool):
            raise TypeError(f"mirror is {mirror!r}; expected True, False or None")
        put = object.__setattr__  # frozen: the normalised values replace what came
        put(self, "scales", scales)
        put(self, "mirror", mirror)
        put(self, "grid", _integer("grid", self.grid, 2))
        put(self, "batch", _integer("batch", self.batch, 1))
        put(self, "memory", _integer("memory", self.memory, 1))

    @classmethod
    def paper(cls, kind: str, scales: Sequence[int] | int = PAPER_SCALES) -> Protocol:
        """The protocol of the paper's tables: "dense", "multi-crop" or "combined" ("center" and "ten-crop"
        are for comparison).

        A net trained at a fixed S was tested at ``scales=S`` and at ``(S - 32, S, S + 32)``; one trained with
        S from [256, 512] at 384 and at ``(256, 384, 512)`` (paper, section 4).
        """
        return cls(kind, scales)  # type: ignore[arg-type]  # __post_init__ makes the tuple

    @classmethod
    def for_model(cls, kind: str, model: VGG, scales: Sequence[int] | int | None = None) -> Protocol:
        """The paper's protocol for a net of any input size, at the scales that go with its training.

        Without ``scales`` (paper, section 4): for a net trained at a fixed S, Q is S - 32, S and S + 32, with
        32 in proportion to the input size, or S alone where S - 32 would be below that; for S from a range,
        its ends and its middle.
        "center" and "ten-crop" take the paper's single scale: S, or the middle. Where the model does not tell
        its S: 256, 384 and 512 in proportion to the input size, or the first of them.
        """
        if scales is None:
            scales = _scales(model, single=kind in ("center", "ten-crop"))
        return cls.paper(kind, scales)

    def parts(self) -> tuple[Protocol, ...]:
        """The protocols whose posteriors are averaged: two for "combined", else this one."""
        if self.kind != "combined":
            return (self,)
        return replace(self, kind="dense"), replace(self, kind="multi-crop")

    def inferences(self) -> list[str]:
        """The choices that the paper leaves open, as they were made."""
        found = [
            "longer side of the rescaled image = floor(longer * Q / shorter + 0.5)",
            f"rescaled by Pillow's antialiased {self.filter} filter",
        ]
        kinds = [part.kind for part in self.parts()]
        if "dense" in kinds and self.averaging == "scores":
            found.append("'sum-pooled' means averaged over positions, before the soft-max")
        if "multi-crop" in kinds:
            found.append(
                f"crops start at floor(linspace(0, side - crop, {self.grid}) + 0.5) on each axis, repeated ones count"
            )
        if "center" in kinds or "ten-crop" in kinds:
            found.append("the centre crop starts at floor((side - crop) / 2) on each axis")
        return found

    def describe(self) -> str:
        """The protocol in words, with the choices that the paper leaves open."""
        lines = [
            f"{self.kind}, Q = {', '.join(map(str, self.scales))}.",
            "Images are rescaled isotropically to shorter side Q; the mean is subtracted.",
        ]
        for part in self.parts():
            if part.kind == "dense":
                whole = "image and on its mirror image" if self.mirror else "image"
                lines.append(f"Dense: the net runs fully convolutionally on the whole {whole};")
                if self.averaging == "scores":
                    lines.append("class scores averaged over positions, then soft-max.")
                else:
                    lines.append(
                        "soft-max at each position, averaged over the positions (not the paper's order)."
                    )
                if self.mirror:
                    lines.append("Posteriors are averaged over the image and its mirror image.")
                continue
            mirror = ", each also mirrored" if self.mirror else ""
            if part.kind == "multi-crop":
                lines.append(f"Multi-crop: a regular {self.grid} x {self.grid} grid of crops{mirror}.")
            elif part.kind == "ten-crop":
                lines.append(f"Ten-crop: four corners and the centre{mirror}.")
            else:
                lines.append(f"Centre crop{' and its mirror image' if self.mirror else ''}.")
            one = part.kind == "center" and not self.mirror
            lines.append("Then soft-max." if one else "Soft-max outputs of the crops are averaged.")
        if self.kind == "combined":
            lines.append("Combined: mean of the dense and the multi-crop posteriors.")
        if len(self.scales) > 1:
            lines.append("Posteriors are averaged over the scales Q.")
        lines.append("Our inferences, where the paper is silent:")
        lines += [f"- {text}" for text in self.inferences()]
        return "\n".join(lines)


def resolve(protocol: Protocol | str, model: VGG) -> Protocol:
    """A Protocol as it is; "paper" means dense at the paper's scales; a kind means
    :meth:`Protocol.for_model`."""
    if isinstance(protocol, Protocol):
        return protocol
    return Protocol.for_model("dense" if protocol == "paper" else protocol, model)


def in_proportion(scale: int, input_size: int) -> int:
    """A scale of the paper, S or Q, for nets of another input size: floor(scale * input_size / 224 + 0.5)."""
    return (2 * scale * input_size + PAPER_SIZE) // (2 * PAPER_SIZE)


def check_scales(model: VGG, protocol: Protocol) -> None:
    if min(protocol.scales) < model.input_size:
        raise ValueError(
            f"scales is {protocol.scales}; expected at least the model's input size, {model.input_size}: "
            "Protocol.for_model gives scales in proportion to it"
        )


def _scales(model: VGG, *, single: bool) -> list[int]:
    """Test scales of a model, see `Protocol.for_model`."""
    size = model.input_size
    if model.scale is None:
        low, middle, high = (in_proportion(q, size) for q in PAPER_SCALES)
        return [low] if single else [low, middle, high]
    if isinstance(model.scale, int):
        middle, step = model.scale, in_proportion(32, size)
        if middle - step < size:  # too little room for crops to have taught it other scales
            return [middle]
        low, high = middle - step, middle + step
    else:
        low, high = model.scale
        middle = (low + high) // 2
    return [middle] if single else sorted({low, middle, high})


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, allowed))}")


def _integer(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r}; expected an int")
    if value < least:
        raise ValueError(f"{name} is {value}; expected at least {least}")
    return int(value)
