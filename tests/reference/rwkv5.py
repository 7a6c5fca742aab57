"""RWKV-5.2 (x052) in float64 NumPy, built from `ops`: the two mixes of a block. p: `model.Layer`."""

from . import ops

DIVISOR, LN_X_EPS = 8, 1e-5  # the read-out is divided before its norm
HEADS = "att.time_faaaa"  # its shape is (H,N)


def mix(p, x, shift, name):
    """The share time_mix of the token, the rest of the one before it."""
    return x * p[name] + ops.previous(x, shift) * (1 - p[name])


def time_mix(p, x, shift, wkv, v_first, trace):
    """(output, last shift, last wkv, v_first, which passes by)"""
    B, T, C = x.shape
    H, N = p[HEADS].shape

    def heads(u):
        return u.reshape(B, T, H, N)

    names = {"k": "key", "v": "value", "r": "receptance", "g": "gate"}
    k, v, r, g = (p.linear(mix(p, x, shift, f"att.time_mix_{z}"), f"att.{name}") for z, name in names.items())
    y, states = ops.wkv6(heads(r), heads(k), heads(v), p["att.time_decay"], p[HEADS], wkv.swapaxes(-1, -2))
    w, b = p["att.ln_x.weight"].reshape(H, N), p["att.ln_x.bias"].reshape(H, N)
    normed, gate = ops.layernorm(y / DIVISOR, w, b, LN_X_EPS), g * ops.sigmoid(g)
    out = p.linear(normed.reshape(B, T, C) * gate, "att.output")
    if trace is not None:
        trace.update(r=r, k=k, v=v, gate=gate, wkv=y, ln_x=normed, att_out=out, wkv_state=states[-1].swapaxes(-1, -2))
    return out, x[:, -1], states[-1].swapaxes(-1, -2), v_first


def channel_mix(p, x, shift):
    """(output, last shift)"""
    value = p.linear(ops.relu2(p.linear(mix(p, x, shift, "ffn.time_mix_k"), "ffn.key")), "ffn.value")
    return ops.sigmoid(p.linear(mix(p, x, shift, "ffn.time_mix_r"), "ffn.receptance")) * value, x[:, -1]
