"""Which layers learn, and how fast: `Recipe.freeze` and `Recipe.lr_multipliers` on the layers of a model."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..models import VGG
    from ..recipes import Recipe


def learning_layers(model: VGG, recipe: Recipe) -> dict[str, float]:
    """The layers that are trained, in order, and what the lr is multiplied by in each.

    Raises
    ------
    ValueError
        When a pattern names no layer with weights, when two multipliers name the same layer, or when all is frozen.
    """
    layers = [layer.name for layer in model.layers if layer.parameter_shapes]

    def named(field: str, pattern: str) -> list[str]:
        found = [name for name in layers if fnmatchcase(name, pattern)]
        if not found:
            raise ValueError(
                f"recipe.{field} names {pattern!r}; expected layers with weights, of {model.config}: "
                f"{', '.join(layers)}, or a pattern such as 'conv*'"
            )
        return found

    frozen = {name for pattern in recipe.freeze for name in named("freeze", pattern)}
    multipliers: dict[str, float] = {}
    for pattern, value in recipe.lr_multipliers.items():
        for name in named("lr_multipliers", pattern):
            if name in multipliers:
                raise ValueError(f"recipe.lr_multipliers names {name} twice, the second time as {pattern!r}")
            multipliers[name] = value
    learning = {name: multipliers.get(name, 1.0) for name in layers if name not in frozen}
    if not learning:
        raise ValueError(f"recipe.freeze is {recipe.freeze}: no layer would learn")
    return learning
