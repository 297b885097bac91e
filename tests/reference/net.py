"""The six nets (paper, section 2, table 1): forward with every named layer's map, backward to all weights and
the input.

Channel counts come from the parameters' shapes, so a net of the same structure but narrower can be
differentiated numerically.
"""

import numpy as np

from . import conv2d, linear, lrn, max_pool2d, relu, softmax

# Output channels of each convolution, a block a tuple; a pair (channels, 1) is a 1x1 convolution; "LRN"
# normalises.
CONFIGS = {
    "A": ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    "A-LRN": ((64, "LRN"), (128,), (256, 256), (512, 512), (512, 512)),
    "B": ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    "C": ((64, 64), (128, 128), (256, 256, (256, 1)), (512, 512, (512, 1)), (512, 512, (512, 1))),
    "D": ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
    "E": ((64, 64), (128, 128), (256, 256, 256, 256), (512, 512, 512, 512), (512, 512, 512, 512)),
}
# Paper, table 2, counted exactly, for 1000 classes at 224 x 224 x 3.
PARAMETERS = {
    "A": 132_863_336,
    "A-LRN": 132_863_336,
    "B": 133_047_848,
    "C": 133_638_952,
    "D": 138_357_544,
    "E": 143_667_240,
}
WEIGHT_LAYERS = {"A": 11, "A-LRN": 11, "B": 13, "C": 16, "D": 16, "E": 19}


def layers(config):
    """[(kind, name)], in order; kind is conv, relu, lrn, pool, linear, dropout or softmax."""
    out = []
    for i, block in enumerate(CONFIGS[config], 1):
        j = 0
        for entry in block:
            if entry == "LRN":
                out.append(("lrn", f"norm{i}_{j}"))
                continue
            j += 1
            out += [("conv", f"conv{i}_{j}"), ("relu", f"relu{i}_{j}")]
        out.append(("pool", f"pool{i}"))
    for i in (6, 7):
        out += [("linear", f"fc{i}"), ("relu", f"relu{i}"), ("dropout", f"drop{i}")]
    return [*out, ("linear", "fc8"), ("softmax", "prob")]


def parameter_shapes(config, num_classes=1000, input_size=224, in_channels=3, fc_width=4096, divisor=1):
    """{"conv1_1.weight": (64, 3, 3, 3), "conv1_1.bias": (64,), ...}; divisor makes every convolution
    narrower."""
    shapes, c = {}, in_channels
    for i, block in enumerate(CONFIGS[config], 1):
        for j, entry in enumerate((e for e in block if e != "LRN"), 1):
            k, size = entry if isinstance(entry, tuple) else (entry, 3)
            k //= divisor
            shapes[f"conv{i}_{j}.weight"], shapes[f"conv{i}_{j}.bias"] = (k, size, size, c), (k,)
            c = k
    features = (input_size // 32) ** 2 * c
    for name, (fan_in, out) in {
        "fc6": (features, fc_width),
        "fc7": (fc_width, fc_width),
        "fc8": (fc_width, num_classes),
    }.items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, fan_in), (out,)
    return shapes


def random_parameters(shapes, rng, dtype=np.float32):
    """He-scaled normal weights (the signal keeps its size through the depth) and small biases."""
    parameters = {}
    for name, shape in shapes.items():
        fan_in = np.prod(shape[1:])
        deviation = (2 / fan_in) ** 0.5 if name.endswith("weight") else 0.1
        parameters[name] = (rng.standard_normal(shape) * deviation).astype(dtype)
    return parameters


def forward(config, parameters, x, masks=None, ceil_mode=False, until=None):
    """x (N, H, W, C) -> {name: map} for every layer, "pool*.index" beside the pools.

    masks: {"drop6": (N, width), "drop7": ...} as `dropout.mask` makes, or None for inference.
    """
    maps, h = {}, x
    for kind, name in layers(config):
        w, b = parameters.get(f"{name}.weight"), parameters.get(f"{name}.bias")
        if kind == "conv":
            h = conv2d.forward(h, w, b)
        elif kind == "relu":
            h = relu.forward(h)
        elif kind == "lrn":
            h = lrn.forward(h)
        elif kind == "pool":
            h, maps[f"{name}.index"] = max_pool2d.forward(h, ceil_mode)
        elif kind == "linear":
            h = linear.forward(h.reshape(len(h), -1), w, b)
        elif kind == "dropout":
            h = h if masks is None else (h * masks[name]).astype(h.dtype)
        else:
            h = softmax.forward(h)
        maps[name] = h
        if name == until:
            break
    return maps


def backward(config, parameters, x, maps, upstream, masks=None):
    """upstream {layer: gradient of the loss with respect to its map} (not "prob") -> {parameter: gradient},
    dx."""
    order = layers(config)[:-1]
    gradients, d = {}, None
    for position in reversed(range(len(order))):
        kind, name = order[position]
        before = maps[order[position - 1][1]] if position else x
        if name in upstream:
            d = upstream[name] if d is None else d + upstream[name]
        if d is None:
            continue
        w = parameters.get(f"{name}.weight")
        if kind == "conv":
            gradients[f"{name}.weight"], gradients[f"{name}.bias"] = conv2d.backward_weight(
                d, before, w.shape[1]
            )
            d = conv2d.backward_input(d, w)
        elif kind == "relu":
            d = relu.backward(d, maps[name])
        elif kind == "lrn":
            d = lrn.backward(d, before)
        elif kind == "pool":
            d = max_pool2d.backward(d, maps[f"{name}.index"], before.shape)
        elif kind == "linear":
            flat = before.reshape(len(before), -1)
            gradients[f"{name}.weight"], gradients[f"{name}.bias"] = linear.backward_weight(d, flat)
            d = linear.backward_input(d, w).reshape(before.shape)
        elif kind == "dropout":
            d = d if masks is None else (d * masks[name]).astype(d.dtype)
    return gradients, d


def dense(config, parameters, x, input_size, ceil_mode=False):
    """The class-score map (N, h, w, classes): fc6..fc8 slid over pool5 of the whole image (paper, section
    3.2)."""
    features = forward(config, parameters, x, ceil_mode=ceil_mode, until="pool5")["pool5"]
    side = input_size // 32
    n, height, width, _ = features.shape
    scores = np.zeros((n, height - side + 1, width - side + 1, len(parameters["fc8.bias"])), x.dtype)
    for i in range(scores.shape[1]):
        for j in range(scores.shape[2]):
            h = features[:, i : i + side, j : j + side].reshape(n, -1)
            for name in ("fc6", "fc7"):
                h = relu.forward(linear.forward(h, parameters[f"{name}.weight"], parameters[f"{name}.bias"]))
            scores[:, i, j] = linear.forward(h, parameters["fc8.weight"], parameters["fc8.bias"])
    return scores
