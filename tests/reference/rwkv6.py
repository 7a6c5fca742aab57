"""RWKV-6 (x060) in float64 NumPy, built from `ops`: the two mixes of a block. p: `model.Layer`."""

import numpy as np

from . import ops

LN_X_EPS = 1e-5 * 8**2
HEADS = "att.time_faaaa"  # its shape is (H,N)


def time_mix(p, x, shift, wkv, v_first, trace):
    """(output, last shift, last wkv, v_first, which passes by)"""
    B, T, C = x.shape
    H, N = p[HEADS].shape

    def heads(u):
        return u.reshape(B, T, H, N)

    given = (x, shift, p["att.time_maa_x"], [p[f"att.time_maa_{z}"] for z in "wkvrg"])
    _, (xw, xk, xv, xr, xg) = ops.ddlerp(*given, p["att.time_maa_w1"], p["att.time_maa_w2"])
    r, k, v = p.linear(xr, "att.receptance"), p.linear(xk, "att.key"), p.linear(xv, "att.value")
    g = p.linear(xg, "att.gate")
    w = p["att.time_decay"] + np.tanh(xw @ p["att.time_decay_w1"]) @ p["att.time_decay_w2"]
    y, states = ops.wkv6(heads(r), heads(k), heads(v), heads(w), p[HEADS], wkv.swapaxes(-1, -2))
    normed = ops.layernorm(y, p["att.ln_x.weight"].reshape(H, N), p["att.ln_x.bias"].reshape(H, N), LN_X_EPS)
    gate = g * ops.sigmoid(g)
    out = p.linear(normed.reshape(B, T, C) * gate, "att.output")
    if trace is not None:
        _, _, coefficients = ops.ddlerp_parts(*given, p["att.time_maa_w1"], p["att.time_maa_w2"])
        dynamic = np.stack([c - mu for c, mu in zip(coefficients, given[-1])])
        trace.update(r=r, k=k, v=v, gate=gate, w_raw=w, wkv=y, ln_x=normed, att_out=out, maa_dyn_wkvrg=dynamic,
                     wkv_state=states[-1].swapaxes(-1, -2))  # fmt: skip
    return out, x[:, -1], states[-1].swapaxes(-1, -2), v_first


def channel_mix(p, x, shift):
    """(output, last shift)"""
    xk, xr = ops.shift_lerp(x, shift, [p["ffn.time_maa_k"], p["ffn.time_maa_r"]])
    value = p.linear(ops.relu2(p.linear(xk, "ffn.key")), "ffn.value")
    return ops.sigmoid(p.linear(xr, "ffn.receptance")) * value, x[:, -1]
