"""The time of a training step on several devices: a model, for predictions where they are missing (paper, section 3.3).

A replica computes forward, then backward from the last layer to the first. A bucket of gradients may be exchanged as soon as
backward has them; buckets take turns on the link; weights are updated when backward is over and their average is there::

    device   forward | backward fc8 fc7 fc6 conv5_3 ............ conv1_1 | exposed | update
    link                             [bucket 0][bucket 1     ][2][3]...[n]

What backward does not hide is *exposed*. Not in the model: stragglers, waiting for images, other traffic on the links.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Link:
    """What joins devices.

    Attributes
    ----------
    name : str
    bandwidth : float
        Bytes a second that a device, or a machine, sends and at the same time receives.
    latency : float
        Seconds of a message without content.
    source : str
        Where the figures are from.
    """

    name: str
    bandwidth: float
    latency: float
    source: str = ""


@dataclass(frozen=True)
class Level:
    """So many devices, or groups of devices, on links of one kind."""

    count: int
    link: Link


@dataclass(frozen=True)
class Layer:
    """One layer with weights: bytes of its gradients, and seconds of backward, to the weights and to the input."""

    name: str
    nbytes: int
    weight: float
    input: float


@dataclass(frozen=True)
class Work:
    """What one replica has to do in a step.

    Attributes
    ----------
    forward : float
        Seconds, with the loss.
    layers : tuple of Layer
        In backward's order, the last layer of the net first. Layers without weights count with the next one.
    update : float
        Seconds of the update of all weights.
    averaging : float
        Seconds for each byte that averaging takes from the device's own cores; 0 where other engines do it.
    """

    forward: float
    layers: tuple[Layer, ...]
    update: float
    averaging: float = 0.0

    @property
    def compute(self) -> float:
        """Seconds of forward and backward."""
        return self.forward + sum(layer.weight + layer.input for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Of all gradients."""
        return sum(layer.nbytes for layer in self.layers)

    def taking(self, compute: float) -> Work:
        """The same with forward and backward stretched to so many seconds together."""
        factor = compute / self.compute
        layers = tuple(replace(x, weight=factor * x.weight, input=factor * x.input) for x in self.layers)
        return replace(self, forward=factor * self.forward, layers=layers)


@dataclass(frozen=True)
class Bucket:
    """Layers that are averaged together: when their gradients are ready, when the exchange starts, both in seconds from the
    start of the step, and the seconds that it takes."""

    layers: tuple[str, ...]
    nbytes: int
    ready: float
    start: float
    seconds: float

    @property
    def end(self) -> float:
        """When the average is there."""
        return self.start + self.seconds


@dataclass(frozen=True)
class Timeline:
    """A step as the model sees it, in seconds; `exposed` is what averaging adds to `compute` and `update`."""

    compute: float
    update: float
    exposed: float
    buckets: tuple[Bucket, ...]

    @property
    def step(self) -> float:
        """The whole step."""
        return self.compute + self.update + self.exposed


def exchange(nbytes: float, levels: Sequence[Level]) -> float:
    """Seconds to average so many bytes: reduce-scatter and all-gather in a ring, on each level in turn.

    Each of n devices sends and receives 2 (n - 1) / n of the bytes, in 2 (n - 1) messages. The devices of a group have averaged
    their gradients, each a slice, before groups do the same with each other over the link that the group shares.

    Examples
    --------
    >>> exchange(1e9, [Level(4, Link("", bandwidth=1e9, latency=0.01))])
    1.56
    """
    return sum(
        2 * (level.count - 1) * (nbytes / level.count / level.link.bandwidth + level.link.latency)
        for level in levels
    )


def buckets_of(layers: Sequence[Layer], at_least: int) -> Iterator[tuple[Layer, ...]]:
    """Consecutive layers of so many bytes at least; the last may have less."""
    part: list[Layer] = []
    for layer in layers:
        part.append(layer)
        if sum(x.nbytes for x in part) >= at_least:
            yield tuple(part)
            part = []
    if part:
        yield tuple(part)


def timeline(
    work: Work, levels: Sequence[Level], *, bucket_bytes: int = 16 << 20, overlap: bool = True
) -> Timeline:
    """A step of one of the replicas that `levels` join.

    Parameters
    ----------
    work : Work
    levels : sequence of Level
        The innermost first. Their counts multiplied are the number of replicas; one replica has nothing to exchange.
    bucket_bytes : int
        See `buckets_of`.
    overlap : bool
        Exchange while backward goes on. Without it all is sent after backward.

    Examples
    --------
    One layer of 1 GB over 1 GB/s, two replicas; the gradient to the input hides half a second:

    >>> layer = Layer("fc8", 10**9, weight=1.0, input=0.5)
    >>> timeline(Work(1.0, (layer,), update=0.25), [Level(2, Link("", 1e9, 0.0))]).exposed
    0.5
    """
    if all(level.count == 1 for level in levels):
        return Timeline(work.compute, work.update, 0.0, ())
    now = work.forward
    buckets: list[Bucket] = []
    for part in buckets_of(work.layers, bucket_bytes):
        now += sum(x.weight + x.input for x in part[:-1]) + part[-1].weight
        nbytes = sum(x.nbytes for x in part)
        names = tuple(x.name for x in part)
        buckets.append(Bucket(names, nbytes, now, now, exchange(nbytes, levels)))
        now += work.averaging * nbytes + part[-1].input
    if not overlap:
        buckets = [replace(bucket, ready=now) for bucket in buckets]
    return _served(work, buckets, now)


def _served(work: Work, buckets: Sequence[Bucket], now: float) -> Timeline:
    """The buckets exchanged in turn, and their weights updated from `now` on, the end of backward."""
    free = 0.0
    found = []
    for bucket in buckets:
        found.append(replace(bucket, start=max(free, bucket.ready)))
        free = found[-1].end
    for bucket in found:
        now = max(now, bucket.end) + work.update * bucket.nbytes / work.nbytes
    return Timeline(work.compute, work.update, max(now - work.compute - work.update, 0.0), tuple(found))


def shares(
    work: Work, levels: Sequence[Level], *, bucket_bytes: int = 16 << 20
) -> dict[tuple[str, ...], float]:
    """What each bucket contributes to the exposed time, by its layers: seconds by which a step would be shorter if the exchange
    took none. They need not add up: while one bucket is on the link, others wait."""
    whole = timeline(work, levels, bucket_bytes=bucket_bytes)
    backward = work.compute + work.averaging * work.nbytes
    found = {}
    for bucket in whole.buckets:
        free = [replace(x, seconds=0.0) if x is bucket else x for x in whole.buckets]
        found[bucket.layers] = whole.exposed - _served(work, free, backward).exposed
    return found


def speedup(one: Timeline, many: Timeline, replicas: int, *, strong: bool) -> float:
    """Times as many images a second as one replica: `many` has the same batch in all (strong scaling), or for each replica."""
    return one.step / many.step * (1 if strong else replicas)


def fit_link(name: str, sent: Sequence[float], seconds: Sequence[float], source: str = "measured") -> Link:
    """The link of which ``seconds = latency + sent / bandwidth``, by least squares of relative deviations.

    Parameters
    ----------
    sent : sequence of float
        Bytes of each exchange of two replicas: the gradients' own bytes, since 2 (n - 1) / n is 1.
    seconds : sequence of float

    Examples
    --------
    >>> link = fit_link("", sent=[1e6, 1e8], seconds=[0.003, 0.102])
    >>> round(link.bandwidth / 1e9, 3), round(2e3 * link.latency, 3)
    (1.0, 2.0)
    """
    y = np.asarray(seconds, float)
    x = np.stack([np.ones_like(y), np.asarray(sent, float)], 1)
    (latency, inverse), *_ = np.linalg.lstsq(x / y[:, None], np.ones_like(y), rcond=None)
    return Link(name, 1 / float(inverse), max(float(latency), 0.0) / 2, source)
