"""Training (paper, section 3.1): a `Recipe` says how, `fit` does it, a `History` tells what happened.

A run is a function of the model's first weights, the data and the recipe: order, crops, mirrors, shifts and
dropout are keyed by (seed, epoch, image), so a run that was interrupted, killed, or given other threads ends
in the same weights, bit for bit.

What is learnt is a `Task`: by default `Classification`. The paper's chain of trainings is made by `plan_stages` and
`run_stages`.
"""

from __future__ import annotations

from ..history import History, Row
from ..recipes import Recipe
from .costs import Cost, stage_costs
from .saved import saved_run
from .stages import Stage, paper_stages, plan_stages, run_stages, saved_stages
from .start import FROM_A, start_from
from .task import Classification, Loss, Measure, Task
from .trainer import Callback, fit

__all__ = [
    "FROM_A",
    "Callback",
    "Classification",
    "Cost",
    "History",
    "Loss",
    "Measure",
    "Recipe",
    "Row",
    "Stage",
    "Task",
    "fit",
    "paper_stages",
    "plan_stages",
    "run_stages",
    "saved_run",
    "saved_stages",
    "stage_costs",
    "start_from",
]
