"""Recipes that were tried out, beside the paper's (`Recipe.paper`)."""

from __future__ import annotations

from typing import Any

from .train import Recipe


def quickstart() -> tuple[dict[str, Any], Recipe]:
    """Net and recipe for the bundled sample: 3,600 gray images of clothes to train on, in about two minutes.

    Returns
    -------
    (arguments, recipe)
        Arguments of `vggnet.VGG`, without the classes and the mean, which are the data's; and the recipe.
    """
    arguments = {
        "config": "A",
        "input_size": 32,
        "in_channels": 1,
        "fc_width": 512,
        "dropout": 0.5,
        "init": "xavier",
    }
    recipe = Recipe(batch=32, lr=0.01, lr_drops=1, plateau_patience=1, epochs=5, scale=32, rgb_shift=None)
    return arguments, recipe
