"""The paper's evaluation: dense, multi-crop, combined, scales, fusion of nets (paper, sections 3.2 and 4).

The same weights score two points worse with one centre crop than with the paper's protocol, so the protocol
is a value of its own here: :class:`Protocol` names every choice, and every :class:`Report` carries it in
full.

Orders of averaging (they are not interchangeable, a soft-max stands between them):

* dense: class scores are averaged over the positions of the map, then soft-max; then posteriors are averaged
  over image and mirror, then over scales.
* crops: soft-max of every crop, averaged over crops and mirrors, then over scales.
* combined: mean of the dense and the multi-crop posteriors.
* fusion: mean of the posteriors of several (model, protocol) pairs.

Sums are float64, each of these four stages ends rounded to float32: so ``fuse([dense, multi_crop])`` equals
"combined" bit for bit.
"""

from __future__ import annotations

from .cost import flops
from .dataset import Progress, compare, evaluate
from .passes import crops, grid_offsets, posteriors
from .presets import Preset, paper_rows, preset
from .protocol import KINDS, PAPER_SCALES, Protocol, resolve
from .report import Report, fuse, table, wrong

__all__ = [
    "KINDS",
    "PAPER_SCALES",
    "Preset",
    "Progress",
    "Protocol",
    "Report",
    "compare",
    "crops",
    "evaluate",
    "flops",
    "fuse",
    "grid_offsets",
    "paper_rows",
    "posteriors",
    "preset",
    "resolve",
    "table",
    "wrong",
]
