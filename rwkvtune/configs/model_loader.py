"""Configuration files of released models: one JSON object each, found by name or by path.

{"architecture_version": "rwkv7", "model_name": ..., "description": ..., "model_file": path or null,
 "architecture": {"n_layer", "n_embd", "vocab_size", "head_size_a", optionally "ctx_len" (4096)},
 "lora_dims": {"dim_att_lora", "dim_gate_lora", "dim_mv_lora"},
 "training": {"recommended_ctx_len" (1024), "recommended_batch_size" (4), "recommended_lr" (1e-4)}}
"""

import json
import os
from pathlib import Path

from ..config import ModelConfig
from ..errors import FormatError

_BUILTIN = Path(__file__).resolve().parent / "models"
_VERSIONS = {"rwkv5": "x052", "rwkv6": "x060", "rwkv7": "x070"}
_REQUIRED = {
    "architecture": ("n_layer", "n_embd", "vocab_size", "head_size_a"),
    "lora_dims": ("dim_att_lora", "dim_gate_lora", "dim_mv_lora"),
}
_RECOMMENDED = ("recommended_ctx_len", "recommended_batch_size", "recommended_lr")


def list_available_models(config_dir=None):
    """dict: full name ("rwkv7-1.5b"), and short name ("1.5b") where only one architecture has it -> path of the file.

    config_dir: directory of *.json files (default: the ones that come with the package).
    """
    files = {path.stem: str(path) for path in sorted(Path(config_dir or _BUILTIN).glob("*.json"))}
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


def _section(raw, name, path):
    section = raw.get(name)
    if not isinstance(section, dict):
        raise FormatError(f"{path}: the field {name!r} is missing or is not an object")
    for field in _REQUIRED[name]:
        if isinstance(section.get(field), bool) or not isinstance(section.get(field), int):
            raise FormatError(f"{path}: {name}.{field} is {section.get(field)!r}; it must be an integer")
    return section


def load_model_config(config_identifier, config_dir=None, default_arch="rwkv7"):
    """The configuration of a model.

    config_identifier: short name ("1.5b"), full name ("rwkv7-1.5b"), or a path: anything with a slash or ending in
    .json.  config_dir: where names are looked up.  default_arch: architecture of a short name that several have.
    Returns `ModelConfig`.  Raises FileNotFoundError (with what there is), ValueError (an ambiguous short name),
    FormatError (file, field or position).

    >>> config = load_model_config("0.1b")
    >>> config.n_layer, config.n_embd, config.config_source
    (12, 768, 'builtin:0.1b')
    """
    path, source = _find(os.fspath(config_identifier), config_dir, default_arch)
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise FormatError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("architecture_version"), str):
        raise FormatError(f"{path}: the field 'architecture_version' is missing or is not a string, e.g. \"rwkv7\"")
    arch, lora, training = (
        _section(raw, "architecture", path),
        _section(raw, "lora_dims", path),
        raw.get("training") or {},
    )
    version = _VERSIONS.get(raw["architecture_version"], raw["architecture_version"])
    try:
        return ModelConfig(
            model_type=version, ctx_len=arch.get("ctx_len", 4096), architecture_version=raw["architecture_version"],
            model_name=raw.get("model_name", "Unknown"), description=raw.get("description", ""), model_file=raw.get("model_file"),
            config_source=source, config_dict=raw, **{name: arch[name] for name in _REQUIRED["architecture"]},
            **{name: lora[name] for name in _REQUIRED["lora_dims"]}, **{name: training[name] for name in _RECOMMENDED if name in training},
        )  # fmt: skip
    except ValueError as error:
        raise FormatError(f"{path}: {error}") from error


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
