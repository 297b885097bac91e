"""Soft-max and the multinomial logistic loss (paper, section 3.1), over the last axis."""

import numpy as np


def forward(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def cross_entropy(logits, labels, normalizer=None):
    """logits (N, C), labels (N,) -> loss, dlogits, both divided by normalizer (N where it is None)."""
    n = len(logits)
    normalizer = n if normalizer is None else normalizer
    top = logits.max(axis=-1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(axis=-1))
    loss = (log_sum - (logits - top)[np.arange(n), labels]).sum() / normalizer
    one_hot = np.eye(logits.shape[1])[labels]
    return loss, ((forward(logits) - one_hot) / normalizer).astype(logits.dtype)
