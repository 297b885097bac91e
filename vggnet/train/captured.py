"""A replica's passes as CUDA graphs: two launches instead of about a hundred (docs/cuda.md)."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from .. import _C, cuda
from ..parallel import Replica
from ..rng import Rng


class CapturedPass:
    """Forward and backward pass of a replica over its part of a whole batch, captured.

    Made when `x` holds images, since the passes run once before they are captured. It keeps the memory of a pass.

    Parameters
    ----------
    replica : Replica
        Its model's weights are read, as they are at each replay, and its `grads` are written.
    x : (N, side, side, C) float32 Tensor
        The input, of each replay again.
    seed : int
        Of dropout.
    layers : collection of str
        Those that learn.
    """

    def __init__(self, replica: Replica, x: _C.Tensor, seed: int, layers: Collection[str]) -> None:
        model, grads = replica.model, replica.grads
        self._rows = _C.tensor(np.zeros(x.shape[0], dtype=np.int64), device=model.device)
        rng = Rng(seed, self._rows)
        self._forward = cuda.Graph(lambda: model.run(x, training=True, rng=rng), model.device)
        run = self._forward()
        self._logits = run.logits
        self._gradient = _C.zeros(self._logits.shape, device=model.device)
        self._backward = cuda.Graph(
            lambda: run.backward({"fc8": self._gradient}, weights=layers, grads=grads), model.device
        )

    def forward(self, rows: npt.NDArray[np.int64]) -> _C.Tensor:
        """The map of fc8, (N, outputs), of what `x` holds; `rows`, (N,), are the images' counters (`rng.rows_of`)."""
        self._rows.copy_(rows)
        self._forward()
        return self._logits

    def backward(self, gradient: _C.Tensor) -> None:
        """Compute the replica's gradients, given that of fc8, (N, outputs)."""
        self._gradient.copy_(gradient)
        self._backward()
