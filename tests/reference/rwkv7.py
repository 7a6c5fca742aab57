"""The whole RWKV-7 (x070) model in float64 NumPy, built from `ops`.

params: checkpoint name -> array in the checkpoint's shape. States are dicts of
att_shift (L,B,C), wkv (L,B,H,N,N) with axes (value, key), ffn_shift (L,B,C).
"""

import numpy as np

from . import ops

LN_EPS = 1e-5
LN_X_EPS = 64e-5


def zero_state(params, batch):
    """The state before the first token: zeros, or the trained `time_state` of each layer."""
    H, N = params["blocks.0.att.r_k"].shape
    L = 1 + max(int(name.split(".")[1]) for name in params if name.startswith("blocks."))
    wkv = np.zeros((L, batch, H, N, N))
    for layer in range(L):
        wkv[layer] = params.get(f"blocks.{layer}.att.time_state", 0)
    return {"att_shift": np.zeros((L, batch, H * N)), "wkv": wkv, "ffn_shift": np.zeros((L, batch, H * N))}


class Layer:
    """The parameters of one block below a prefix, vectors squeezed: layer["att.x_r"]."""

    def __init__(self, params, index):
        self.params, self.prefix = params, f"blocks.{index}."

    def __getitem__(self, name):
        value = np.asarray(params_array(self.params, self.prefix + name))
        return value.reshape(-1) if value.shape[:-1] == (1, 1) else value

    def norm(self, x, name):
        return ops.layernorm(x, self[name + ".weight"], self[name + ".bias"], LN_EPS)

    def low_rank(self, x, name, bias, act):
        """bias + act(x m1) m2 over (B,T,C), for the matrices <name>1 and <name>2."""
        _, y = ops.lowrank(x.reshape(-1, x.shape[-1]), self[f"att.{name}1"], self[f"att.{name}2"], bias, act)
        return y.reshape(*x.shape[:-1], -1)

    def linear(self, x, name):
        return x @ self[name + ".weight"].T


def params_array(params, name):
    if name not in params:
        raise KeyError(f"the checkpoint lacks {name}")
    return params[name]


def time_mix(p, x, shift, wkv, v_first, trace):
    """(output, last shift, last wkv, v_first); v_first None in the layer that defines it."""
    B, T, C = x.shape
    H, N = p["att.r_k"].shape

    def heads(u):
        return u.reshape(B, T, H, N)

    xr, xw, xk, xv, xa, xg = ops.shift_lerp(x, shift, [p[f"att.x_{z}"] for z in "rwkvag"])
    r, k0, v0 = p.linear(xr, "att.receptance"), p.linear(xk, "att.key"), p.linear(xv, "att.value")
    s = p.low_rank(xw, "w", p["att.w0"], act=1)
    a = p.low_rank(xa, "a", p["att.a0"], act=0)
    g = p.low_rank(xg, "g", 0, act=2)
    v, nu = v0, None
    if v_first is None:
        v_first = v0
    else:
        nu = p.low_rank(xv, "v", p["att.v0"], act=0)
        v = ops.value_residual(v0, v_first, nu)
    k, alpha, beta = ops.key_prep(heads(k0), heads(a), p["att.k_k"].reshape(H, N), p["att.k_a"].reshape(H, N))
    y, _, states = ops.wkv7(heads(r), heads(s), k, heads(v), alpha, beta, wkv.swapaxes(-1, -2))
    w, b = p["att.ln_x.weight"].reshape(H, N), p["att.ln_x.bias"].reshape(H, N)
    o = ops.out_gate(y, heads(r), k, heads(v), p["att.r_k"], w, b, heads(g), LN_X_EPS)
    out = p.linear(o.reshape(B, T, C), "att.output")
    if trace is not None:
        normed = ops.layernorm(y, w, b, LN_X_EPS)
        bonus = (heads(r) * k * p["att.r_k"]).sum(axis=-1, keepdims=True) * heads(v)
        trace.update(
            r=r,
            k_raw=k0,
            v_raw=v0,
            decay_logit=s,
            decay=ops.decay(s),
            a=ops.sigmoid(a),
            gate=g,
            v=v,
            kk=-alpha,
            k=k,
            wkv=y,
            ln_x=normed,
            ln_x_plus_bonus=normed + bonus,
            att_out=out,
            wkv_state=states[-1].swapaxes(-1, -2),
            **({} if nu is None else {"v_gate": ops.sigmoid(nu)}),
        )
    return out, x[:, -1], states[-1].swapaxes(-1, -2), v_first


def channel_mix(p, x, shift):
    """(output, last shift)"""
    (xk,) = ops.shift_lerp(x, shift, [p["ffn.x_k"]])
    return p.linear(ops.relu2(p.linear(xk, "ffn.key")), "ffn.value"), x[:, -1]


def forward(params, ids, state=None, trace=None):
    """(logits (B,T,V), state). trace: a dict that receives every intermediate under "L<layer>.<name>"."""
    params = {name: np.asarray(value, dtype=np.float64) for name, value in params.items()}
    ids = np.asarray(ids)
    state = zero_state(params, len(ids)) if state is None else state
    after = {name: np.empty_like(rows, dtype=np.float64) for name, rows in state.items()}
    emb = ops.embed(ids, params["emb.weight"])
    x = Layer(params, 0).norm(emb, "ln0")
    if trace is not None:
        trace.update(emb=emb, ln0=x)
    v_first = None
    for layer in range(len(state["wkv"])):
        p, seen = Layer(params, layer), None if trace is None else {}
        h = p.norm(x, "ln1")
        out, after["att_shift"][layer], after["wkv"][layer], v_first = time_mix(
            p, h, state["att_shift"][layer], state["wkv"][layer], v_first, seen
        )
        x = x + out
        h2 = p.norm(x, "ln2")
        out2, after["ffn_shift"][layer] = channel_mix(p, h2, state["ffn_shift"][layer])
        x = x + out2
        if trace is not None:
            seen.update(ln1=h, ln2=h2, ffn_out=out2)
            trace.update({f"L{layer}.{name}": value for name, value in seen.items()})
    x = ops.layernorm(x, params["ln_out.weight"], params["ln_out.bias"], LN_EPS)
    logits = x @ params["head.weight"].T
    if trace is not None:
        trace.update(ln_out=x, logits=logits)
    return logits, after


def loss(logits, targets):
    """Mean cross-entropy over the targets that are not -100."""
    flat, targets = logits.reshape(-1, logits.shape[-1]), np.asarray(targets).reshape(-1)
    return ops.xent(flat, targets).sum() / (targets != ops.IGNORE).sum()


def logit_gradient(logits, targets, l2wrap):
    """Gradient of the mean loss; with l2wrap, plus 1e-4 / (B T) times the maximum at every row's maximum."""
    flat, targets = logits.reshape(-1, logits.shape[-1]), np.asarray(targets).reshape(-1)
    scale = 1 / (targets != ops.IGNORE).sum()
    return ops.xent_grad(flat, targets, scale, 1e-4 / targets.size if l2wrap else 0).reshape(logits.shape)
