"""VGG networks the way the paper trained and evaluated them (Simonyan and Zisserman, ICLR 2015).

>>> import numpy as np
>>> import vggnet as vgg
>>> model = vgg.VGG("A", num_classes=10, input_size=32, in_channels=1, fc_width=64)
>>> model.forward(np.zeros((1, 32, 32, 1), np.float32)).shape
(1, 10)

Importing the package loads NumPy and nothing else; the modules `convert`, `data`, `evaluate`, `features`, `localize`,
`parallel` and `train` load on first use.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

from . import _C, cuda, ops
from ._C import (
    DeviceError,
    ImageError,
    Storage,
    Tensor,
    VggError,
    WeightsError,
    empty,
    from_dlpack,
    get_num_threads,
    memory_stats,
    set_num_threads,
    tensor,
    zeros,
)
from ._version import __version__
from .models import VGG, load
from .rng import Rng

__all__ = [
    "VGG",
    "DeviceError",
    "ImageError",
    "Rng",
    "Storage",
    "Tensor",
    "VggError",
    "WeightsError",
    "__version__",
    "build_info",
    "convert",
    "cuda",
    "data",
    "empty",
    "evaluate",
    "features",
    "from_dlpack",
    "get_num_threads",
    "load",
    "localize",
    "memory_stats",
    "ops",
    "parallel",
    "set_num_threads",
    "tensor",
    "train",
    "zeros",
]

logging.getLogger("vggnet").addHandler(logging.NullHandler())

_LAZY = ("convert", "data", "evaluate", "features", "localize", "parallel", "train")


def build_info() -> dict[str, Any]:
    """What this build is and what it found on this machine.

    Returns
    -------
    dict
        "version", "compiler", "isa" (in use; VGGNET_ISA caps it), "isa_available", "threads", "kernels" (names in use) and
        "cuda": {"built", "why_not"}, where asking opens the CUDA libraries.
    """
    return _C.build_info() | {"cuda": {"built": cuda.is_built(), "why_not": cuda.why_not()}}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
