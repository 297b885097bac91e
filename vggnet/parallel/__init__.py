"""Training on several devices, in one process or in many (paper, section 3.3): synchronous, with averaged gradients.

A *replica* is one device's copy of the model, with gradients, velocities and input of its own. The images of a batch are split
among the replicas, each computes the gradients of its part, and their mean, weighted by the numbers of images, updates every
replica: what one device would do with the whole batch, to rounding.
"""

from __future__ import annotations

from .averaging import Averages, Engine, Meeting, Member
from .buckets import BUCKET_BYTES, plan_buckets
from .replicas import Ready, Replica, Replicas, check_devices
from .world import Alone, Pending, World, abort, world

__all__ = [
    "BUCKET_BYTES",
    "Alone",
    "Averages",
    "Engine",
    "Meeting",
    "Member",
    "Pending",
    "Ready",
    "Replica",
    "Replicas",
    "World",
    "abort",
    "check_devices",
    "plan_buckets",
    "world",
]
