"""Sampling in float64, and the counter-based random numbers that drive it.

Philox4x32-10 (Salmon et al., SC 2011): ten keyed rounds on a 128-bit counter. The core's uniform number `index` of a
named stream uses key = seed and counter = (index, FNV-1a hash of the name), and keeps 53 bits of the first 64.
"""

import numpy as np


def philox4x32(counter, key):
    """Four 32-bit words from four words of counter and two of key."""
    x, key = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [(b >> 32) ^ x[1] ^ key[0], b & 0xFFFFFFFF, (a >> 32) ^ x[3] ^ key[1], a & 0xFFFFFFFF]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return x


def fnv1a(text):
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & (1 << 64) - 1
    return value


def uniform(seed, purpose, index):
    """A number in [0,1), a function of its arguments alone."""
    stream, low = fnv1a(purpose), 0xFFFFFFFF
    x = philox4x32([index & low, index >> 32, stream & low, stream >> 32], [seed & low, seed >> 32])
    return ((x[1] << 32 | x[0]) >> 11) * 2.0**-53


def distribution(logits, temperature=1.0, top_p=1.0, top_k=0):
    """Probabilities of all tokens: the likeliest until their sum passes top_p, of these top_k, p^(1/temperature)."""
    logits = np.asarray(logits, dtype=np.float64)
    p = np.exp(logits - logits.max())
    p /= p.sum()
    if temperature == 0:
        top_k, temperature = 1, 1.0
    order = np.argsort(-p, kind="stable")  # of equals, the lower id first
    if top_p < 1:
        passed = np.cumsum(p[order]) > top_p
        edge = p[order][np.argmax(passed)] if passed.any() else 0
        p = np.where(p < edge, 0, p)
    if top_k:
        p[order[top_k:]] = 0
    p = np.where(p > 0, p ** (1 / temperature), 0)
    return p / p.sum()


def choose(logits, u, **options):
    """The token at which the running sum of the distribution passes u."""
    p = distribution(logits, **options)
    return int(min(np.searchsorted(np.cumsum(p), u, side="right"), np.flatnonzero(p)[-1]))
