"""The naive 16-bit model: everything that lies in memory between two operations is rounded to 16 bits, everything else is float64.

Weights, activations and their gradients are rounded; states, gradients of weights, losses and what an operation computes inside are not.
Forward and backward of every kind of layer, out of `ops` and their gradients. How far this is off is what 16 bits cost; with numbers that
are not rounded (`exactly`) it is the reference itself.

params: checkpoint name -> array in the checkpoint's shape. States: see `model`, of RWKV layers only.
"""

import numpy as np

from . import ops

LN_EPS, RWKV5_EPS, RWKV7_EPS = 1e-5, 1e-5 * 8**2, 64e-5
STATE = ("att_shift", "wkv", "ffn_shift")


def exactly(x):
    return np.asarray(x, dtype=np.float64)


def to_float16(x):
    return np.asarray(x, dtype=np.float16).astype(np.float64)


def to_bfloat16(x):
    """To nearest, ties to even."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32).astype(np.float64)


class Value:
    """Numbers x and the gradient d with respect to them, both as memory would hold them. wide: without rounding."""

    def __init__(self, tape, x, wide=False):
        self.rounded = exactly if wide else tape.rounded
        self.tape, self.x, self.d = tape, self.rounded(x), 0.0

    def add_gradient(self, d):
        self.d = self.rounded(self.d + d)

    def view(self, *shape):
        wide = (0,) if self.rounded is exactly else ()
        return self.tape.run(lambda x: x.reshape(shape), lambda x, y, d: (d.reshape(x.shape),), self, wide=wide)


class Tape:
    """Runs operations forwards and remembers how to run them backwards."""

    def __init__(self, rounded):
        self.rounded, self.back = rounded, []

    def run(self, forward, backward, *given, wide=()):
        """forward(*arrays) gives an array or several; backward(*arrays, *results, *their gradients) gives those of the arrays.

        wide: numbers of the results that are not rounded. Returns a Value or several.
        """
        arrays = [value.x for value in given]
        results = forward(*arrays)
        several = isinstance(results, (tuple, list))
        values = [Value(self, x, i in wide) for i, x in enumerate(results if several else [results])]

        def back():
            gradients = [value.d + np.zeros_like(value.x) for value in values]
            for value, d in zip(given, backward(*arrays, *(value.x for value in values), *gradients), strict=True):
                value.add_gradient(d)

        self.back.append(back)
        return values if several else values[0]

    def backward(self):
        for back in reversed(self.back):
            back()

    # ---- operations ----

    def add(self, a, b):
        return self.run(ops.add, lambda a, b, y, d: (d, d), a, b)

    def layernorm(self, x, w, b):
        def backward(x, w, b, y, d):
            return ops.layernorm_grad(x, w, d, *ops.norm_statistics(x, LN_EPS))

        return self.run(lambda x, w, b: ops.layernorm(x, w, b, LN_EPS), backward, x, w, b)

    def linear(self, x, w):
        rows = lambda a: a.reshape(-1, a.shape[-1])  # noqa: E731

        def backward(x, w, y, d):
            return (rows(d) @ w).reshape(x.shape), rows(d).T @ rows(x)

        return self.run(lambda x, w: x @ w.T, backward, x, w)

    def lowrank(self, x, m1, m2, bias, act):
        function, slope = ops.ACTIVATIONS[act]
        hidden = lambda x, m1: self.rounded(function(x @ m1))  # noqa: E731

        def backward(x, m1, m2, bias, y, d):
            h = hidden(x, m1)
            dh = self.rounded(d @ m2.T * slope(h))
            dm1, dm2 = (np.einsum("btc,btd->cd", a, b) for a, b in ((x, dh), (h, d)))
            return dh @ m1.T, dm1, dm2, ops.sum_rows(d) if np.ndim(bias) else 0

        return self.run(lambda x, m1, m2, bias: hidden(x, m1) @ m2 + bias, backward, x, m1, m2, bias)

    def shift_lerp(self, x, prev, mus, keep=0):
        def forward(x, prev, *mus):
            return [*ops.shift_lerp(x, prev, mus, keep), x[:, -1]]

        def backward(x, prev, *rest):
            *dys, dlast = rest[-len(mus) - 1 :]
            dx, dprev, dmus = ops.shift_lerp_grad(x, prev, rest[: len(mus)], dys, dlast, keep)
            return dx, dprev, *dmus

        return self.run(forward, backward, x, prev, *mus, wide=(len(mus),))

    def ddlerp(self, x, prev, mu_x, mus, m1, m2):
        """Lerps whose coefficients are made of several products: they lie in memory, as their hidden rows do."""
        D = m2.x.shape[1]
        mixed, last = self.shift_lerp(x, prev, [mu_x])
        rows = self.run(lambda x, m: x @ m, lambda x, m, y, d: (d @ m.T, np.einsum("btc,btw->cw", x, d)), mixed, m1)
        h = self.run(np.tanh, lambda u, h, d: (d * (1 - h * h),), rows)

        def lerp_grad(x, prev, mu, more, y, d):
            dx, dprev, _ = ops.shift_lerp_grad(x, prev, [mu + more], [d], np.zeros_like(prev))
            change = d * (ops.previous(x, prev) - x)
            return dx, dprev, ops.sum_rows(change), change

        def part_grad(z):
            part = slice(z * D, (z + 1) * D)

            def backward(h, m2, y, d):
                dh, dm2 = np.zeros_like(h), np.zeros_like(m2)
                dh[..., part], dm2[z] = d @ m2[z].T, np.einsum("btd,btc->dc", h[..., part], d)
                return dh, dm2

            return part, backward

        lerps = []
        for z, mu in enumerate(mus):
            part, backward = part_grad(z)
            more = self.run(lambda h, m2, z=z, part=part: h[..., part] @ m2[z], backward, h, m2)
            lerps.append(self.run(lambda x, prev, mu, more: ops.shift_lerp(x, prev, [mu + more])[0], lerp_grad, x, prev, mu, more))
        return *lerps, last

    def wkv6(self, r, k, v, w, u, s0):
        def forward(*given):
            y, states = ops.wkv6(*given)
            return y, states[-1]

        def backward(r, k, v, w, u, s0, y, sT, dy, dsT):
            return ops.wkv6_grad(r, k, v, w, u, ops.wkv6(r, k, v, w, u, s0)[1], dy, dsT)

        return self.run(forward, backward, r, k, v, w, u, s0, wide=(1,))

    def wkv7(self, *given):
        def forward(*given):
            y, _, states = ops.wkv7(*given)
            return y, states[-1]

        def backward(*rest):
            *given, dy, dsT = rest[:7] + rest[9:]
            _, z, states = ops.wkv7(*given)
            return ops.wkv7_grad(*given[:6], z, states, dy, dsT)

        return self.run(forward, backward, *given, wide=(1,))

    def same(self, name, *given):
        """An operation of `ops` whose gradient takes its arguments and that of its result."""
        gradient = getattr(ops, name + "_grad")

        def backward(*rest):
            d = gradient(*rest[: len(given)], *rest[-((len(rest) - len(given)) // 2) :])
            return d if isinstance(d, tuple) else (d,)

        return self.run(getattr(ops, name), backward, *given)

    def out_gate(self, *given):
        def backward(y, r, k, v, r_k, w, b, g, o, do):
            dy, dr, dk, dv, dr_k, dw, db, dg = ops.out_gate_grad(y, r, k, v, r_k, w, b, g, RWKV7_EPS, do)
            return dy, dr, dk, dv, dr_k, dw, db, dg

        return self.run(lambda *given: ops.out_gate(*given, RWKV7_EPS), backward, *given)

    def norm_gate(self, *given):
        return self.run(lambda *given: ops.norm_gate(*given, RWKV5_EPS), lambda y, w, b, g, o, do: ops.norm_gate_grad(y, w, b, g, RWKV5_EPS, do), *given)

    def rope(self, x):
        angles = ops.rope_angles(0, x.x.shape[1], x.x.shape[-1])
        c, s = np.cos(angles), np.sin(angles)
        return self.run(lambda x: ops.rope(x, c, s), lambda x, y, d: (ops.rope(d, c, -s),), x)

    def attention(self, q, k, v):
        def backward(q, k, v, y, d):
            return ops.attention_grad(q, k, v, 0, y, ops.attention(q, k, v, 0)[1], d)

        return self.run(lambda q, k, v: ops.attention(q, k, v, 0)[0], backward, q, k, v)


# ---- layers ---------------------------------------------------------------------------------------------------------


class Layer:
    """The parameters of a block, its heads, and what flows beside the stream."""

    def __init__(self, run, index):
        self.run, self.tape, self.prefix, self.index = run, run.tape, f"blocks.{index}.", index

    def __contains__(self, name):
        return self.prefix + name in self.run.params

    def __getitem__(self, name):
        value = self.run.params[self.prefix + name]
        return value.view(-1) if value.x.shape[:-1] == (1, 1) else value

    def heads(self, value, N=None):
        B, T, C = value.x.shape
        N = N or self["att.r_k" if "att.r_k" in self else "att.time_faaaa"].x.shape[1]
        return value.view(B, T, C // N, N)

    def matrix(self, name, *shape):
        """A vector of a head's channels after another."""
        return self[name].view(*shape)

    def linear(self, x, name):
        return self.tape.linear(x, self[name + ".weight"])

    def lowrank(self, x, name, bias, act):
        return self.tape.lowrank(x, self[name + "1"], self[name + "2"], self[bias] if bias else Value(self.tape, 0.0, wide=True), act)

    def carry(self, name, value):
        self.run.after[name, self.index] = value

    def norm(self, x, name):
        return self.tape.layernorm(x, self[name + ".weight"], self[name + ".bias"])


def _rwkv7(p, x):
    *mixed, last = p.tape.shift_lerp(x, p.run.state("att_shift", p.index), [p[f"att.x_{z}"] for z in "rwkvag"])
    xr, xw, xk, xv, xa, xg = mixed
    shape = p["att.r_k"].x.shape
    r, k0, v = (p.heads(p.linear(z, "att." + name)) for z, name in ((xr, "receptance"), (xk, "key"), (xv, "value")))
    s, a = p.heads(p.lowrank(xw, "att.w", "att.w0", 1)), p.heads(p.lowrank(xa, "att.a", "att.a0", 0))
    g = p.heads(p.lowrank(xg, "att.g", None, 2))
    if p.run.v_first is None:
        p.run.v_first = v
    else:
        v = p.tape.same("value_residual", v, p.run.v_first, p.heads(p.lowrank(xv, "att.v", "att.v0", 0)))
    k, alpha, beta = p.tape.same("key_prep", k0, a, p.matrix("att.k_k", *shape), p.matrix("att.k_a", *shape))
    y, wkv = p.tape.wkv7(r, s, k, v, alpha, beta, p.run.state("wkv", p.index))
    o = p.tape.out_gate(y, r, k, v, p["att.r_k"], p.matrix("att.ln_x.weight", *shape), p.matrix("att.ln_x.bias", *shape), g)
    p.carry("att_shift", last), p.carry("wkv", wkv)
    return p.linear(o.view(*x.x.shape), "att.output")


def _rwkv5_or_6(p, x):
    shift, H_N = p.run.state("att_shift", p.index), p["att.time_faaaa"].x.shape
    if "att.time_maa_x" in p:
        mus = [p[f"att.time_maa_{z}"] for z in "wkvrg"]
        xw, xk, xv, xr, xg, last = p.tape.ddlerp(x, shift, p["att.time_maa_x"], mus, p["att.time_maa_w1"], p["att.time_maa_w2"])
        w = p.heads(p.lowrank(xw, "att.time_decay_w", "att.time_decay", 1))
    else:
        xk, xv, xr, xg, last = p.tape.shift_lerp(x, shift, [p[f"att.time_mix_{z}"] for z in "kvrg"], keep=1)
        w = p["att.time_decay"]
    r, k, v, g = (p.heads(p.linear(z, "att." + name)) for z, name in ((xr, "receptance"), (xk, "key"), (xv, "value"), (xg, "gate")))
    y, wkv = p.tape.wkv6(r, k, v, w, p["att.time_faaaa"], p.run.state("wkv", p.index))
    o = p.tape.norm_gate(y, p.matrix("att.ln_x.weight", *H_N), p.matrix("att.ln_x.bias", *H_N), g)
    p.carry("att_shift", last), p.carry("wkv", wkv)
    return p.linear(o.view(*x.x.shape), "att.output")


def _attention(p, x):
    q, k, v = (p.heads(p.linear(x, f"att.{name}_proj"), p.run.head_size) for name in "qkv")
    if p.run.rope:
        q, k = p.tape.rope(q), p.tape.rope(k)
    return p.linear(p.tape.attention(q, k, v).view(*x.x.shape), "att.o_proj")


def _channel_mix(p, x):
    if "ffn.fc.weight" in p:
        return p.linear(p.tape.same("gelu", p.linear(x, "ffn.fc")), "ffn.proj")
    shift = p.run.state("ffn_shift", p.index)
    if "ffn.x_k" in p:
        xk, last = p.tape.shift_lerp(x, shift, [p["ffn.x_k"]])
    else:
        name, keep = ("ffn.time_maa_", 0) if "ffn.time_maa_k" in p else ("ffn.time_mix_", 1)
        xk, xr, last = p.tape.shift_lerp(x, shift, [p[name + "k"], p[name + "r"]], keep)
    p.carry("ffn_shift", last)
    value = p.linear(p.tape.same("relu2", p.linear(xk, "ffn.key")), "ffn.value")
    return value if "ffn.x_k" in p else p.tape.same("sigmoid_gate", p.linear(xr, "ffn.receptance"), value)


def _time_mix(p, x):
    return _attention(p, x) if "att.q_proj.weight" in p else _rwkv7(p, x) if "att.r_k" in p else _rwkv5_or_6(p, x)


class Run:
    """A model's forward, and then its backward.

    rounded: `to_bfloat16`, `to_float16` or `exactly`. state: dict of arrays to begin from. head_size, rope: of attention.
    logits: (B,T,V), of the rounded rows and weights but not rounded themselves.  after: (name, layer) -> Value.
    """

    def __init__(self, params, ids, rounded, state=None, head_size=0, rope=True):
        self.tape, self.after, self.v_first = Tape(rounded), {}, None
        self.params = {name: Value(self.tape, value) for name, value in params.items()}
        for value in self.params.values():
            value.rounded = exactly  # from here on for their gradients
        self.given, self.before, self.head_size, self.rope = state, {}, head_size, rope
        self.ids = np.asarray(ids)
        p = Layer(self, 0)
        x = self.tape.run(lambda w: w[self.ids], self._embed_grad, self.params["emb.weight"])
        if "ln0.weight" in p:
            x = p.norm(x, "ln0")
        for layer in range(1 + max(int(name.split(".")[1]) for name in params if name.startswith("blocks."))):
            p = Layer(self, layer)
            x = self.tape.add(x, _time_mix(p, p.norm(x, "ln1")))
            x = self.tape.add(x, _channel_mix(p, p.norm(x, "ln2")))
        self.rows = self.tape.layernorm(x, self.params["ln_out.weight"], self.params["ln_out.bias"])
        self.logits = self.rows.x @ self.params["head.weight"].x.T

    def _embed_grad(self, w, y, d):
        dw = np.zeros_like(w)
        np.add.at(dw, self.ids.ravel(), d.reshape(-1, d.shape[-1]))
        return (dw,)

    def state(self, name, layer):
        """The part of the state that a layer begins from: given, trained or zeros."""
        if (name, layer) not in self.before:
            p, B = Layer(self, layer), len(self.ids)
            if self.given is not None:
                x = self.given[name][layer]
                value = Value(self.tape, x.swapaxes(-1, -2) if name == "wkv" else x, wide=True)
            elif name == "wkv" and "att.time_state" in p:
                value = self.tape.run(lambda s: ops.initial_state(s, B), lambda s, y, d: (ops.initial_state_grad(d),), p["att.time_state"], wide=(0,))
            else:
                H, N = p["att.r_k" if "att.r_k" in p else "att.time_faaaa"].x.shape
                value = Value(self.tape, np.zeros((B, H, N, N) if name == "wkv" else (B, H * N)), wide=True)
            self.before[name, layer] = value
        return self.before[name, layer]

    def final(self, name):
        """(L,B,...): a part of the state after the last token."""
        layers = sorted(layer for at, layer in self.after if at == name)
        rows = np.stack([self.after[name, layer].x for layer in layers])
        return rows.swapaxes(-1, -2) if name == "wkv" else rows

    def backward(self, targets, l2wrap=False, scale=1.0):
        """(mean loss, gradients by name, those of a given state as "state.wkv" and so on); scale: a loss scale, for float16."""
        logits = self.tape.linear(self.rows, self.params["head.weight"])
        flat, targets = logits.x.reshape(-1, logits.x.shape[-1]), np.asarray(targets).reshape(-1)
        count = (targets != ops.IGNORE).sum()
        d = ops.xent_grad(flat, targets, scale / count, scale * 1e-4 / targets.size if l2wrap else 0)
        logits.add_gradient(d.reshape(logits.x.shape))
        self.tape.backward()
        grads = {name: (value.d + np.zeros_like(value.x)) / scale for name, value in self.params.items()}
        if self.given is not None:
            for name in STATE:
                rows = np.stack([self.before[name, layer].d for layer in range(len(self.given[name]))]) / scale
                grads[f"state.{name}"] = rows.swapaxes(-1, -2) if name == "wkv" else rows
        return ops.xent(flat, targets).sum() / count, grads
