"""The networks of the paper as one table (paper, table 1), and the layers and shapes that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["conv", "relu", "lrn", "pool", "linear", "dropout", "softmax"]

# Five blocks, each ending in a pool. A number is a 3x3 convolution of that many channels, "/1" makes it 1x1, "LRN" is local
# response normalisation after the ReLU before it.
CONFIGS: dict[str, str] = {
    "A": "64 | 128 | 256 256 | 512 512 | 512 512",
    "A-LRN": "64 LRN | 128 | 256 256 | 512 512 | 512 512",
    "B": "64 64 | 128 128 | 256 256 | 512 512 | 512 512",
    "C": "64 64 | 128 128 | 256 256 256/1 | 512 512 512/1 | 512 512 512/1",
    "D": "64 64 | 128 128 | 256 256 256 | 512 512 512 | 512 512 512",
    "E": "64 64 | 128 128 | 256 256 256 256 | 512 512 512 512 | 512 512 512 512",
}

STRIDE = 32  # of pool5: five poolings of stride 2


@dataclass(frozen=True)
class Layer:
    """One layer by the paper's name.

    `inputs` and `outputs` are channels (conv) or features (linear); `window` is the side of the kernel of a convolution.
    """

    name: str
    kind: Kind
    inputs: int = 0
    outputs: int = 0
    window: int = 1

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of this layer's weight and bias, by parameter name; empty for layers without weights."""
        if self.kind == "conv":
            weight: tuple[int, ...] = (self.outputs, self.window, self.window, self.inputs)
        elif self.kind == "linear":
            weight = (self.outputs, self.inputs)
        else:
            return {}
        return {f"{self.name}.weight": weight, f"{self.name}.bias": (self.outputs,)}


def layers_of(
    config: str, *, num_classes: int, input_size: int, in_channels: int, fc_width: int
) -> tuple[Layer, ...]:
    """All layers of a network in order, ``conv1_1`` to ``prob``.

    Examples
    --------
    >>> layers = layers_of("A", num_classes=1000, input_size=224, in_channels=3, fc_width=4096)
    >>> [layer.name for layer in layers[:4]]
    ['conv1_1', 'relu1_1', 'pool1', 'conv2_1']
    """
    layers: list[Layer] = []
    channels = in_channels
    for block, tokens in enumerate(CONFIGS[config].split("|"), start=1):
        number = 0
        for token in tokens.split():
            if token == "LRN":
                layers.append(Layer(f"norm{block}_{number}", "lrn"))
                continue
            number += 1
            width, _, window = token.partition("/")
            layers.append(Layer(f"conv{block}_{number}", "conv", channels, int(width), int(window or 3)))
            layers.append(Layer(f"relu{block}_{number}", "relu"))
            channels = int(width)
        layers.append(Layer(f"pool{block}", "pool"))

    side = input_size // STRIDE
    features = side * side * channels  # in (row, column, channel) order
    for number in (6, 7):
        layers.append(Layer(f"fc{number}", "linear", features, fc_width))
        layers.append(Layer(f"relu{number}", "relu"))
        layers.append(Layer(f"drop{number}", "dropout"))
        features = fc_width
    layers.append(Layer("fc8", "linear", features, num_classes))
    layers.append(Layer("prob", "softmax"))
    return tuple(layers)


def parameter_shapes(layers: tuple[Layer, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters by name, in layer order."""
    return {name: shape for layer in layers for name, shape in layer.parameter_shapes.items()}


def count_parameters(layers: tuple[Layer, ...]) -> int:
    """The number of weights and biases.

    Examples
    --------
    >>> count_parameters(layers_of("D", num_classes=1000, input_size=224, in_channels=3, fc_width=4096))
    138357544
    """
    return sum(math.prod(shape) for shape in parameter_shapes(layers).values())


def pooled(size: int, pool_rounding: str) -> int:
    """Height or width after one 2x2 max pooling."""
    return (size + 1) // 2 if pool_rounding == "ceil" else size // 2


def stride_of(layers: tuple[Layer, ...]) -> int:
    """Pixels of the image between neighbouring positions of the last of these layers' map."""
    return int(2 ** sum(layer.kind == "pool" for layer in layers))


def halo_of(layers: tuple[Layer, ...]) -> int:
    """How many rows beyond its own the receptive field of a row of the last of these layers' map reaches, on each side.

    A row is exact when this many neighbours on either side were computed from real pixels.
    """
    reach = 0
    for layer in reversed(layers):
        reach = 2 * reach if layer.kind == "pool" else reach + layer.window // 2
    return -(-reach // stride_of(layers))
