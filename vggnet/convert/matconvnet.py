"""MatConvNet's files: imagenet-vgg-verydeep-16.mat, -19.mat and the like are read.

A net is a cell array of layers: structs with a type, a name, and the weights as a cell {filters, biases} or, in files of older
versions, as fields of these names. Filters are (rows, columns, inputs, outputs), those of fully connected layers too; the
colours are RGB; LRN's alpha multiplies the plain sum, as here; pooling rounds down unless it is padded at the end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from .._C import WeightsError
from . import mat5
from .layouts import MATCONVNET, Array, Foreign

LRN = (5, 2, 1e-4, 0.75)  # window, k, alpha, beta: of the net A-LRN


def read(path: Path) -> Foreign:
    """The net in a .mat file."""
    variables = mat5.read(path)
    net = variables.get("net", variables)
    if not isinstance(net, dict) or "layers" not in net:
        raise WeightsError(f"has the variables {', '.join(variables)}; expected a net of MatConvNet: layers")
    try:
        return _net(net)
    except WeightsError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"its layers are not those of MatConvNet, or damaged: {error!r}") from error


def _net(net: dict[str, Any]) -> Foreign:
    meta = net.get("meta", net)  # older versions have no meta
    parameters: dict[str, Array] = {}
    lrn = False
    rounding: Literal["floor", "ceil"] = "floor"
    for layer in net["layers"]:
        kind, name = layer["type"], layer.get("name")
        if kind == "conv":
            filters, biases = layer["weights"] if "weights" in layer else (layer["filters"], layer["biases"])
            parameters[f"{name}.weight"] = filters.reshape(filters.shape + (1,) * (4 - filters.ndim))
            parameters[f"{name}.bias"] = biases.reshape(-1)  # (1, outputs) or (outputs, 1)
        elif kind in ("normalize", "lrn"):
            window = layer["param"].reshape(-1)
            if window.shape != (4,) or not np.allclose(window, LRN, rtol=1e-6, atol=0):
                raise WeightsError(f"its response normalisation {name} has {window}; expected {LRN}")
            lrn = True
        elif kind == "pool" and layer["pad"].size == 4 and layer["pad"].reshape(-1)[[1, 3]].all():
            rounding = "ceil"  # [top bottom left right] with one more row and column, as Caffe's nets have
    return Foreign(
        MATCONVNET.ours(parameters), lrn=lrn, mean=_mean(meta), pool_rounding=rounding, classes=_classes(meta)
    )


def _mean(meta: dict[str, Any]) -> tuple[float, ...] | None:
    """The mean colour: three numbers, or a mean image (rows, columns, channels)."""
    image = meta.get("normalization", {}).get("averageImage", np.empty(0))
    if image.ndim == 3:
        image = image.astype(np.float64).mean((0, 1))
    return tuple(map(float, image.reshape(-1))) or None


def _classes(meta: dict[str, Any]) -> list[str] | None:
    names = meta.get("classes", {}).get("description")
    return None if names is None else [str(name) for name in names]
