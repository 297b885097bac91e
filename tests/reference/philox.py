"""Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11).

Key: the seed's low and high word. Counter: block, purpose, the row's low and high word. Block b gives words
4b .. 4b + 3.
"""

import math

import numpy as np

MASK = 0xFFFFFFFF


def rounds(counter, key, count=10):
    """Four counter words and two key words -> four words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(count):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            (product1 >> 32) ^ c1 ^ k0,
            product1 & MASK,
            (product0 >> 32) ^ c3 ^ k1,
            product0 & MASK,
        )
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def words(seed, row, purpose, count):
    """The first count words of (seed, row, purpose); seed and row as 64-bit patterns."""
    seed, row = seed & (1 << 64) - 1, row & (1 << 64) - 1
    out = []
    for block in range((count + 3) // 4):
        out += rounds((block, purpose, row & MASK, row >> 32), (seed & MASK, seed >> 32))
    return out[:count]


def bits(seed, rows, purpose, count):
    """(R, count) uint32."""
    return np.array([words(seed, int(row), purpose, count) for row in rows], np.uint32).reshape(
        len(rows), count
    )


def uniform(word):
    """[0, 1) on a grid of 2^-24."""
    return (word >> 8) * 2.0**-24


def normal_pair(word0, word1):
    """Box-Muller: two words -> two independent normal numbers.

    The radius is made from u = (word0 / 256 + 1) 2^-24 in (0, 1], the angle is word1 2^-32 turns.
    """
    radius = math.sqrt(-2 * math.log(((word0 >> 8) + 1) * 2.0**-24))
    angle = 2 * math.pi * word1 * 2.0**-32
    return radius * math.cos(angle), radius * math.sin(angle)
