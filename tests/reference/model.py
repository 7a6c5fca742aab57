"""A whole model in float64 NumPy: the blocks of any version around the mixes of `rwkv5`, `rwkv6` and `rwkv7`.

params: checkpoint name -> array in the checkpoint's shape. States are dicts of
att_shift (L,B,C), wkv (L,B,H,N,N) with axes (value, key), ffn_shift (L,B,C).
"""

import numpy as np

from . import ops, rwkv5, rwkv6, rwkv7

LN_EPS = 1e-5
KNOWN_BY = {"att.r_k": rwkv7, "att.time_maa_x": rwkv6, "att.time_mix_g": rwkv5}


def version_of(params, layer):
    """The module of a block's version, told by a parameter that only it has."""
    return next(module for name, module in KNOWN_BY.items() if f"blocks.{layer}.{name}" in params)


def zero_state(params, batch):
    """The state before the first token: zeros, or the trained `time_state` of each layer."""
    H, N = params["blocks.0." + version_of(params, 0).HEADS].shape
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
        p, seen, version = Layer(params, layer), None if trace is None else {}, version_of(params, layer)
        h = p.norm(x, "ln1")
        out, after["att_shift"][layer], after["wkv"][layer], v_first = version.time_mix(
            p, h, state["att_shift"][layer], state["wkv"][layer], v_first, seen
        )
        x = x + out
        h2 = p.norm(x, "ln2")
        out2, after["ffn_shift"][layer] = version.channel_mix(p, h2, state["ffn_shift"][layer])
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
