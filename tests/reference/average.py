"""Weighted mean over devices (paper, section 3.3)."""


def weighted_mean(arrays, weights=None):
    weights = [1.0] * len(arrays) if weights is None else weights
    return sum(weight * a for weight, a in zip(weights, arrays, strict=True)) / sum(weights)
