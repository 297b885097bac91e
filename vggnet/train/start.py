"""First weights from a trained net (paper, section 3.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..models import VGG

# Weights that a deeper net takes from a trained A: "the first four convolutional layers and the last three
# fully-connected layers" (paper, section 3.1), by name.
FROM_A = ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8")


def start_from(model: VGG, trained: VGG) -> list[str]:
    """Copy weights of a trained net into a new one.

    Parameters
    ----------
    model : VGG
        Changed in place; its other layers keep their random weights.
    trained : VGG
        Of the same config: all layers are copied. Of another, usually "A": the layers that the paper took from it (section
        3.1), `FROM_A`.

    Returns
    -------
    list of str
        The layers copied: fc8 is left random when the numbers of classes differ.

    Raises
    ------
    ValueError
        When another of these layers has another shape; nothing has been copied then.
    """
    copied = []
    every = [layer.name for layer in model.layers if layer.parameter_shapes]
    for layer in every if model.config == trained.config else FROM_A:
        ours, theirs = (m.parameters[f"{layer}.weight"].shape for m in (model, trained))
        if ours == theirs:
            copied.append(layer)
        elif layer != "fc8":
            raise ValueError(
                f"start_from: {layer} has shape {ours}, that of the trained net {theirs}; expected "
                "nets of the same input_size, in_channels and fc_width"
            )
    for layer in copied:
        for name in (f"{layer}.weight", f"{layer}.bias"):
            model.parameters[name].copy_(trained.parameters[name])
    return copied
