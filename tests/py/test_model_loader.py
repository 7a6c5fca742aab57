"""Model configuration files: names, paths, fields, what is wrong in a file, printing.  S0-NN: row of docs/configuration.md."""

import json
import os
import subprocess
import sys

import pytest

import rwkvtune
from rwkvtune import FormatError, ModelConfig, configs
from rwkvtune.configs import model_loader
from rwkvtune.configs.model_loader import list_available_models, load_model_config, print_model_info

# S0-41..46: n_layer, n_embd, attention, gate and value width, ctx_len, recommended ctx_len, batch size and lr, name
BUILTIN = {
    "0.1b": (12, 768, 64, 128, 32, 4096, 1024, 8, 3e-4, "RWKV7-0.1B"),
    "0.4b": (24, 1024, 64, 128, 32, 4096, 1024, 4, 1e-4, "RWKV7-0.4B"),
    "1.5b": (24, 2048, 96, 256, 64, 4096, 1024, 2, 1e-5, "RWKV7-1.5B"),
    "2.9b": (32, 2560, 96, 320, 64, 4096, 1024, 1, 5e-6, "RWKV7-2.9B"),
    "7.2b": (32, 4096, 128, 480, 96, 4096, 512, 1, 1e-6, "RWKV7-G0-7.2B"),
    "13.3b": (61, 4096, 192, 384, 128, 8192, 512, 1, 1e-6, "RWKV7-G0B-13.3B"),
}
SEVEN = ["n_layer", "n_embd", "vocab_size", "head_size_a", "dim_att_lora", "dim_gate_lora", "dim_mv_lora"]


def raw_config(**changes):
    """A whole configuration; a change "section.name" is of that section, the value `...` removes a field."""
    raw = {"architecture_version": "rwkv7", "architecture": {"n_layer": 2, "n_embd": 64, "vocab_size": 100, "head_size_a": 64},
           "lora_dims": {"dim_att_lora": 8, "dim_gate_lora": 16, "dim_mv_lora": 24}}  # fmt: skip
    for field, value in changes.items():
        section, _, name = field.rpartition(".")
        place = raw.setdefault(section, {}) if section else raw
        place[name] = value
        if value is ...:
            del place[name]
    return raw


def write_config(directory, name, **changes):
    path = directory / f"{name}.json"
    path.write_text(json.dumps(raw_config(**changes), indent=1), encoding="utf-8")
    return path


# ---- names ----


@pytest.mark.parametrize("name", BUILTIN)
def test_builtin_models_by_short_and_full_name(name):
    """S0-22..24, S0-26, S0-29, S0-41..46"""
    for identifier in (name, f"rwkv7-{name}"):
        c = load_model_config(identifier)
        found = (c.n_layer, c.n_embd, c.dim_att_lora, c.dim_gate_lora, c.dim_mv_lora, c.ctx_len, c.recommended_ctx_len,
                 c.recommended_batch_size, c.recommended_lr, c.model_name)  # fmt: skip
        assert found == BUILTIN[name]
        assert c.config_source == f"builtin:{identifier}"
        assert (c.architecture_version, c.model_type, c.vocab_size, c.head_size_a) == ("rwkv7", "x070", 65536, 64)
        assert c.model_path is None and c.model_file is None and c.description


@pytest.mark.parametrize("name, count", [("0.1b", 191034624), ("0.4b", 450767872)])
def test_parameters_of_the_builtin_models(name, count):
    """S0-41..42: without the value residual of layer 0, which it never uses; the checkpoints carry it or not."""
    config = load_model_config(name)
    extra = config.n_embd * (2 * config.dim_mv_lora + 1)  # v0, v1, v2 of a layer
    model = rwkvtune.RWKV.__new__(rwkvtune.RWKV)
    model._build(config, "cpu", "fp32", "cpu")  # the weights stay untouched pages
    assert model.num_parameters in (count, count + extra)


def test_search_order(tmp_path):
    """S0-27, S0-29, S0-39, S0-51: full name, default architecture, the only one of that name, otherwise ambiguous"""
    for name in ("rwkv7-1.0b", "rwkv8-1.0b", "rwkv8-3b", "plain", "rwkv7-plain"):
        write_config(tmp_path, name, architecture_version=name.split("-")[0], description=name)

    def found(*arguments, **more):
        config = load_model_config(*arguments, config_dir=tmp_path, **more)
        return config.description, config.config_source

    assert found("rwkv8-1.0b") == ("rwkv8-1.0b", "builtin:rwkv8-1.0b")
    assert found("1.0b") == ("rwkv7-1.0b", "builtin:rwkv7-1.0b")
    assert found("1.0b", default_arch="rwkv8") == ("rwkv8-1.0b", "builtin:rwkv8-1.0b")
    assert found("3b") == ("rwkv8-3b", "builtin:3b")
    assert found("plain") == ("plain", "builtin:plain")
    with pytest.raises(ValueError, match="rwkv7-1.0b.*rwkv8-1.0b.*default_arch"):
        found("1.0b", default_arch="rwkv9")


def test_listing(tmp_path):
    """S0-28"""
    names = sorted([*BUILTIN, *(f"rwkv7-{name}" for name in BUILTIN)])
    assert sorted(list_available_models()) == names
    assert all(os.path.isabs(path) and path.endswith(".json") for path in list_available_models().values())
    for name in ("rwkv7-1.0b", "rwkv8-1.0b", "rwkv7-g1-3b", "plain"):
        write_config(tmp_path, name)
    (tmp_path / "notes.txt").write_text("not a configuration")
    assert sorted(list_available_models(tmp_path)) == ["g1-3b", "plain", "rwkv7-1.0b", "rwkv7-g1-3b", "rwkv8-1.0b"]
    assert list_available_models(tmp_path / "none") == {}


def test_paths(tmp_path, monkeypatch):
    """S0-25, S0-29, S0-30: a slash or .json makes a path, seen from the working directory"""
    path = write_config(tmp_path, "rwkv7-0.1b", model_name="Mine")
    monkeypatch.chdir(tmp_path)
    for identifier in (str(path), path, "./rwkv7-0.1b.json", "rwkv7-0.1b.json"):
        config = load_model_config(identifier)
        assert (config.model_name, config.config_source) == ("Mine", f"file:{path}")
    assert load_model_config("rwkv7-0.1b").model_name == "RWKV7-0.1B"
    with pytest.raises(FileNotFoundError) as error:
        load_model_config("~/x.json")
    assert str(error.value) == f"Config file not found: {tmp_path}/~/x.json"


def test_unknown_name_tells_what_there_is():
    """S0-31"""
    with pytest.raises(FileNotFoundError) as error:
        load_model_config("unknown-model")
    names = ["0.1b", "0.4b", "1.5b", "13.3b", "2.9b", "7.2b"]
    assert str(error.value).splitlines() == [
        "Configuration not found: 'unknown-model'",
        f"Available configs: {[*names, *(f'rwkv7-{name}' for name in names)]}",
        "Or provide the full path to a configuration file",
    ]


# ---- fields ----


def test_optional_fields(tmp_path):
    """S0-09, S0-14..20: defaults, and values given"""
    c = load_model_config(write_config(tmp_path, "least"))
    assert (c.ctx_len, c.model_file, c.model_path, c.model_name, c.description) == (4096, None, None, "Unknown", "")
    assert (c.recommended_ctx_len, c.recommended_batch_size, c.recommended_lr) == (1024, 4, 1e-4)
    given = {"architecture.ctx_len": 512, "model_file": "/w.pth", "model_name": "Läufer", "description": "text",
             "training": {"recommended_ctx_len": 256, "recommended_batch_size": 3, "recommended_lr": 1}}  # fmt: skip
    c = load_model_config(write_config(tmp_path, "all", **given))
    assert (c.ctx_len, c.model_file, c.model_path, c.model_name, c.description) == (512, "/w.pth", "/w.pth", "Läufer", "text")  # fmt: skip
    assert (c.recommended_ctx_len, c.recommended_batch_size, c.recommended_lr) == (256, 3, 1)
    assert load_model_config(write_config(tmp_path, "null", model_file=None)).model_path is None


def test_unknown_fields_are_kept(tmp_path):
    """S0-01, S0-21: any architecture is carried along, as are fields this package does not know"""
    path = write_config(tmp_path, "new", architecture_version="rwkv8", licence="CC0")
    config = load_model_config(path)
    assert (config.architecture_version, config.model_type) == ("rwkv8", "rwkv8")
    assert config.config_dict == json.loads(path.read_text()) and config.config_dict["licence"] == "CC0"


def test_low_rank_widths(tmp_path):
    """S0-10..13: the attention width is both the decay's and the in-context rate's"""
    layer = load_model_config(write_config(tmp_path, "c")).layer_list()[1]
    assert (layer["d_decay"], layer["d_aaa"], layer["d_gate"], layer["d_mv"]) == (8, 8, 16, 24)


REQUIRED = ["architecture_version", "architecture", "lora_dims", *(f"architecture.{name}" for name in SEVEN[:4]),
            *(f"lora_dims.{name}" for name in SEVEN[4:])]  # fmt: skip


@pytest.mark.parametrize("field", REQUIRED)
def test_missing_field(tmp_path, field):
    """S0-03..08, S0-10..13, S0-21"""
    path = write_config(tmp_path, "c", **{field: ...})
    with pytest.raises(FormatError) as error:
        load_model_config(path)
    section = field.rpartition(".")[0]
    line = next((n for n, text in enumerate(path.read_text().splitlines(), 1) if section and f'"{section}"' in text), 1)
    assert str(error.value).startswith(f"{path}:{line}: the field {field!r} is missing; it must be a")


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("architecture_version", 7, "7; it must be a string"),
        ("architecture", [1], "[1]; it must be an object"),
        ("lora_dims", None, "null; it must be an object"),
        ("training", "fast", '"fast"; it must be an object'),
        ("model_file", 3, "3; it must be a string"),
        ("model_name", None, "null; it must be a string"),
        ("description", {}, "{}; it must be a string"),
        ("architecture.n_layer", True, "true; it must be an integer"),
        ("architecture.n_layer", 0, "0; it must be at least 1"),
        ("architecture.n_embd", "64", '"64"; it must be an integer'),
        ("architecture.vocab_size", 65536.0, "65536.0; it must be an integer"),
        ("architecture.ctx_len", None, "null; it must be an integer"),
        ("lora_dims.dim_mv_lora", -1, "-1; it must be at least 0"),
        ("training.recommended_ctx_len", "1k", '"1k"; it must be an integer'),
        ("training.recommended_batch_size", 0, "0; it must be at least 1"),
        ("training.recommended_lr", "1e-4", '"1e-4"; it must be a number'),
    ],
)
def test_mistyped_field(tmp_path, field, value, said):
    """S0-02..21: file, line, field, value and what it must be"""
    path = write_config(tmp_path, "c", **{field: value})
    with pytest.raises(FormatError) as error:
        load_model_config(path)
    name = field.rpartition(".")[2]
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if f'"{name}"' in text)
    assert str(error.value) == f"{path}:{line}: the field {field!r} is {said}"


def test_sizes_that_make_no_model(tmp_path):
    path = write_config(tmp_path, "c", **{"architecture.head_size_a": 48})
    with pytest.raises(FormatError, match=r"c\.json:7: head_size_a is 48.*must divide n_embd, 64"):
        load_model_config(path)


@pytest.mark.parametrize(
    "text, said",
    [
        (b'{"a": 1,\n  oops}', r":2:3: not valid JSON"),
        (b'{\n "a": 1, // a comment\n}', r":2:10: not valid JSON"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": 1, "a": 2}', "'a' is there twice"),
        (b"[1, 2]", ":1: the file must hold one JSON object"),
        (b"", ":1:1: not valid JSON"),
        (b'{"a":\n "\xff"}', ":2: not UTF-8 text: byte 0xff"),
        (b"[" * 100000, "not valid JSON"),
    ],
)
def test_files_that_are_not_json(tmp_path, text, said):
    """S0-02: strict JSON in UTF-8, file, line and column in the message"""
    (tmp_path / "c.json").write_bytes(text)
    with pytest.raises(FormatError, match=said) as error:
        load_model_config(str(tmp_path / "c.json"))
    assert str(error.value).startswith(f"{tmp_path / 'c.json'}:")


def test_lines_in_any_layout(tmp_path):
    """Arrays, escapes and nested objects before a field do not move its line."""
    path = tmp_path / "c.json"
    path.write_text('{"x": [{"n_layer": 1},\n "}\\"{"], "y": {}, "z": {"architecture": {\n"n_layer": 1}},\n "architecture" :\n'
                    '{ "vocab_size": 5 , \n "\\u006e_layer": "two"}, "architecture_version": "rwkv7", "lora_dims": {}}')  # fmt: skip
    with pytest.raises(FormatError, match=r"c\.json:6: the field 'architecture.n_layer' is \"two\""):
        load_model_config(path)


# ---- what a configuration offers ----


def test_attributes_and_training_parameters():
    """S0-47, S0-48"""
    config = load_model_config("1.5b")
    assert type(config) is ModelConfig is model_loader.ModelConfig is configs.ModelConfig
    train = config.to_train_config_dict()
    assert list(train) == SEVEN and list(train.values()) == [24, 2048, 65536, 64, 96, 256, 64]
    again = ModelConfig(model_type="x070", **train)
    assert again.layer_list() == config.layer_list()
    with pytest.raises(AttributeError):
        config.model_path = "elsewhere"


def test_names_are_exported():
    """S0-22"""
    for name in ("load_model_config", "list_available_models", "print_model_info"):
        assert getattr(configs, name) is getattr(rwkvtune, name) is getattr(model_loader, name)
    with pytest.raises(AttributeError, match="nothing"):
        configs.nothing  # noqa: B018


def test_print_model_info(capsys, tmp_path):
    """S0-49"""
    path = write_config(tmp_path, "rwkv8-1.0b", architecture_version="rwkv8", model_name="Mine", description="d", model_file="/w.pth",
                        training={"recommended_lr": 1e-05, "recommended_batch_size": 2})  # fmt: skip
    print_model_info(load_model_config(path))
    line = "=" * 80
    assert capsys.readouterr().out == (
        f"{line}\nModel Config: Mine\n{line}\nArchitecture version: rwkv8\nConfig source: file:{path}\nDescription: d\n"
        "Model file: /w.pth\n\nArchitecture params:\n  n_layer: 2\n  n_embd: 64\n  vocab_size: 100\n  head_size: 64\n  n_head: 1\n\n"
        "LORA dimensions:\n  dim_att_lora: 8\n  dim_gate_lora: 16\n  dim_mv_lora: 24\n\n"
        f"Recommended training config:\n  ctx_len: 1024\n  batch_size: 2\n  learning_rate: 1e-05\n{line}\n"
    )
    print_model_info(load_model_config("0.1b"))
    assert "Model file: (not specified, use --load_model parameter)\n" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["-m", "rwkvtune.configs.model_loader"], [model_loader.__file__]])
def test_module_as_a_script(command):
    """S0-55: lists the configurations and prints examples"""
    done = subprocess.run([sys.executable, "-W", "error", *command], check=False, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert all(f"  rwkv7-{name} " in done.stdout for name in BUILTIN)
    assert "load_model_config('1.5b')" in done.stdout and "Model Config: RWKV7-0.1B" in done.stdout
