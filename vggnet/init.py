"""First weights of a network (paper, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Literal, get_args

from . import _C
from .rng import Purpose

Init = Literal["paper", "paper-variance", "xavier", "he"]

INITS: tuple[str, ...] = get_args(Init)


def initialise(
    parameters: Mapping[str, _C.Tensor], init: str, seed: int, *, only: Collection[str] | None = None
) -> None:
    """Fill weights with random numbers and biases with zeros, in place.

    Parameters
    ----------
    parameters : mapping of layer names + ".weight" or ".bias" to Tensor
        Weights (K, R, S, C) or (out, in).
    init : "paper" | "paper-variance" | "xavier" | "he"
        - "paper": N(0, deviation 0.01). The paper prints "variance 10^-2"; the nets of its time were started with
          deviation 0.01, which is what trains, so this is what the name means here.
        - "paper-variance": N(0, variance 0.01), the text as printed.
        - "xavier": uniform within sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010), which the authors later found
          to make pre-training unnecessary.
        - "he": N(0, 2 / fan_in) (He et al. 2015).
    seed : int
        Numbers depend on the seed and the position of the layer only.
    only : collection of str, optional
        Parameters to fill; the others stay as they are.
    """
    if init not in INITS:
        raise ValueError(f"init is {init!r}; expected one of {', '.join(map(repr, INITS))}")
    weights = [name for name in parameters if name.endswith(".weight")]
    for number, name in enumerate(weights):
        if only is not None and name not in only:
            continue
        w = parameters[name]
        outputs, *window, inputs = w.shape
        area = math.prod(window)
        purpose = Purpose.INIT + number
        if init == "xavier":
            bound = math.sqrt(6.0 / (area * inputs + area * outputs))
            _C.random_uniform_(w, bound, seed, purpose)
        else:
            deviation = {"paper": 0.01, "paper-variance": 0.1, "he": math.sqrt(2.0 / (area * inputs))}[init]
            _C.random_normal_(w, deviation, seed, purpose)
    for name, tensor in parameters.items():
        if name.endswith(".bias") and (only is None or name in only):
            tensor.copy_(_C.zeros(tensor.shape, device=tensor.device))
