"""Running error analysis: a number that carries a bound on its own rounding error.

A Bound holds a value v and a coefficient c: the same computation in a precision with unit roundoff u, in any order of
summation, gives a result within c u of the exact one (to first order; Higham, "Accuracy and Stability of Numerical
Algorithms", section 3.3). Running a formula on Bounds therefore derives the tolerance of a test from the formula and
the data: float32 has u = 2^-24, float64 u = 2^-53.
"""

import numpy as np

from . import ops

ELEMENTARY = 6  # exp, tanh, log: three units in the last place, in units of u


class Bound(np.lib.mixins.NDArrayOperatorsMixin):
    def __init__(self, v, c=0):
        self.v = np.asarray(v, dtype=np.float64)
        self.c = np.broadcast_to(np.asarray(c, dtype=np.float64), self.v.shape)

    shape = property(lambda self: self.v.shape)
    ndim = property(lambda self: self.v.ndim)

    def __getitem__(self, index):
        return Bound(self.v[index], self.c[index])

    def reshape(self, *shape):
        return Bound(self.v.reshape(*shape), self.c.reshape(*shape))

    def sum(self, axis=None, keepdims=False):
        v = self.v.sum(axis=axis, keepdims=keepdims)
        terms = self.v.size // max(v.size, 1)
        return Bound(
            v, self.c.sum(axis=axis, keepdims=keepdims) + (terms - 1) * np.abs(self.v).sum(axis=axis, keepdims=keepdims)
        )

    def mean(self, axis, keepdims):
        return self.sum(axis, keepdims) / self.v.shape[axis]

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        rule = UFUNCS.get(ufunc)
        if method != "__call__" or rule is None or kwargs:
            return NotImplemented
        with np.errstate(divide="ignore", over="ignore"):
            return rule(*map(as_bound, inputs))

    def __array_function__(self, func, types, args, kwargs):
        rule = FUNCTIONS.get(func)
        return NotImplemented if rule is None else rule(*args, **kwargs)


def as_bound(x):
    return x if isinstance(x, Bound) else Bound(x)


def _times(scale, c):
    """scale * c where an exact zero (c = 0) stays exact even beside an infinite scale."""
    return np.where(c == 0, 0, np.multiply(scale, c, where=c != 0, out=np.zeros(np.broadcast(scale, c).shape)))


def _rounded(v, c):
    return Bound(v, c + np.abs(v))


def _add(a, b):
    return _rounded(a.v + b.v, a.c + b.c)


def _subtract(a, b):
    return _rounded(a.v - b.v, a.c + b.c)


def _multiply(a, b):
    return _rounded(a.v * b.v, np.abs(a.v) * b.c + np.abs(b.v) * a.c)


def _divide(a, b):
    v = a.v / b.v
    return _rounded(v, (a.c + np.abs(v) * b.c) / np.abs(b.v))


def _sqrt(a):
    v = np.sqrt(a.v)
    return _rounded(v, _times(0.5 / np.where(v == 0, np.inf, v), a.c))


def _elementary(value, slope):
    def rule(a):
        v = value(a.v)
        return Bound(v, np.abs(slope(a.v)) * a.c + ELEMENTARY * np.abs(v))

    return rule


UFUNCS = {
    np.add: _add,
    np.subtract: _subtract,
    np.multiply: _multiply,
    np.true_divide: _divide,
    np.sqrt: _sqrt,
    np.negative: lambda a: Bound(-a.v, a.c),
    np.exp: _elementary(np.exp, np.exp),
    np.tanh: _elementary(np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    np.log: _elementary(np.log, lambda x: 1 / x),
    ops.ERF: _elementary(ops.erf, lambda x: 2 / np.sqrt(np.pi) * np.exp(-x * x)),
    np.maximum: lambda a, b: Bound(np.maximum(a.v, b.v), np.where(a.v >= b.v, a.c, b.c)),
    np.less: lambda a, b: a.v < b.v,
    np.greater: lambda a, b: a.v > b.v,
}


def _where(condition, a, b):
    a, b = as_bound(a), as_bound(b)
    return Bound(np.where(condition, a.v, b.v), np.where(condition, a.c, b.c))


def _joined(join):
    def rule(parts, axis=0):
        parts = [as_bound(p) for p in parts]
        return Bound(join([p.v for p in parts], axis=axis), join([p.c for p in parts], axis=axis))

    return rule


def _einsum(spec, a, b):
    """A sum of n products: every product and every partial sum rounds."""
    a, b = as_bound(a), as_bound(b)
    operands, result = spec.split("->")
    sizes = dict(zip(operands.replace(",", ""), a.shape + b.shape))
    terms = np.prod([size for index, size in sizes.items() if index not in result], dtype=float)
    return Bound(
        np.einsum(spec, a.v, b.v),
        np.einsum(spec, np.abs(a.v), b.c)
        + np.einsum(spec, a.c, np.abs(b.v))
        + terms * np.einsum(spec, np.abs(a.v), np.abs(b.v)),
    )


def _argmax(a, axis):
    return np.argmax(a.v, axis=axis)


FUNCTIONS = {
    np.where: _where,
    np.concatenate: _joined(np.concatenate),
    np.stack: _joined(np.stack),
    np.einsum: _einsum,
    np.argmax: _argmax,
}
