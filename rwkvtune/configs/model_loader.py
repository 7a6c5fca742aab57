"""Configuration files of released models: one JSON object each, found by name or by path.

{"architecture_version": "rwkv7", "model_name": ..., "description": ..., "model_file": path or null,
 "architecture": {"n_layer", "n_embd", "vocab_size", "head_size_a", optionally "ctx_len" (4096)},
 "lora_dims": {"dim_att_lora", "dim_gate_lora", "dim_mv_lora"},
 "training": {"recommended_ctx_len" (1024), "recommended_batch_size" (4), "recommended_lr" (1e-4)}}

Required are architecture_version, architecture and lora_dims with their fields; a low-rank width of 0 follows the
version's rule.  Run as a script, this module lists the configurations that come with the package.
"""

import os
import sys
from pathlib import Path

# Absolute imports, so that `python rwkvtune/configs/model_loader.py` works as `python -m` does.
from rwkvtune.config import ModelConfig
from rwkvtune.configs.json_object import JsonObject

_BUILTIN = Path(__file__).resolve().parent / "models"
_VERSIONS = {"rwkv5": "x052", "rwkv6": "x060", "rwkv7": "x070"}
_SIZES = ("n_layer", "n_embd", "vocab_size", "head_size_a")
_LOW_RANK = ("dim_att_lora", "dim_gate_lora", "dim_mv_lora")


def list_available_models(config_dir=None):
    """dict: full name ("rwkv7-1.5b"), and short name ("1.5b") where only one architecture has it -> path of the file.

    config_dir: directory of *.json files (default: those of the package); one that does not exist gives {}.
    """
    files = {path.stem: str(path) for path in sorted(Path(config_dir or _BUILTIN).absolute().glob("*.json"))}
    short = {}
    for stem in files:
        short.setdefault(stem.partition("-")[2], []).append(stem)
    unique = {name: files[stems[0]] for name, stems in short.items() if name and len(stems) == 1}
    return {**unique, **files}


def _find(name, config_dir, default_arch):
    """(path, source) of a configuration name."""
    if "/" in name or os.sep in name or name.endswith(".json"):
        path = os.path.abspath(name)
        if not os.path.exists(path):
            raise FileNotFoundError(f"Config file not found: {path}")
        return path, f"file:{path}"
    models = list_available_models(config_dir)
    full = f"{default_arch}-{name}"
    is_full = name in models and Path(models[name]).stem == name
    for key in (name,) if is_full else (full, name):
        if key in models:
            return models[key], f"builtin:{name if name in models else full}"
    several = [key for key in models if key.partition("-")[2] == name]
    if several:
        raise ValueError(
            f"Configuration {name!r} is ambiguous: {', '.join(several)}; give one of these, or default_arch"
        )
    raise FileNotFoundError(
        f"Configuration not found: {name!r}\nAvailable configs: {sorted(models)}\nOr provide the full path to a configuration file"
    )


def _fields(file):
    """dict: the fields of `ModelConfig` that a file gives.  Raises FormatError naming file, line and field."""
    version = file.get("architecture_version", str)
    for section in ("architecture", "lora_dims"):
        file.get(section, dict)
    file.get("training", dict, {})
    weights = None if file.values.get("model_file") is None else file.get("model_file", str)
    return {
        "architecture_version": version, "model_type": _VERSIONS.get(version, version), "model_file": weights or None,
        "model_name": file.get("model_name", str, "Unknown"), "description": file.get("description", str, ""),
        **{name: file.get(f"architecture.{name}", int, low=1) for name in _SIZES},
        "ctx_len": file.get("architecture.ctx_len", int, 4096, low=1),
        **{name: file.get(f"lora_dims.{name}", int, low=0) for name in _LOW_RANK},
        "recommended_ctx_len": file.get("training.recommended_ctx_len", int, 1024, low=1),
        "recommended_batch_size": file.get("training.recommended_batch_size", int, 4, low=1),
        "recommended_lr": file.get("training.recommended_lr", float, 1e-4, low=0),
    }  # fmt: skip


def load_model_config(config_identifier, config_dir=None, default_arch="rwkv7"):
    """The configuration of a model.

    config_identifier: short name ("1.5b"), full name ("rwkv7-1.5b"), or a path: anything with a slash or ending in
    .json, as it is seen from the working directory.  config_dir: where names are looked up (default: in the package).
    default_arch: architecture of a short name; a short name that only one other architecture has is found as well.
    Returns `ModelConfig`; its `config_source` tells where it came from, `config_dict` holds the file, fields unknown
    here included.  Raises FileNotFoundError (with what there is), ValueError (an ambiguous short name), FormatError
    (naming file, line and field), OSError.

    >>> config = load_model_config("0.1b")
    >>> config.n_layer, config.n_embd, config.config_source
    (12, 768, 'builtin:0.1b')
    """
    path, source = _find(os.fspath(config_identifier), config_dir, default_arch)
    file = JsonObject(path)
    fields = _fields(file)
    try:
        return ModelConfig(config_source=source, config_dict=file.values, **fields)
    except ValueError as error:  # its message begins with the name of the field
        name = str(error).split()[0]
        raise file.error(f"architecture.{name}" if name in _SIZES else name, error) from error


def print_model_info(config):
    """Print a configuration for people."""
    line = "=" * 80
    print(f"{line}\nModel Config: {config.model_name}\n{line}")
    print(
        f"Architecture version: {config.architecture_version}\nConfig source: {config.config_source}\nDescription: {config.description}"
    )
    print(f"Model file: {config.model_file or '(not specified, use --load_model parameter)'}\n")
    print(
        f"Architecture params:\n  n_layer: {config.n_layer}\n  n_embd: {config.n_embd}\n  vocab_size: {config.vocab_size}"
    )
    print(f"  head_size: {config.head_size_a}\n  n_head: {config.n_embd // config.head_size_a}\n")
    print(
        f"LORA dimensions:\n  dim_att_lora: {config.dim_att_lora}\n  dim_gate_lora: {config.dim_gate_lora}\n  dim_mv_lora: {config.dim_mv_lora}\n"
    )
    print(
        f"Recommended training config:\n  ctx_len: {config.recommended_ctx_len}\n  batch_size: {config.recommended_batch_size}"
    )
    print(f"  learning_rate: {config.recommended_lr}\n{line}")


def _self_test():
    """Reads every configuration of the package and shows one; returns the exit code."""
    models = list_available_models()
    print("Available models:")
    for name in sorted(models):
        print(f"  {name:12} {load_model_config(name).model_name:16} {models[name]}")
    print("\nExamples:")
    for identifier in ("1.5b", "rwkv7-0.1b", models["rwkv7-0.4b"]):
        config = load_model_config(identifier)
        print(f"  load_model_config({identifier!r})  ->  {config.summary()} ({config.config_source})")
    print()
    print_model_info(load_model_config("0.1b"))
    return 0


if __name__ == "__main__":
    sys.exit(_self_test())
