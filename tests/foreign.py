"""Nets as other programs have them: NCHW maps, OIHW weights, fc6 over (channel, row, column). Narrow ones, so files are small.

`scores` is their forward pass in float64, written for this order, and shares nothing with the package or with tests/reference.
"""

import numpy as np
from vggnet import configs

from reference import net

CLASSES, SIDE, FC_WIDTH = 4, 2, 6  # of what random_net draws; SIDE is of pool5's map, so fc6's order matters
MEAN = (123.68, 116.779, 103.939)  # of ILSVRC-2012, RGB


def random_net(config, rng, channels=3):
    """{layer: (weight, bias)}: convolutions (O, I, H, W), fully connected (O, I)."""
    layers = configs.layers_of(
        config, num_classes=CLASSES, input_size=32 * SIDE, in_channels=channels, fc_width=FC_WIDTH
    )
    weights = {}
    for layer in layers:
        if layer.kind in ("conv", "linear"):
            window = (layer.window, layer.window) if layer.kind == "conv" else ()
            shape = (layer.outputs, layer.inputs, *window)
            deviation = (2 / np.prod(shape[1:])) ** 0.5
            weights[layer.name] = (
                (deviation * rng.standard_normal(shape)).astype(np.float32),
                (0.1 * rng.standard_normal(layer.outputs)).astype(np.float32),
            )
    return weights


def random_images(rng, n=2, channels=3):
    """(N, H, W, C) uint8, of the size that `random_net` is for."""
    return rng.integers(0, 256, (n, 32 * SIDE, 32 * SIDE, channels), dtype=np.uint8)


def scores(config, weights, x):
    """Class scores of x (N, C, H, W), as the program prepares it."""
    h = np.asarray(x, np.float64)
    for kind, name in net.layers(config):
        if kind == "conv":
            w, b = weights[name]
            edge = w.shape[2] // 2
            padded = np.pad(h, ((0, 0), (0, 0), (edge, edge), (edge, edge)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, w.shape[2:], axis=(2, 3))
            h = np.einsum("nchwrs,kcrs->nkhw", windows, w.astype(np.float64)) + b[:, None, None]
        elif kind == "relu":
            h = np.maximum(h, 0)
        elif kind == "lrn":
            padded = np.pad(h**2, ((0, 0), (2, 2), (0, 0), (0, 0)))
            total = sum(padded[:, i : i + h.shape[1]] for i in range(5))
            h = h / (2 + 1e-4 * total) ** 0.75
        elif kind == "pool":
            n, c, rows, columns = h.shape
            h = h.reshape(n, c, rows // 2, 2, columns // 2, 2).max((3, 5))
        elif kind == "linear":
            w, b = weights[name]
            h = h.reshape(len(h), -1) @ w.astype(np.float64).T + b
    return h


def check_scores(model, images, expected):
    """The model sees uint8 RGB images as its own preprocessing says; its scores are the other program's to rounding."""
    got = model.forward(model.preprocessing.apply(images)).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def same_parameters(a, b):
    for name, parameter in a.parameters.items():
        np.testing.assert_array_equal(parameter.numpy(), b.parameters[name].numpy(), err_msg=name)
