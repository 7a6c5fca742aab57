"""Which RWKV a file holds, told from the names and shapes of its tensors.

| version | its time mix is known by | its channel mix by |
|---|---|---|
| x070 | att.r_k, a1, k_k or x_r | ffn.x_k |
| x060 | att.time_maa_x or time_decay_w1 | ffn.time_maa_k |
| x052 | att.time_faaaa with time_mix_g or gate.weight, time_decay of two axes (H,N), N > 1 | ffn.time_mix_k |
| attention | att.q_proj.weight | mlp: ffn.fc.weight |

Each block is looked at by itself, so a hybrid is the ordinary case.  Sizes are read and never derived from a rule,
since published files follow several rules.  What weights do not tell is None: the context length, and the head
size and RoPE of attention.
"""

import math
import os
import re

from ..errors import FormatError

_BLOCK = re.compile(r"blocks\.(\d{1,9})\.(.+)", re.DOTALL)
_TIME_MIX = (
    ("x070", ("att.r_k", "att.a1", "att.k_k", "att.x_r")),
    ("x060", ("att.time_maa_x", "att.time_decay_w1")),
    ("attention", ("att.q_proj.weight",)),
)
_CHANNEL_MIX = (
    ("x070", ("ffn.x_k",)),
    ("x060", ("ffn.time_maa_k",)),
    ("x052", ("ffn.time_mix_k",)),
    ("mlp", ("ffn.fc.weight",)),
)
# name of the field -> (kind, tensor, axes it has, axis of the width)
_WIDTHS = {
    "time_mix_extra_dim": ("x060", "att.time_maa_w2", 3, 1),
    "time_decay_extra_dim": ("x060", "att.time_decay_w1", 2, 1),
    "dim_decay_lora": ("x070", "att.w1", 2, 1),
    "dim_aaa_lora": ("x070", "att.a1", 2, 1),
    "dim_mv_lora": ("x070", "att.v1", 2, 1),
    "dim_gate_lora": ("x070", "att.g1", 2, 1),
}
_RESEARCH = (
    ("att.gate_w1", "the research variant x060a"),
    ("att.time_maa_rkvw_w1", "the research variant x060b"),
    ("ffn.s_emb.weight", "an RWKV-8 research variant"),
    ("ffn.aa", "a research variant with a gated channel mix"),
    ("ffnPre.", "a research variant with two channel mixes in block 0"),
    ("tiny_", "a research variant with tiny attention"),
    ("pos_emb_", "a research variant with position embeddings"),
    ("head_q", "a research variant with a copying head"),
    ("head_k", "a research variant with a copying head"),
)
_FOREIGN = (
    ("layers.", "a Hugging Face or FLA checkpoint (its blocks are named layers)"),
    ("rwkv.blocks.", "a Hugging Face checkpoint of RWKV-5 or 6"),
    ("transformer.", "a transformer checkpoint"),
)
_SUPPORTED = "not supported (supported: x052, x060, x070)"
_ADAPTER = (".lora_A", ".lora_B", ".disha", ".miss_block")


def _group(shapes):
    """(tensors per block: {index: {rest of the name: shape}}, the names outside of blocks)."""
    blocks, others = {}, {}
    for name, shape in shapes.items():
        match = _BLOCK.fullmatch(name)
        if match:
            blocks.setdefault(int(match[1]), {})[match[2]] = tuple(shape)
        else:
            others[name] = tuple(shape)
    return blocks, others


def _refuse_others(shapes):
    """Raise for what is no RWKV-5.2, 6 or 7, naming the key that shows it."""
    if any(name.startswith("first/blocks.") for name in shapes):
        raise FormatError(
            "this is the state of a training run and not a model: continue_training=True goes on with it, its weights are"
            " also in the rwkv-*.pth beside it"
        )
    for name in shapes:
        if any(part in name for part in _ADAPTER):
            raise FormatError(f"this is an adapter and not a model ({name[:80]!r}); merge it into its base model first")
        inside = _BLOCK.fullmatch(name)
        rest = inside[2] if inside else name
        for start, kind in _RESEARCH:
            if rest.startswith(start):
                raise FormatError(f"{name[:80]!r} belongs to {kind}, which is {_SUPPORTED}")
        for start, kind in () if inside else _FOREIGN:
            if name.startswith(start):
                raise FormatError(f"{name[:80]!r} belongs to {kind}; convert it to the names of RWKV-LM first")


def _size(tensors, prefix, name, axes, axis):
    """One size of a tensor, which must have `axes` axes."""
    shape = tensors[name]
    if len(shape) != axes:
        raise FormatError(f"{prefix}{name} has shape {shape}; expected {axes} axes")
    return shape[axis]


def _time_mix(index, block):
    for kind, keys in _TIME_MIX:
        if any(key in block for key in keys):
            return kind
    at = f"blocks.{index}."
    if "att.time_first" in block:
        version = "RWKV-5.0 or 5.1" if "att.ln_x.weight" in block else "RWKV-4"
        raise FormatError(f"'{at}att.time_first' belongs to {version}, which is {_SUPPORTED}")
    if "att.time_faaaa" in block and ("att.time_mix_g" in block or "att.gate.weight" in block):
        decay = block.get("att.time_decay", ())
        if len(decay) != 2 or decay[1] <= 1:
            raise FormatError(
                f"'{at}att.time_decay' of shape {decay} belongs to RWKV-5.0 or 5.1, which is {_SUPPORTED}"
            )
        return "x052"
    names = ", ".join(name[:40] for name in sorted(block)[:4])
    raise FormatError(
        f"Cannot detect the version of block {index}: no tensor of a known time mix (it has {names}, ...)"
    )


def _channel_mix(index, block):
    for kind, keys in _CHANNEL_MIX:
        if any(key in block for key in keys):
            return kind
    wanted = ", ".join(key for _, keys in _CHANNEL_MIX for key in keys)
    raise FormatError(f"Cannot detect the channel mix of block {index}: none of {wanted} is there")


def _head_size(index, block, kind):
    """Width of a head, None for attention, whose weights do not tell."""
    name = {"x070": "att.r_k", "x060": "att.time_faaaa", "x052": "att.time_faaaa"}.get(kind)
    if name is None:
        return None
    if name not in block:
        raise FormatError(f"Cannot detect the head size: blocks.{index}.{name} is missing")
    if kind == "x070" and len(block[name]) == 1:
        return 64
    return _size(block, f"blocks.{index}.", name, 2, 1)


def _layer(index, block):
    """Kinds and sizes of one block."""
    at = f"blocks.{index}."
    kind, channel = _time_mix(index, block), _channel_mix(index, block)
    att = "att.q_proj.weight" if kind == "attention" else "att.receptance.weight"
    ffn = "ffn.fc.weight" if channel == "mlp" else "ffn.key.weight"
    for name in (att, ffn):
        if name not in block:
            raise FormatError(f"Cannot detect the sizes of block {index}: {at}{name} is missing")
    sizes = {
        "time_mix": kind,
        "channel_mix": channel,
        "dim_att": _size(block, at, att, 2, 0),
        "dim_ffn": _size(block, at, ffn, 2, 0),
        "head_size_a": _head_size(index, block, kind),
    }
    if kind == "attention":
        sizes["dim_kv"] = _size(block, at, "att.k_proj.weight", 2, 0) if "att.k_proj.weight" in block else None
    return sizes


def _common(layers, field, required):
    """The value of a field that all layers share (those without one aside); without agreement None, or an error."""
    values = {}
    for index, layer in enumerate(layers):
        if layer[field] is not None:
            values.setdefault(layer[field], index)
    if len(values) > 1 and required:
        pairs = ", ".join(f"{value} in block {index}" for value, index in values.items())
        raise FormatError(f"Cannot detect {field}: blocks disagree ({pairs})")
    return next(iter(values)) if len(values) == 1 else None


def _width(field, blocks, layers):
    """A low-rank width, which all blocks of its kind share; None where no block has the tensor."""
    kind, name, axes, axis = _WIDTHS[field]
    found = {}
    for index, layer in enumerate(layers):
        if layer["time_mix"] == kind and name in blocks[index]:
            found.setdefault(_size(blocks[index], f"blocks.{index}.", name, axes, axis), index)
    # Block 0 keeps its value residual tensors for form only; files exist in which their width is another.
    if name == "att.v1" and len(found) > 1:
        found = {width: index for width, index in found.items() if index > 0}
    if len(found) > 1:
        pairs = ", ".join(f"{width} in block {index}" for width, index in found.items())
        raise FormatError(f"Cannot detect {field}: blocks disagree about {name} ({pairs})")
    return next(iter(found), None)


def _embedding(blocks, others):
    """(n_embd, vocab_size)."""
    if "emb.weight" in others:
        n_embd = _size(others, "", "emb.weight", 2, 1)
    else:
        norms = [name for name in ("ln0.weight", "ln1.weight") if name in blocks[0]]
        if not norms:
            raise FormatError("Cannot detect n_embd: no emb.weight or block LN weights found")
        n_embd = _size(blocks[0], "blocks.0.", norms[0], 1, 0)
    for name in ("emb.weight", "head.weight"):
        if name in others:
            return n_embd, _size(others, "", name, 2, 0)
    raise FormatError("Cannot detect vocab_size: no emb.weight or head.weight found")


def detect(shapes):
    """Version and sizes of a model.

    shapes: mapping tensor name -> shape, names as in RWKV-LM (prefixes of wrappers are taken off).
    Returns a dict: n_layer, n_embd, vocab_size, model_type ("x052", "x060", "x070", "attention", or "hybrid" where
    blocks differ), head_size_a, dim_att, dim_ffn (None where blocks differ in it), the low-rank widths dim_decay_lora,
    dim_aaa_lora, dim_mv_lora, dim_gate_lora (x070), time_mix_extra_dim, time_decay_extra_dim (x060), None where there
    is no such tensor; layers: one dict per block with time_mix, channel_mix, dim_att, dim_ffn, head_size_a, and for
    attention dim_kv, the width of all its keys; ln0 (a norm of the embedding), time_state, layer0_value_residual (blocks.0.att.v0, v1, v2): whether they are there; ctx_len: None.
    Raises FormatError: not a model, or a version that is not supported; the message names the key.
    """
    from .lazy_tensor import strip_prefix

    shapes = {strip_prefix(name): shape for name, shape in shapes.items()}
    _refuse_others(shapes)
    blocks, others = _group(shapes)
    if not blocks:
        raise FormatError("Cannot detect n_layer: no 'blocks.N.' keys found")
    n_layer = max(blocks) + 1
    if len(blocks) != n_layer:
        missing = next(index for index in range(n_layer) if index not in blocks)
        raise FormatError(
            f"Cannot detect n_layer: blocks.{n_layer - 1} is there and blocks.{missing} is not; the file is incomplete"
        )
    n_embd, vocab_size = _embedding(blocks, others)
    layers = [_layer(index, blocks[index]) for index in range(n_layer)]
    value_residual = [f"att.{name}" in blocks[0] for name in ("v0", "v1", "v2")]
    if any(value_residual) and not all(value_residual):
        raise FormatError("blocks.0 holds some of att.v0, att.v1, att.v2, but not all three; the file is incomplete")
    return {
        "n_layer": n_layer,
        "n_embd": n_embd,
        "vocab_size": vocab_size,
        "model_type": _model_type(layers),
        "head_size_a": _common(layers, "head_size_a", required=_model_type(layers) != "hybrid"),
        "dim_att": _common(layers, "dim_att", required=False),
        "dim_ffn": _common(layers, "dim_ffn", required=False),
        **{field: _width(field, blocks, layers) for field in _WIDTHS},
        "ctx_len": None,
        "layers": layers,
        "ln0": "ln0.weight" in blocks[0],
        "time_state": any("att.time_state" in block for block in blocks.values()),
        "layer0_value_residual": all(value_residual),
    }


def _model_type(layers):
    """The kind all blocks have, "hybrid" where they differ (attention goes with an mlp)."""
    kinds = {(layer["time_mix"], layer["channel_mix"]) for layer in layers}
    if len(kinds) == 1:
        kind, channel = kinds.pop()
        if channel == {"attention": "mlp"}.get(kind, kind):
            return kind
    return "hybrid"


def precision_of(dtypes):
    """The dtype all floating-point tensors have, in the short form, "mixed" where they differ.  Quantised matrices name a file
    by themselves: what stands beside them is never quantised."""
    from .lazy_tensor import FLOATING, FORMATS, QUANTISED

    dtypes = set(dtypes)
    found = {FORMATS.get(dtype, dtype) for dtype in dtypes & set(QUANTISED) or dtypes & set(FLOATING)}
    return found.pop() if len(found) == 1 else "mixed" if found else None


def inspect_checkpoint(path):
    """What a weight file holds, read from its header alone: immediate for a file of any size.

    path: a `.pth` or `.safetensors` file.
    Returns a `CheckpointInfo`, a dict: checkpoint_path (str), file_size_mb (bytes / 1048576), num_parameters (elements of all tensors),
    keys_sample (the first ten names), and detected_config (as `detect`, plus dtype: "fp32", "bf16", "fp16", "int8", "int4",
    "float64" or "mixed") or, where the tensors are no supported model, detection_error (str).
    Raises FileNotFoundError, FormatError (the file cannot be read), OSError.
    """
    from . import read_checkpoint
    from .info import CheckpointInfo

    if not os.path.exists(path):
        raise FileNotFoundError(f"Checkpoint not found: {path}")
    try:
        checkpoint = read_checkpoint(path)
    except FormatError as error:
        raise FormatError(f"Failed to load checkpoint: {error}") from error
    result = CheckpointInfo({
        "checkpoint_path": os.fspath(path),
        "file_size_mb": os.path.getsize(path) / 1048576,
        "num_parameters": sum(math.prod(shape) for shape in checkpoint.shapes.values()),
        "keys_sample": list(checkpoint)[:10],
    })  # fmt: skip
    try:
        config = detect(checkpoint.shapes)
    except FormatError as error:
        result["detection_error"] = str(error)
    else:
        result["detected_config"] = config | {"dtype": precision_of(checkpoint.dtypes.values())}
    return result
