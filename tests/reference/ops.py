"""Every operation of csrc/ops in NumPy: the forward as its definition, the backward as its formula.

Shapes: R rows (often B*T), C channels, heads (B,T,H,N) with C = H N, V vocabulary, K -> M for a linear map.
The functions only use elementwise arithmetic, sums and einsum, so they run on float64 arrays, on complex arrays
(the complex-step derivative of a forward checks its backward) and on `running_error.Bound` (which tells how far a
computation in a given precision may be off). A `*_grad` returns gradients in the order of the forward's arguments.
"""

import math

import numpy as np

KAPPA = np.exp(-0.5)  # the largest decay rate of one RWKV-7 step


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def sum_rows(x):
    """Sum over all axes but the last: the gradient of a vector that was broadcast over rows."""
    return x.sum(axis=tuple(range(x.ndim - 1)))


# ---- embedding, sums, norms -----------------------------------------------------------------------------------------


def embed(ids, w):
    return w[ids]


def embed_grad(ids, dy, vocab_size):
    """Row v of the result is the sum of dy over the places where id v stood."""
    return np.einsum("rv,rc->vc", np.eye(vocab_size)[ids], dy)


def add(a, b):
    return a + b


def norm_statistics(x, eps):
    """Mean and inverse deviation over the last axis (kept): m, s = 1 / sqrt(var + eps)."""
    m = x.mean(axis=-1, keepdims=True)
    d = x - m
    return m, 1 / np.sqrt((d * d).mean(axis=-1, keepdims=True) + eps)


def layernorm(x, w, b, eps):
    m, s = norm_statistics(x, eps)
    return (x - m) * s * w + b


def layernorm_grad(x, w, dy, m, s, dres=0):
    xhat, t = (x - m) * s, dy * w
    dx = s * (t - t.mean(axis=-1, keepdims=True) - xhat * (t * xhat).mean(axis=-1, keepdims=True)) + dres
    return dx, sum_rows(dy * xhat), sum_rows(dy)


# ---- matrix products ------------------------------------------------------------------------------------------------


def linear(x, w):
    """w is (out, in), as in checkpoints."""
    return np.einsum("rk,mk->rm", x, w)


def linear_grad(x, w, dy):
    return np.einsum("rm,mk->rk", dy, w), np.einsum("rm,rk->mk", dy, x)


ACTIVATIONS = {
    0: (lambda u: u, lambda h: 1 + 0 * h),
    1: (np.tanh, lambda h: 1 - h * h),
    2: (sigmoid, lambda h: h * (1 - h)),
}  # code -> function, and its slope as a function of its value


def lowrank(x, m1, m2, bias, act):
    """(h, y): h = f(x m1), y = bias + h m2; the small matrices are (in, out)."""
    h = ACTIVATIONS[act][0](np.einsum("rc,cd->rd", x, m1))
    return h, np.einsum("rd,do->ro", h, m2) + bias


def lowrank_grad(x, m1, m2, h, dy, act):
    dh = np.einsum("ro,do->rd", dy, m2) * ACTIVATIONS[act][1](h)
    return np.einsum("rd,cd->rc", dh, m1), np.einsum("rc,rd->cd", x, dh), np.einsum("rd,ro->do", h, dy), sum_rows(dy)


# ---- token shift ----------------------------------------------------------------------------------------------------


def previous(x, prev):
    """x one token later: prev (B,C), x_0, ..., x_{T-2}."""
    return np.concatenate([prev[:, None], x[:, :-1]], axis=1)


def shift_lerp(x, prev, mus, keep=0):
    """One mixed input per mu: x + (previous - x) mu; with keep, mu is the share of x itself."""
    delta = previous(x, prev) - x
    return [x + delta * (1 - mu if keep else mu) for mu in mus]


def shift_lerp_grad(x, prev, mus, dys, dlast, keep=0):
    """dlast is the gradient of x_{T-1} as the state of the next call."""
    if keep:
        dx, dprev, dmus = shift_lerp_grad(x, prev, [1 - mu for mu in mus], dys, dlast)
        return dx, dprev, [-dmu for dmu in dmus]
    delta = previous(x, prev) - x
    e = sum(dy * mu for dy, mu in zip(dys, mus))
    from_next = np.concatenate([e[:, 1:], dlast[:, None]], axis=1)
    return sum(dys) - e + from_next, e[:, 0], [sum_rows(dy * delta) for dy in dys]


def ddlerp_parts(x, prev, mu_x, mus, m1, m2):
    """(mixed input of the low-rank function, h of shape (B,T,n,D), the n coefficients)"""
    (mixed,) = shift_lerp(x, prev, [mu_x])
    h = np.tanh(np.einsum("btc,cw->btw", mixed, m1)).reshape(*x.shape[:2], *m2.shape[:2])
    return mixed, h, [mu + np.einsum("btd,dc->btc", h[:, :, z], m2[z]) for z, mu in enumerate(mus)]


def ddlerp(x, prev, mu_x, mus, m1, m2):
    """(h, one mixed input per mu): lerps whose coefficients depend on the input."""
    _, h, coefficients = ddlerp_parts(x, prev, mu_x, mus, m1, m2)
    delta = previous(x, prev) - x
    return h.reshape(*x.shape[:2], -1), [x + delta * coefficient for coefficient in coefficients]


def ddlerp_grad(x, prev, mu_x, mus, m1, m2, dys, dlast):
    """(dx, dprev, dmu_x, [dmu], dm1, dm2)"""
    mixed, h, coefficients = ddlerp_parts(x, prev, mu_x, mus, m1, m2)
    delta = previous(x, prev) - x
    changes = [dy * delta for dy in dys]
    dh = np.stack([np.einsum("btc,dc->btd", change, m2[z]) for z, change in enumerate(changes)], axis=2) * (1 - h * h)
    dh = dh.reshape(*x.shape[:2], -1)
    f = np.einsum("btw,cw->btc", dh, m1)
    e = sum(dy * coefficient for dy, coefficient in zip(dys, coefficients)) + f * mu_x
    from_next = np.concatenate([e[:, 1:], dlast[:, None]], axis=1)
    dm2 = np.stack([np.einsum("btd,btc->dc", h[:, :, z], change) for z, change in enumerate(changes)])
    return (
        sum(dys) + f - e + from_next,
        e[:, 0],
        sum_rows(f * delta),
        [sum_rows(change) for change in changes],
        np.einsum("btc,btw->cw", mixed, dh),
        dm2,
    )


# ---- gates of RWKV-5 and 6 -------------------------------------------------------------------------------------------


def sigmoid_gate(q, v):
    return sigmoid(q) * v


def sigmoid_gate_grad(q, v, dy):
    return dy * v * sigmoid(q) * (1 - sigmoid(q)), dy * sigmoid(q)


def norm_gate(y, w, b, g, eps):
    """Group norm of y times silu(g); everything (B,T,H,N), w and b (H,N)."""
    return layernorm(y, w, b, eps) * g * sigmoid(g)


def norm_gate_grad(y, w, b, g, eps, do):
    """(dy, dw, db, dg)"""
    m, s = norm_statistics(y, eps)
    gate, dnormed, xhat = sigmoid(g), do * g * sigmoid(g), (y - m) * s
    dy, _, _ = layernorm_grad(y, w, dnormed, m, s)
    dg = do * (xhat * w + b) * gate * (1 + g * (1 - gate))
    return dy, (dnormed * xhat).sum(axis=(0, 1)), dnormed.sum(axis=(0, 1)), dg


# ---- RWKV-7's elementwise stages ------------------------------------------------------------------------------------


def value_residual(v0, v_first, nu):
    return v0 + (v_first - v0) * sigmoid(nu)


def value_residual_grad(v0, v_first, nu, dv):
    n = sigmoid(nu)
    return dv * (1 - n), dv * n, dv * (v_first - v0) * n * (1 - n)


def key_prep(k0, a, k_k, k_a):
    """(k, alpha, beta) of shape (B,T,H,N); k_k and k_a are (H,N)."""
    rate, q = sigmoid(a), k0 * k_k
    khat = q / np.maximum(np.sqrt((q * q).sum(axis=-1, keepdims=True)), 1e-12)
    return k0 * (1 + (rate - 1) * k_a), -khat, khat * rate


def key_prep_grad(k0, a, k_k, k_a, dk, dalpha, dbeta):
    rate, q = sigmoid(a), k0 * k_k
    norm = np.sqrt((q * q).sum(axis=-1, keepdims=True))
    floored = np.maximum(norm, 1e-12)
    khat, dkhat = q / floored, dbeta * rate - dalpha
    along = np.where(norm < 1e-12, 0, (khat * dkhat).sum(axis=-1, keepdims=True))
    dq = (dkhat - khat * along) / floored
    drate = dbeta * khat + dk * k0 * k_a
    dk0 = dk * (1 + (rate - 1) * k_a) + dq * k_k
    return dk0, drate * rate * (1 - rate), (dq * k0).sum(axis=(0, 1)), (dk * k0 * (rate - 1)).sum(axis=(0, 1))


def out_gate(y, r, k, v, r_k, w, b, g, eps):
    """(group norm of y + bonus) g; everything (B,T,H,N), r_k w b (H,N)."""
    return (layernorm(y, w, b, eps) + (r * k * r_k).sum(axis=-1, keepdims=True) * v) * g


def out_gate_grad(y, r, k, v, r_k, w, b, g, eps, do):
    """(dy, dr, dk, dv, dr_k, dw, db, dg)"""
    m, s = norm_statistics(y, eps)
    bonus, do2 = (r * k * r_k).sum(axis=-1, keepdims=True), do * g
    dbonus = (do2 * v).sum(axis=-1, keepdims=True)
    dy, _, _ = layernorm_grad(y, w, do2, m, s)
    xhat, tokens = (y - m) * s, (0, 1)
    return (
        dy,
        dbonus * k * r_k,
        dbonus * r * r_k,
        bonus * do2,
        (dbonus * r * k).sum(axis=tokens),
        (do2 * xhat).sum(axis=tokens),
        do2.sum(axis=tokens),
        do * (xhat * w + b + bonus * v),
    )


def initial_state(p, B):
    """(B,H,key,value) from the (H,value,key) of a checkpoint."""
    return np.einsum("hij,b->bhji", p, np.ones(B))


def initial_state_grad(ds):
    return np.einsum("bhji,b->hij", ds, np.ones(ds.shape[0]))


def relu2(x):
    return np.where(x > 0, x, 0) * np.where(x > 0, x, 0)


def relu2_grad(x, dy):
    return 2 * np.where(x > 0, x, 0) * dy


def _erf(x):
    """The error function of one number; of a complex one to first order in its imaginary part, as a complex step needs it."""
    if isinstance(x, complex):
        return complex(math.erf(x.real), x.imag * 2 / math.sqrt(math.pi) * math.exp(-x.real * x.real))
    return math.erf(x)


ERF = np.frompyfunc(_erf, 1, 1)


def erf(x):
    y = ERF(x)
    return y.astype(x.dtype) if isinstance(y, np.ndarray) else y


def gelu(x):
    return x * (0.5 * (1 + erf(x / math.sqrt(2))))


def gelu_grad(x, dy):
    return dy * (0.5 * (1 + erf(x / math.sqrt(2))) + x * np.exp(-0.5 * (x * x)) / math.sqrt(2 * math.pi))


# ---- attention ------------------------------------------------------------------------------------------------------


def rope_angles(past, T, N):
    """(T,1,N/2): position times 10000^(-2i/N)."""
    return ((past + np.arange(T))[:, None] * 10000.0 ** (-2 * np.arange(N // 2) / N))[:, None]


def rope(x, c, s):
    """x (B,T,H,N) with slot i and slot i + N/2 turned by the angle whose cosine and sine are c and s (T,1,N/2)."""
    half = x.shape[-1] // 2
    low, high = x[..., :half], x[..., half:]
    return np.concatenate([low * c - high * s, high * c + low * s], axis=-1)


def _shared(k, heads):
    """(B,T,G,N) as every one of `heads` heads sees it."""
    return k[:, :, np.arange(heads) * k.shape[2] // heads]


def _scores(q, k, past):
    """(s, seen), both (B,H,T,past+T): seen is 0 where a key comes after the query, 1 elsewhere."""
    T, H, N = q.shape[1:]
    s = np.einsum("bthn,bjhn->bhtj", q, _shared(k, H)) * (1 / math.sqrt(N))
    return s, (np.arange(past + T) <= past + np.arange(T)[:, None]) + 0.0


def attention(q, k, v, past):
    """(y, lse): y (B,T,H,N), lse (B,H,T), of q (B,T,H,N) over k, v (B,past+T,G,N)."""
    s, seen = _scores(q, k, past)
    plain = getattr(s, "v", s).real
    top = np.where(seen, plain, -np.inf).max(axis=-1, keepdims=True)  # any number would do: it cancels
    e = np.exp((s - top) * seen) * seen
    total = e.sum(axis=-1, keepdims=True)
    y = np.einsum("bhtj,bjhn->bthn", e / total, _shared(v, q.shape[2]))
    return y, (np.log(total) + top)[..., 0]


def attention_grad(q, k, v, past, y, lse, dy):
    """(dq, dk, dv)"""
    (B, T, H, N), G = q.shape, k.shape[2]
    s, seen = _scores(q, k, past)
    p = np.exp((s - lse[..., None]) * seen) * seen
    D = np.einsum("bthn,bthn->bht", dy, y)[..., None]
    ds = p * (np.einsum("bthn,bjhn->bhtj", dy, _shared(v, H)) - D) * (1 / math.sqrt(N))

    def grouped(d):
        return d.reshape(B, past + T, G, H // G, N).sum(axis=3)

    dq = np.einsum("bhtj,bjhn->bthn", ds, _shared(k, H))
    return dq, grouped(np.einsum("bhtj,bthn->bjhn", ds, q)), grouped(np.einsum("bhtj,bthn->bjhn", p, dy))


# ---- the RWKV-7 recurrence; states are (B,H,key,value) --------------------------------------------------------------


def decay(s):
    """From the logit: exp(-e^{-1/2} sigmoid(s)), in (0.545, 1)."""
    return np.exp(-KAPPA * sigmoid(s))


def wkv7(r, s, k, v, a, b, s0):
    """(y, z, states): states is the list S_0 ... S_T, z_t = S_{t-1} a_t."""
    d = decay(s)
    states, ys, zs = [s0], [], []
    for t in range(r.shape[1]):
        S = states[-1]
        z = np.einsum("bhji,bhj->bhi", S, a[:, t])
        S = S * d[:, t][..., None] + b[:, t][..., None] * z[..., None, :] + k[:, t][..., None] * v[:, t][..., None, :]
        ys.append(np.einsum("bhji,bhj->bhi", S, r[:, t]))
        zs.append(z)
        states.append(S)
    return np.stack(ys, axis=1), np.stack(zs, axis=1), states


def wkv7_grad(r, s, k, v, a, b, z, states, dy, dsT):
    """(dr, ds, dk, dv, da, db, ds0)"""
    gate, d = sigmoid(s), decay(s)
    rows, D = [], dsT
    for t in reversed(range(r.shape[1])):
        before, after = states[t], states[t + 1]
        D = D + r[:, t][..., None] * dy[:, t][..., None, :]
        dz = np.einsum("bhji,bhj->bhi", D, b[:, t])
        dd = (before * D).sum(axis=-1)
        rows.append(
            (
                np.einsum("bhji,bhi->bhj", after, dy[:, t]),
                -KAPPA * gate[:, t] * (1 - gate[:, t]) * d[:, t] * dd,
                np.einsum("bhji,bhi->bhj", D, v[:, t]),
                np.einsum("bhji,bhj->bhi", D, k[:, t]),
                np.einsum("bhji,bhi->bhj", before, dz),
                np.einsum("bhji,bhi->bhj", D, z[:, t]),
            )
        )
        D = D * d[:, t][..., None] + a[:, t][..., None] * dz[..., None, :]
    return *(np.stack(grad[::-1], axis=1) for grad in zip(*rows)), D


# ---- the recurrences of RWKV-5 and 6; w (B,T,H,N), or (H,N) for all tokens -------------------------------------------


def wkv6(r, k, v, w, u, s0):
    """(y, states): states is the list S_0 ... S_T; a token reads the state before it and, weighted by u, itself."""
    d = np.exp(-np.exp(w))
    states, ys = [s0], []
    for t in range(r.shape[1]):
        S, rt, kt, vt = states[-1], r[:, t], k[:, t], v[:, t]
        dt = d[:, t] if w.ndim == 4 else d
        ys.append(np.einsum("bhji,bhj->bhi", S, rt) + (rt * u * kt).sum(axis=-1, keepdims=True) * vt)
        states.append(S * dt[..., None] + kt[..., None] * vt[..., None, :])
    return np.stack(ys, axis=1), states


def wkv6_grad(r, k, v, w, u, states, dy, dsT):
    """(dr, dk, dv, dw, du, ds0)"""
    rate = np.exp(w)
    d = np.exp(-rate)
    rows, D = [], dsT
    for t in reversed(range(r.shape[1])):
        before, rt, kt, vt, dyt = states[t], r[:, t], k[:, t], v[:, t], dy[:, t]
        dt, slope = (d[:, t], -rate[:, t] * d[:, t]) if w.ndim == 4 else (d, -rate * d)
        eta = (vt * dyt).sum(axis=-1, keepdims=True)
        rows.append(
            (
                np.einsum("bhji,bhi->bhj", before, dyt) + u * kt * eta,
                np.einsum("bhji,bhi->bhj", D, vt) + u * rt * eta,
                np.einsum("bhji,bhj->bhi", D, kt) + (rt * u * kt).sum(axis=-1, keepdims=True) * dyt,
                slope * (before * D).sum(axis=-1),
                rt * kt * eta,
            )
        )
        D = D * dt[..., None] + rt[..., None] * dyt[..., None, :]
    dr, dk, dv, dw, du = (np.stack(grad[::-1], axis=1) for grad in zip(*rows))
    return dr, dk, dv, dw if w.ndim == 4 else dw.sum(axis=(0, 1)), du.sum(axis=(0, 1)), D


# ---- loss and optimizer ---------------------------------------------------------------------------------------------

IGNORE = -100


def row_maximum(logits):
    """Lowest index of the maximum of each row, as a 0/1 matrix."""
    return np.eye(logits.shape[-1])[np.argmax(logits, axis=-1)]


def xent(logits, targets):
    """The loss of every row: logsumexp(z) - z[target], 0 where the target is -100."""
    top = (logits * row_maximum(logits)).sum(axis=-1, keepdims=True)
    total = np.exp(logits - top).sum(axis=-1)
    counts = targets != IGNORE
    chosen = np.eye(logits.shape[-1])[np.where(counts, targets, 0)]
    return (np.log(total) + top[..., 0] - (logits * chosen).sum(axis=-1)) * counts


def xent_grad(logits, targets, scale, l2):
    """scale (softmax - onehot) where the row counts, plus l2 max(z) at the maximum of every row."""
    best = row_maximum(logits)
    top = (logits * best).sum(axis=-1, keepdims=True)
    grown = np.exp(logits - top)
    counts = (targets != IGNORE)[:, None]
    chosen = np.eye(logits.shape[-1])[np.where(counts[:, 0], targets, 0)]
    return scale * (grown / grown.sum(axis=-1, keepdims=True) - chosen) * counts + l2 * top * best


def adamw(p, g, m, v, gscale, lr, beta1, beta2, eps, wd, bias1, bias2):
    """(p, m, v) after one step of AdamW with decoupled decay, eps after the root."""
    g = g * gscale
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    return p - lr * ((m / bias1) / (np.sqrt(v / bias2) + eps) + wd * p), m, v


def sumsq(x):
    return (x * x).sum()
