"""Training on several devices, in one process or in many (paper, section 3.3): synchronous, with averaged gradients.

A *replica* is one device's copy of the model, with gradients, velocities and input of its own. The images of a batch are split
among the replicas, each computes the gradients of its part, and their mean, weighted by the numbers of images, updates every
replica: what one device would do with the whole batch, to rounding.
"""

from __future__ import annotations

from .world import Alone, Pending, World, world

__all__ = ["Alone", "Pending", "World", "world"]
