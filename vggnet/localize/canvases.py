"""Images with known boxes, made of those of another data set: to try localisation without ImageNet."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .. import rng
from ..data import Dataset
from ..data.base import Boxes
from ..preprocess import Pixels, rescale
from ..rng import Purpose


class Canvases:
    """Each image of a data set, at a random size and place on a black canvas: real images whose boxes are known.

    Parameters
    ----------
    items : Dataset
        Bright things on black, as Fashion-MNIST's.
    size : (int, int)
        Height and width of the canvas, in pixels.
    sides : (int, int)
        The smallest side of an item on the canvas, in pixels, is drawn from [lowest, highest]; an item must fit the canvas.
    seed : int
        Sizes and places are functions of (seed, index).

    Raises
    ------
    ValueError
        For sides that are no range, or larger than the canvas.

    Examples
    --------
    >>> from vggnet import data
    >>> canvases = Canvases(data.sample(), seed=1)
    >>> canvases.image(0).shape, canvases.boxes(0).shape
    ((64, 64, 1), (1, 4))
    """

    DARK = 32  # grey levels below count as background

    def __init__(
        self,
        items: Dataset,
        size: tuple[int, int] = (64, 64),
        sides: tuple[int, int] = (28, 56),
        seed: int = 0,
    ) -> None:
        if not 1 <= sides[0] <= sides[1] <= min(size):
            raise ValueError(
                f"Canvases: sides is {sides}; expected 1 <= lowest <= highest <= {min(size)}, to fit size"
            )
        self.items, self.size, self.sides, self.seed = items, size, sides, seed

    @property
    def classes(self) -> list[str]:
        """Those of the items."""
        return self.items.classes

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Those of the items, (N,)."""
        return self.items.labels

    def __len__(self) -> int:
        return len(self.items)

    def name(self, i: int) -> str:
        """As in "Fashion-MNIST train 17 on a canvas"."""
        return f"{self.items.name(i)} on a canvas"

    def image(self, i: int) -> Pixels:
        """Canvas `i`, (*size, C) uint8."""
        item, left, top = self._placed(i)
        canvas = np.zeros((*self.size, item.shape[2]), np.uint8)
        canvas[top : top + item.shape[0], left : left + item.shape[1]] = item
        return canvas

    def boxes(self, i: int) -> Boxes:
        """The smallest box around all that is not dark, (1, 4): left, top, right, bottom, as edges."""
        item, left, top = self._placed(i)
        rows, columns = (np.flatnonzero((item >= self.DARK).any(axis=(axis, 2))) for axis in (1, 0))
        if not len(rows):
            return np.zeros((0, 4))
        return np.array(
            [[left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1]], np.float64
        )

    def _placed(self, i: int) -> tuple[Pixels, int, int]:
        """The item at its size, and where it begins: left, top."""
        low, high = self.sides
        size, down, right = rng.uniform(self.seed, rng.rows_of(0, [i]), Purpose.CANVAS, 3)[0]
        item = rescale(self.items.image(i), low + int(size * (high - low + 1)))
        room = np.subtract(self.size, item.shape[:2]) + 1
        if room.min() < 1:
            raise ValueError(
                f"{self.items.name(i)} is {item.shape[0]} x {item.shape[1]}, larger than the canvas {self.size}"
            )
        return item, int(right * room[1]), int(down * room[0])
