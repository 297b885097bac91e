"""Keras' files: the weights of keras.applications' VGG16 and VGG19 in .h5, .weights.h5 and .keras are read.

Keras' nets see BGR pixels minus the authors' mean. Its files are HDF5 in three layouts: `save_weights` of Keras 1 and 2 has a
group a layer with the names of its arrays, `save` has these groups in "model_weights", and `save_weights` of Keras 3 has
numbered arrays in "vars", with the layer's name beside them. A .keras file is a zip archive with a file of the third kind.
"""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from .._C import WeightsError
from .layouts import KERAS, KERAS_NAMES, Array, Foreign, optional_package


def read(path: Path) -> Foreign:
    """The net in a file of Keras."""
    h5py = optional_package("h5py", "keras", "Keras' files")
    try:
        with path.open("rb") as file, h5py.File(_hdf5(path, file), "r") as root:
            arrays = _arrays(h5py, root, path.stat().st_size)
    except WeightsError:
        raise
    except Exception as error:  # HDF5 raises whatever the damage leads it to
        raise WeightsError(f"not a readable file of Keras (HDF5), or damaged: {error}") from error
    parameters: dict[str, Array] = {}
    for layer, weights in arrays.items():
        if layer in KERAS_NAMES:
            parameters |= {
                f"{KERAS_NAMES[layer]}.{part}": a
                for part, a in zip(("weight", "bias"), weights, strict=False)
            }
        elif weights:
            raise WeightsError(
                f"has a layer {layer} with weights; expected those of keras.applications' VGG16 or VGG19: "
                f"block1_conv1 to block5_conv3 or block5_conv4, fc1, fc2 and predictions"
            )
    first = parameters.get("conv1_1.weight")
    if first is not None and first.shape[2:] == (3, 3) and first.shape[:2] != (3, 3):
        raise WeightsError(
            "has the order of axes of Theano (th_kernels); expected that of TensorFlow (tf_kernels)"
        )
    return Foreign(KERAS.ours(parameters))


def _hdf5(path: Path, file: BinaryIO) -> BinaryIO:
    """The HDF5 file: `file` itself, or what is in a .keras archive."""
    if file.read(4) == b"PK\x03\x04":
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo("model.weights.h5")
            if info.compress_type != zipfile.ZIP_STORED:
                raise WeightsError("its weights are compressed, which Keras does not do")
            return BytesIO(archive.read(info))
    file.seek(0)
    return file


def _arrays(h5py: Any, root: Any, limit: int) -> dict[str, list[Array]]:
    """Arrays by layer, in the order in which Keras writes them: kernel, bias."""
    arrays: dict[str, list[Array]] = {}

    def visit(name: str, group: Any) -> None:
        if not isinstance(group, h5py.Group):
            return
        if "weight_names" in group.attrs:
            layer = name.rpartition("/")[2]
            names = [n.decode() if isinstance(n, bytes) else str(n) for n in group.attrs["weight_names"]]
        elif name.rpartition("/")[2] == "vars":
            layer = str(group.attrs.get("name", f"/{name}".split("/")[-2]))
            names = sorted(group, key=int)
        else:
            return
        arrays[layer] = [_array(h5py, root, group.get(name), f"{layer}'s {name}", limit) for name in names]

    root.visititems(visit)
    return arrays


def _array(h5py: Any, root: Any, dataset: Any, name: str, limit: int) -> Array:
    """One array of the file itself: HDF5 could also name other files, or sizes that nothing fills."""
    inside = (
        isinstance(dataset, h5py.Dataset)
        and dataset.file.id == root.file.id
        and dataset.external is None
        and not dataset.is_virtual
        and dataset.nbytes <= limit
    )
    if not inside or dataset.dtype.kind != "f":
        raise WeightsError(f"{name} is no array of floats in this file: damaged, or none of Keras")
    array: Array = dataset[()]
    return array
