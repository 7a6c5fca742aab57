"""A transformer in float64 NumPy: pre-norm blocks of causal attention and an MLP, built from `ops`.

params: checkpoint name -> array in the checkpoint's shape. Every layer is of this kind.
"""

import numpy as np

from . import ops

LN_EPS = 1e-5


def forward(params, ids, head_size, rope):
    """Logits (B,T,V) of sequences from their first token; heads of keys are as many as k_proj has rows for."""
    params = {name: np.asarray(value, dtype=np.float64) for name, value in params.items()}
    B, T = np.shape(ids)

    def norm(x, name):
        return ops.layernorm(x, params[name + ".weight"], params[name + ".bias"], LN_EPS)

    def heads(x, name):
        return (x @ params[name + ".weight"].T).reshape(B, T, -1, head_size)

    def turned(x):
        angles = ops.rope_angles(0, T, head_size)
        return ops.rope(x, np.cos(angles), np.sin(angles)) if rope else x

    x = params["emb.weight"][ids]
    if "blocks.0.ln0.weight" in params:
        x = norm(x, "blocks.0.ln0")
    for layer in range(1 + max(int(name.split(".")[1]) for name in params if name.startswith("blocks."))):
        at = f"blocks.{layer}."
        h = norm(x, at + "ln1")
        q, k, v = (heads(h, f"{at}att.{name}_proj") for name in "qkv")
        y, _ = ops.attention(turned(q), turned(k), v, 0)
        x = x + y.reshape(B, T, -1) @ params[at + "att.o_proj.weight"].T
        h = ops.gelu(norm(x, at + "ln2") @ params[at + "ffn.fc.weight"].T)
        x = x + h @ params[at + "ffn.proj.weight"].T
    return norm(x, "ln_out") @ params["head.weight"].T
