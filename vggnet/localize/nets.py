"""A net that predicts boxes, made of one that knows classes (paper, appendix A)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..init import INITS, initialise
from ..models import HEADS, VGG

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .._C import Tensor

BOX_HEADS = HEADS[1:]


def from_classifier(classifier: VGG, head: str = "PCR", *, init: str = "paper", seed: int = 0) -> VGG:
    """A net that predicts boxes, with all weights of a classification net but the last layer's, which are random.

    Parameters
    ----------
    classifier : VGG
        Left as it is.
    head : "PCR" | "SCR"
        Per-class regression: a box for each class, 4 x classes outputs. Single-class regression: one box for all, 4 outputs.
        The paper found PCR to be better.
    init : "paper" | "paper-variance" | "xavier" | "he"
        Of fc8's weights, see `vggnet.init.initialise`.
    seed : int
        Of fc8's weights.

    Returns
    -------
    VGG
        Its `save` keeps the head; `vggnet.load` brings it back.

    Raises
    ------
    ValueError
        If the net predicts boxes already, or for an unknown head or init.

    Examples
    --------
    >>> net = from_classifier(VGG("A", num_classes=10, input_size=32, fc_width=16))
    >>> net.head, net.parameters["fc8.weight"].shape
    ('PCR', (40, 16))
    """
    classifier.expect_classes("from_classifier")
    if head not in BOX_HEADS:
        raise ValueError(f'from_classifier: head is {head!r}; expected "PCR" or "SCR"')
    if init not in INITS:
        raise ValueError(f"from_classifier: init is {init!r}; expected one of {', '.join(map(repr, INITS))}")
    net = VGG(**classifier.to_dict() | {"head": head, "seed": seed}, init=None, device=classifier.device)
    last: Mapping[str, Tensor] = {name: p for name, p in net.parameters.items() if name.startswith("fc8.")}
    for name in net.parameters.keys() - last.keys():
        net.parameters[name].copy_(classifier.parameters[name])
    initialise(last, init, seed)
    return net
