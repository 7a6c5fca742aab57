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


def changed_logits(logits, counts=None, prompt=(), repetition_penalty=1.0, presence=0.0, frequency=0.0, bias=None):
    """Logits after penalties and bias.  counts: {token: what is left of its occurrences in the text}; prompt: its tokens."""
    logits, counts = np.array(logits, dtype=np.float64), counts or {}
    for token in {*prompt, *counts}:
        logits[token] = logits[token] / repetition_penalty if logits[token] > 0 else logits[token] * repetition_penalty
    for token, count in counts.items():
        if count > 0:
            logits[token] -= presence + frequency * count
    for token, value in (bias or {}).items():
        logits[token] += value
    return logits


def distribution(logits, temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, typical_p=1.0):
    """Probabilities of all tokens: the likeliest until their sum passes top_p, of these top_k, of these those with min_p of
    the largest, of these the ones nearest to the entropy until their sum passes typical_p of what is left, p^(1/temperature)."""
    logits = np.asarray(logits, dtype=np.float64)
    p = np.exp(logits - logits.max())
    p /= p.sum()
    if temperature == 0:
        top_k, temperature = 1, 1.0
    order = np.argsort(-p, kind="stable")  # of equals, the lower id first
    if top_p < 1:
        p = up_to_the_edge(p, p, top_p)
    if top_k:
        p[order[top_k:]] = 0
    p = np.where(p < min_p * p.max(), 0, p)
    if typical_p < 1:
        share = p / p.sum()
        surprise = -np.log(share, where=share > 0, out=np.full(len(p), np.inf))
        entropy = (share[share > 0] * surprise[share > 0]).sum()
        p = up_to_the_edge(p, np.exp(-np.abs(surprise - entropy)), typical_p * p.sum())
    p = np.where(p > 0, p ** (1 / temperature), 0)
    return p / p.sum()


def up_to_the_edge(p, key, mass):
    """p where its key is at least that of the token at which the sum of p, by descending key, first passes `mass`."""
    order = np.argsort(-key, kind="stable")
    passed = np.cumsum(p[order]) > mass
    edge = key[order][np.argmax(passed)] if passed.any() else 0
    return np.where(key < edge, 0, p)


def choose(logits, u, **options):
    """The token at which the running sum of the distribution passes u."""
    p = distribution(logits, **options)
    return int(min(np.searchsorted(np.cumsum(p), u, side="right"), np.flatnonzero(p)[-1]))
