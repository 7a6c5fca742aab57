"""python bench/peers/gguf_file.py SOURCE.npz TARGET.gguf: an RWKV-7 model as float32 GGUF without a vocabulary, by the `gguf` package.

SOURCE: arrays under RWKV-LM's names and shapes.  Names and layouts of GGUF: those llama.cpp loads as "rwkv7".
"""

import sys

import numpy as np

_LERPS = "rwkvag"
_PLAIN = {"ln1": "attn_norm", "ln2": "attn_norm_2", "att.ln_x": "time_mix_ln", "att.receptance": "time_mix_receptance", "att.key": "time_mix_key",
          "att.value": "time_mix_value", "att.output": "time_mix_output", "ffn.key": "channel_mix_key", "ffn.value": "channel_mix_value"}  # fmt: skip


def layer(weights, number):
    """name in GGUF -> array, of one layer."""
    at, to = f"blocks.{number}.", f"blk.{number}."
    found = {}
    for name, other in _PLAIN.items():
        for end in ("weight", "bias"):
            if f"{at}{name}.{end}" in weights:
                found[f"{to}{other}.{end}"] = weights[f"{at}{name}.{end}"]
    source = {name: weights[f"{at}att.{name}"] for name in ("w0", "w1", "w2", "a0", "a1", "a2", "g1", "g2", "k_k", "k_a", "r_k")}
    for name in ("v0", "v1", "v2"):  # a first layer has none and uses none, but the loader wants some
        source[name] = weights[f"{at}att.{name}"] if number else source["a" + name[1]]
    for name, value in source.items():
        found[f"{to}time_mix_{name}.weight"] = value.T if name[1] in "12" else value.reshape(-1)
    found[f"{to}time_mix_lerp_fused.weight"] = np.stack([weights[f"{at}att.x_{name}"].reshape(1, 1, -1) for name in _LERPS])
    found[f"{to}channel_mix_lerp_k.weight"] = weights[f"{at}ffn.x_k"].reshape(-1)
    return found


def write(weights, target):
    """Writes the file."""
    import gguf

    n_layer = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    vocabulary, channels = weights["emb.weight"].shape
    writer = gguf.GGUFWriter(target, "rwkv7")
    writer.add_name("random")
    writer.add_context_length(1048576)
    writer.add_embedding_length(channels)
    writer.add_block_count(n_layer)
    writer.add_vocab_size(vocabulary)
    writer.add_layer_norm_eps(1e-5)
    writer.add_wkv_head_size(64)
    for name, rank in (("decay", "w1"), ("iclr", "a1"), ("gate", "g1")):
        getattr(writer, f"add_{name}_lora_rank")(weights[f"blocks.0.att.{rank}"].shape[1])
    writer.add_value_residual_mix_lora_rank(weights["blocks.1.att.v1"].shape[1])
    writer.add_feed_forward_length(weights["blocks.0.ffn.key.weight"].shape[0])
    writer.add_head_count(0)
    writer.add_file_type(0)
    writer.add_tokenizer_model("no_vocab")
    tensors = {"token_embd.weight": weights["emb.weight"], "output.weight": weights["head.weight"]}
    for end in ("weight", "bias"):
        tensors |= {f"token_embd_norm.{end}": weights[f"blocks.0.ln0.{end}"], f"output_norm.{end}": weights[f"ln_out.{end}"]}
    for number in range(n_layer):
        tensors |= layer(weights, number)
    for name, value in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(value, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    with np.load(sys.argv[1]) as arrays:
        write(dict(arrays), sys.argv[2])
