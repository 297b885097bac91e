"""Caffe's rule, which the paper used (section 3.1): v = momentum v + lr (g + weight_decay p); p -= v."""


def step(param, grad, velocity, lr, momentum=0.9, weight_decay=5e-4):
    """-> the new param and velocity."""
    velocity = momentum * velocity + lr * (grad + weight_decay * param)
    return param - velocity, velocity
