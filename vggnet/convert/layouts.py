"""Where other programs keep what is ``conv1_1.weight`` here, and in which order: the one table of names and layouts."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from .._C import WeightsError
from ..configs import CONFIGS, STRIDE, layers_of, parameter_shapes

if TYPE_CHECKING:
    from ..models import VGG

Array = npt.NDArray[Any]
OURS = "OHWI"  # axes of a weight: outputs, kernel rows, kernel columns, inputs


@dataclass(frozen=True)
class Layout:
    """How a program orders the numbers of a weight.

    Parameters
    ----------
    axes : "OIHW" | "HWIO"
        Order of the axes of a convolution's weight. A fully connected weight is a convolution as large as the map below it,
        with the axes of the map flattened, so its order follows.
    channels : "RGB" | "BGR"
        Order of the inputs of conv1_1.
    """

    axes: Literal["OIHW", "HWIO"]
    channels: Literal["RGB", "BGR"]

    def ours(self, parameters: Mapping[str, Array]) -> dict[str, Array]:
        """Weights and biases by their names here, turned from this layout to (O, H, W, I); views, nothing is copied.

        Fully connected weights may have two or four axes, and have four afterwards.
        """
        conv5 = [a.shape for name, a in parameters.items() if name.startswith("conv5_") and a.ndim == 4]
        channels = conv5[0][self.axes.index("O")] if conv5 else 0
        turned = {}
        for name, array in parameters.items():
            if not name.endswith(".weight"):
                turned[name] = array.reshape(-1)
                continue
            if array.ndim == 2 and not name.startswith("conv"):
                array = self._unflattened(name, array, channels)
            if array.ndim != 4:
                raise WeightsError(
                    f"{name} has {array.ndim} axes, shape {array.shape}; expected 4 ({self.axes})"
                )
            turned[name] = self._channels(name, array.transpose([self.axes.index(axis) for axis in OURS]))
        return turned

    def theirs(self, model: VGG) -> dict[str, Array]:
        """Weights with four axes and biases of a model, by our names and in this layout; views, nothing is copied."""
        channels = [layer.outputs for layer in model.layers if layer.kind == "conv"][-1]
        turned = {}
        for layer in model.layers:
            if not layer.parameter_shapes:
                continue
            weight, bias = (model.parameters[name].numpy() for name in layer.parameter_shapes)
            if layer.kind == "linear":
                inputs = channels if layer.name == "fc6" else layer.inputs
                side = math.isqrt(layer.inputs // inputs)
                weight = weight.reshape(layer.outputs, side, side, inputs)
            weight = self._channels(layer.name, weight)
            turned[f"{layer.name}.weight"] = weight.transpose([OURS.index(axis) for axis in self.axes])
            turned[f"{layer.name}.bias"] = bias
        return turned

    def _unflattened(self, name: str, weight: Array, channels: int) -> Array:
        outputs_first = self.axes == "OIHW"
        outputs, inputs = weight.shape if outputs_first else weight.shape[::-1]
        if not name.startswith("fc6"):
            channels = inputs
        side = math.isqrt(inputs // channels) if channels else 0
        if side * side * channels != inputs:
            raise WeightsError(
                f"{name} has {inputs} inputs; expected a square map of {channels} channels, those of conv5_1"
            )
        shape = (outputs, channels, side, side) if outputs_first else (side, side, channels, outputs)
        return weight.reshape(shape)

    def _channels(self, name: str, weight: Array) -> Array:
        """Inputs of the first convolution from BGR to RGB, or back, in (O, H, W, I)."""
        return weight[..., ::-1] if self.channels == "BGR" and name.startswith("conv1_1") else weight


CAFFE = Layout("OIHW", "BGR")
TORCHVISION = Layout("OIHW", "RGB")
ONNX = Layout("OIHW", "RGB")
KERAS = Layout("HWIO", "BGR")
MATCONVNET = Layout("HWIO", "RGB")


# ---- names of layers: of ours, as Caffe, MatConvNet and our ONNX files have them, from those of others


#: Of keras.applications' VGG16 and VGG19.
KERAS_NAMES = {f"block{b}_conv{n}": f"conv{b}_{n}" for b in range(1, 6) for n in range(1, 5)} | {
    "fc1": "fc6",
    "fc2": "fc7",
    "predictions": "fc8",
}

#: Of the fully connected layers of torchvision's vgg*, and of timm's, which are the same nets.
TORCHVISION_HEAD = {"classifier.0": "fc6", "classifier.3": "fc7", "classifier.6": "fc8"}
TIMM_HEAD = {"pre_logits.fc1": "fc6", "pre_logits.fc2": "fc7", "head.fc": "fc8"}


def torchvision_names(config: str) -> dict[str, str]:
    """Layers of torchvision's vgg*: "features.N" counts convolutions, ReLUs, poolings, and the LRN that torchvision lacks.

    Examples
    --------
    >>> torchvision_names("A")["features.3"]
    'conv2_1'
    """
    layers = layers_of(config, num_classes=1, input_size=STRIDE, in_channels=3, fc_width=1)
    convs = {
        f"features.{position}": layer.name for position, layer in enumerate(layers) if layer.kind == "conv"
    }
    return convs | TORCHVISION_HEAD


# ---- which net


def recognise(arrays: Mapping[str, Array], *, config: str | None, lrn: bool) -> dict[str, Any]:
    """The arguments of `VGG` that weights of these names and shapes have.

    Parameters
    ----------
    arrays : mapping of "conv1_1.weight" and the like to arrays
        Weights (O, H, W, I), biases (O,).
    config : str, optional
        The net that it must be.
    lrn : bool
        Whether the file says that a response normalisation follows conv1_1: the weights of A and A-LRN are alike.

    Raises
    ------
    WeightsError
        When they are of none of the paper's nets, or of another than `config`.
    """
    for name in ("conv1_1.weight", "fc6.weight", "fc7.weight", "fc8.weight"):
        if name not in arrays:
            raise WeightsError(
                f"has no {name}; expected all layers of a VGG net, those of the classifier too"
            )
    if config is not None and config not in CONFIGS:
        raise ValueError(f"config is {config!r}; expected one of {', '.join(map(repr, CONFIGS))}")
    sides = arrays["fc6.weight"].shape[1:3]
    net = {
        "num_classes": arrays["fc8.weight"].shape[0],
        "input_size": STRIDE * sides[0],
        "in_channels": arrays["conv1_1.weight"].shape[3],
        "fc_width": arrays["fc6.weight"].shape[0],
    }
    if net["in_channels"] not in (1, 3) or min(net.values()) < 1 or sides[0] != sides[1]:
        raise WeightsError(
            f"conv1_1.weight has shape {arrays['conv1_1.weight'].shape} and fc6.weight "
            f"{arrays['fc6.weight'].shape} (outputs, rows, columns, inputs); expected 3 or 1 channels (RGB, gray) "
            f"and a square map"
        )
    candidates = [config] if config is not None else ["A-LRN" if lrn else "A", *"BCDE"]
    differences = {name: list(_differences(name, net, arrays)) for name in candidates}
    fitting = [name for name in candidates if not differences[name]]
    if not fitting:
        name = min(candidates, key=lambda candidate: len(differences[candidate]))
        expected = f"net {name}" if config is not None else "any of the nets A, A-LRN, B, C, D, E"
        some = "; ".join(differences[name][:3])
        raise WeightsError(f"does not fit {expected}; the differences to {name} begin with: {some}")
    return {"config": fitting[0], **net}


def _differences(config: str, net: Mapping[str, Any], arrays: Mapping[str, Array]) -> Iterator[str]:
    shapes = parameter_shapes(layers_of(config, **net))
    for name, shape in shapes.items():
        if name not in arrays:
            yield f"there is no {name}"
        elif name.startswith("fc") and name.endswith(".weight"):
            outputs, *inputs = arrays[name].shape
            if (outputs, math.prod(inputs)) != shape:
                yield f"{name} maps {math.prod(inputs)} to {outputs} features, expected {shape[1]} to {shape[0]}"
        elif arrays[name].shape != shape:
            yield f"{name} has shape {arrays[name].shape}, expected {shape}"
    for name in arrays:
        if name not in shapes:
            yield f"it has {name}, too"


def optional_package(name: str, extra: str, files: str) -> Any:
    """Import a package that only some formats need; the ImportError says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(f"{files} need {package}: pip install 'vggnet[{extra}]'") from error


def check_finite(name: str, array: Array) -> None:
    """WeightsError for anything but finite floats: minimum and maximum propagate NaN, without a temporary array."""
    if array.dtype.kind != "f":
        raise WeightsError(f"{name} is an array of {array.dtype}; expected floats")
    if not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise WeightsError(f"{name} holds values that are no finite numbers; such a net can't be used")


@dataclass(frozen=True)
class Foreign:
    """What a file of another program tells of a net.

    Parameters
    ----------
    arrays : dict of str to array
        By names of ours; weights (O, H, W, I), biases (O,).
    lrn : bool
        Whether a response normalisation follows conv1_1.
    mean : tuple of float, optional
        RGB (or gray), 0..255 scale; None takes that of ILSVRC-2012.
    scale : tuple of float, optional
        What the program multiplies pixels minus the mean by: one number, or one a channel; None is 1.
    pool_rounding : "floor" | "ceil"
        The program's.
    classes : list of str, optional
    """

    arrays: dict[str, Array]
    lrn: bool = False
    mean: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None
    pool_rounding: Literal["floor", "ceil"] = "floor"
    classes: list[str] | None = None
