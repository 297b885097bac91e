"""Files of other programs: weights of VGG nets are read, and written for others.

`vggnet.load` reads them all. What each format holds and in which order is on the page docs/weights.md.

>>> from vggnet import convert
>>> convert.format_of("VGG_ILSVRC_16_layers.caffemodel")
'caffe'
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .._C import Tensor, WeightsError
from ..checkpoint import describe_tensors, not_weights, restore_tensors, verify_tensors
from . import caffe, keras, matconvnet, onnx, torchvision
from .layouts import Array, Foreign, check_finite, recognise

if TYPE_CHECKING:
    from ..models import VGG

__all__ = ["FORMATS", "Format", "format_of", "open_model", "verify", "write"]


@dataclass(frozen=True)
class Format:
    """A program's files.

    Parameters
    ----------
    suffixes : tuple of str
        Of its files, the one to write first.
    read : callable, optional
        From a path to what the file tells; raises WeightsError for a damaged file.
    write : callable, optional
        From a model and a path to files.
    """

    suffixes: tuple[str, ...]
    read: Callable[[Path], Foreign] | None = None
    write: Callable[[VGG, Path], None] | None = None


#: Overwrites parameters by name with those of a file, but for the names in its second argument.
Copy: TypeAlias = Callable[[Mapping[str, Tensor], Collection[str]], None]

OURS = "vggnet"
SCORE_TOLERANCE = 1e-4  # of the largest score, between runtimes that sum in other orders

#: By name; the first that has a suffix is meant by it.
FORMATS: dict[str, Format] = {
    OURS: Format((".safetensors",), write=lambda model, path: model.save(path)),
    "torchvision": Format((".pth", ".pt", ".safetensors"), torchvision.read, torchvision.write),
    "caffe": Format((".caffemodel",), caffe.read, caffe.write),
    "keras": Format((".h5", ".hdf5", ".keras"), keras.read),
    "matconvnet": Format((".mat",), matconvnet.read),
    "onnx": Format((".onnx",), onnx.read, onnx.write),
}


def format_of(path: str | os.PathLike[str]) -> str:
    """The format that a file's suffix says; ours when it says nothing."""
    suffix = Path(path).suffix.lower()
    return next((name for name, format in FORMATS.items() if suffix in format.suffixes), OURS)


def open_model(
    path: str | os.PathLike[str], *, config: str | None = None, format: str | None = None
) -> tuple[dict[str, Any], Copy]:
    """Open a file of weights, ours or another program's.

    Parameters
    ----------
    path : str or os.PathLike
    config : str, optional
        The net that it must hold; A-LRN in files that don't tell it from A.
    format : str, optional
        A name of `FORMATS`; by default by the suffix.

    Returns
    -------
    arguments : dict
        Of `VGG`, but for device and weight_dtype.
    copy : callable
        Overwrites the parameters of a model of these arguments with those of the file, but for the names in its second
        argument.

    Raises
    ------
    WeightsError
        When the file is damaged, or holds something else.
    FileNotFoundError
    ImportError
        When the format needs a package that is not installed; the message names the extra.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    name = format_of(path) if format is None else format
    if name == OURS and format is None:  # torchvision's .safetensors has another program's names
        names, metadata = describe_tensors(path)
        if metadata.get("format") == torchvision.FORMAT or any(n.startswith("features.") for n in names):
            name = "torchvision"
    read = _format(name).read
    if name == OURS:
        return _open_ours(path, config)
    if read is None:
        raise WeightsError(f"{path}: {name} files are only written, not read")
    try:
        if path.stat().st_size == 0:
            raise WeightsError("the file is empty; get or make it again")
        foreign = read(path)
        arguments = recognise(foreign.arrays, config=config, lrn=foreign.lrn)
        arrays = _folded(foreign, arguments["in_channels"])
        for parameter, array in arrays.items():
            check_finite(parameter, array)
    except WeightsError as error:
        reason = not_weights(path) or str(error).removeprefix(f"{path}: ")
        raise WeightsError(f"{path}: {reason}") from error
    arguments |= {"pool_rounding": foreign.pool_rounding, "classes": foreign.classes}
    if foreign.mean is not None:
        arguments["mean"] = foreign.mean
    return arguments, partial(_copy, arrays)


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise ValueError(f"format is {name!r}; expected one of {', '.join(map(repr, FORMATS))}")
    return FORMATS[name]


def _open_ours(path: Path, config: str | None) -> tuple[dict[str, Any], Copy]:
    from ..models import FORMAT

    metadata = verify_tensors(path)
    if metadata.get("format") != FORMAT or "model" not in metadata:
        raise WeightsError(f"{path}: not a model file of vggnet (format {metadata.get('format')!r})")
    try:
        arguments = dict(json.loads(metadata["model"]))
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path}: its description is no description of a model: {error}") from error
    if config not in (None, arguments.get("config")):
        raise WeightsError(f"{path}: holds net {arguments.get('config')}; expected {config}, as config says")
    return arguments, partial(restore_tensors, path)


def _folded(foreign: Foreign, channels: int) -> dict[str, Array]:
    """The arrays for pixels that are not scaled.

    The program computes conv1_1 from (pixel - mean) * scale, padded with zeros, so with pixels of the mean: scaled weights give
    the same from pixel - mean, at the border too.
    """
    if foreign.scale is None:
        return foreign.arrays
    scale = np.array(foreign.scale)
    if scale.size not in (1, channels) or not np.all(np.isfinite(scale)):
        raise WeightsError(
            f"scales pixels by {foreign.scale}; expected one number, or {channels}, one a channel"
        )
    with np.errstate(all="ignore"):  # what overflows is found as an infinity
        weight = (foreign.arrays["conv1_1.weight"] * scale).astype(np.float32)
    return {**foreign.arrays, "conv1_1.weight": weight}


def _copy(arrays: Mapping[str, Array], tensors: Mapping[str, Tensor], leave: Collection[str] = ()) -> None:
    for name, tensor in tensors.items():
        if name not in leave:
            tensor.copy_(arrays[name].reshape(tensor.shape))


def write(model: VGG, path: str | os.PathLike[str], *, format: str | None = None) -> None:
    """Write a model for another program, whole or not at all.

    Parameters
    ----------
    model : VGG
    path : str or os.PathLike
        Caffe's .prototxt is written beside it.
    format : str, optional
        A name of `FORMATS`; by default by the suffix.

    Raises
    ------
    ValueError
        When the format can't hold the model, or is only read.
    OSError
        When a file cannot be written.

    Examples
    --------
    >>> import tempfile, vggnet as vgg
    >>> from vggnet import convert
    >>> model = vgg.VGG("A", num_classes=10, input_size=32, fc_width=16)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     convert.write(model, f"{directory}/A.caffemodel")
    """
    name = format_of(path) if format is None else format
    write_format = _format(name).write
    if write_format is None:
        written = ", ".join(known for known, format in FORMATS.items() if format.write)
        raise ValueError(f"{name} files are only read, not written; vggnet writes {written}")
    if model.weight_dtype != "float32":
        raise ValueError(
            f"this model has weight_dtype {model.weight_dtype!r}, a copy rounded for inference; write the "
            f"model as it was loaded with weight_dtype='float32'"
        )
    write_format(model, Path(path))


def verify(model: VGG, path: str | os.PathLike[str], *, format: str | None = None) -> dict[str, Any]:
    """Read a file that was written back, and compare it with the model.

    All weights must be equal bit for bit, and the class scores of a random image close: of the model that was read, and for
    ONNX those of onnxruntime, if it is installed, which shares nothing with this package.

    Parameters
    ----------
    model : VGG
    path, format :
        As for `write`.

    Returns
    -------
    dict
        "parameters", how many were compared; "scores", the largest difference of a class score; "largest", the largest score;
        "runtime", who computed the scores: "vggnet" or "onnxruntime".

    Raises
    ------
    WeightsError
        When something differs.
    """
    from ..models import load

    name = format_of(path) if format is None else format
    back = load(path, config=model.config, format=name, device=model.device, precision=model.precision)
    for parameter, tensor in model.parameters.items():
        if not np.array_equal(tensor.numpy(), back.parameters[parameter].numpy()):
            raise WeightsError(f"{path}: {parameter} is not what the model has")
    for field in ("pool_rounding", "classes"):
        ours, theirs = getattr(model, field), getattr(back, field)
        if ours != theirs and theirs is not None:
            raise WeightsError(f"{path}: {field} is {theirs!r}; the model has {ours!r}")
    side = model.input_size
    image = np.random.default_rng(0).integers(0, 256, (1, side, side, model.in_channels), dtype=np.uint8)
    expected = model.forward(model.preprocessing.apply(image)).numpy()
    runtime, scores = "vggnet", back.forward(back.preprocessing.apply(image)).numpy()
    if name == "onnx" and importlib.util.find_spec("onnxruntime") is not None:
        runtime, scores = "onnxruntime", onnx.run(Path(path), image)
    difference, largest = float(np.abs(scores - expected).max()), float(np.abs(expected).max())
    if not difference <= SCORE_TOLERANCE * largest:
        raise WeightsError(
            f"{path}: class scores of a random image by {runtime} differ by {difference:.3g}, the largest is {largest:.3g}"
        )
    return {"parameters": model.num_parameters, "scores": difference, "largest": largest, "runtime": runtime}
