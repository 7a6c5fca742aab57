"""RWKV-7 (x070) in float64 NumPy, built from `ops`: the two mixes of a block. p: `model.Layer`."""

from . import ops

LN_X_EPS = 64e-5
HEADS = "att.r_k"  # its shape is (H,N)


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
