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
from .layouts import MATCONVNET, Array, Foreign, optional_package

LRN = (5, 2, 1e-4, 0.75)  # window, k, alpha, beta: of the net A-LRN


def read(path: Path) -> Foreign:
    """The net in a .mat file."""
    io = optional_package("scipy.io", "mat", "MatConvNet's files")
    try:
        return _net(io.loadmat(str(path), appendmat=False))
    except WeightsError:
        raise
    except NotImplementedError as error:  # of MATLAB 7.3, which is HDF5
        raise WeightsError(f"can't be read: {error}. In MATLAB, save it with the option '-v7'") from error
    except Exception as error:  # SciPy raises whatever the damage leads it to
        raise WeightsError(f"not a readable file of MATLAB, or damaged: {error}") from error


def _net(variables: dict[str, Any]) -> Foreign:
    net = _fields(variables["net"]) if "net" in variables else variables
    if "layers" not in net:
        raise WeightsError(
            f"has the variables {', '.join(n for n in variables if n[0] != '_')}; expected a net of MatConvNet: layers"
        )
    meta = _fields(net["meta"]) if "meta" in net else net  # older versions have no meta
    parameters: dict[str, Array] = {}
    lrn = False
    rounding: Literal["floor", "ceil"] = "floor"
    for cell in net["layers"].flat:
        layer = _fields(cell)
        kind, name = _text(layer["type"]), _text(layer.get("name", np.empty(0, "U1")))
        if kind == "conv":
            filters, biases = (
                layer["weights"].flat if "weights" in layer else (layer["filters"], layer["biases"])
            )
            parameters[f"{name}.weight"] = filters.reshape(filters.shape + (1,) * (4 - filters.ndim))
            parameters[f"{name}.bias"] = biases.reshape(-1)  # (1, outputs) or (outputs, 1)
        elif kind in ("normalize", "lrn"):
            if not np.allclose(layer["param"].reshape(-1), LRN, rtol=1e-6, atol=0):
                raise WeightsError(f"its response normalisation {name} has {layer['param']}; expected {LRN}")
            lrn = True
        elif kind == "pool" and layer["pad"].size == 4 and layer["pad"].reshape(-1)[[1, 3]].all():
            rounding = "ceil"  # [top bottom left right] with one more row and column, as Caffe's nets have
    return Foreign(
        MATCONVNET.ours(parameters), lrn=lrn, mean=_mean(meta), pool_rounding=rounding, classes=_classes(meta)
    )


def _fields(struct: Any) -> dict[str, Any]:
    """A 1 x 1 struct by field."""
    return {name: struct[name].flat[0] for name in struct.dtype.names}


def _text(value: Array) -> str:
    return str(value.flat[0]) if value.size else ""


def _mean(meta: dict[str, Any]) -> tuple[float, ...] | None:
    """The mean colour: of three numbers, or of a mean image (rows, columns, channels)."""
    if "normalization" not in meta:
        return None
    image = _fields(meta["normalization"]).get("averageImage", np.empty(0))
    if image.ndim == 3:
        image = image.astype(np.float64).mean((0, 1))
    return tuple(map(float, image.reshape(-1))) or None


def _classes(meta: dict[str, Any]) -> list[str] | None:
    if "classes" not in meta:
        return None
    names = _fields(meta["classes"]).get("description")
    return None if names is None else [_text(name) for name in names.flat]
