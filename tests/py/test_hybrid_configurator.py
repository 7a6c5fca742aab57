"""Which layer is which: the configurator, its rules, and the model configuration that comes of it."""

import json
import math
from types import SimpleNamespace

import pytest

import rwkvtune
from rwkvtune import RWKV, HybridModelConfigurator, ModelConfig
from rwkvtune.hybrid import RWKVArchitectureParams
from rwkvtune.hybrid.configurator import PATTERNS, pattern_indices


def of(num_layers, **more):
    return HybridModelConfigurator(model_config=SimpleNamespace(num_layers=num_layers, **more))


def test_names_are_exported():
    assert rwkvtune.HybridModelConfigurator is HybridModelConfigurator
    for name in rwkvtune.hybrid.__all__:
        assert getattr(rwkvtune.hybrid, name).__name__ == name


def test_default_is_even_rwkv_odd_transformer():
    for configurator in (
        of(6),
        HybridModelConfigurator({"num_layers": 6}),
        HybridModelConfigurator(ModelConfig(model_type="x070", n_layer=6)),
    ):
        assert configurator.rwkv_layer_indices == [0, 2, 4] and configurator.transformer_layer_indices == [1, 3, 5]
    assert HybridModelConfigurator().num_layers == 12
    params = RWKVArchitectureParams(hybrid_attention_ratio=0.25)
    assert HybridModelConfigurator({"num_layers": 8}, params).get_layer_distribution()["transformer_percentage"] == 25.0


def test_a_configuration_that_says_it_is_the_beginning():
    assert of(4, rwkv_layer_indices=[3, 1]).rwkv_layer_indices == [1, 3]
    config = ModelConfig(model_type="x070", layers=["attention", "x070", "x070"])
    assert HybridModelConfigurator(config).rwkv_layer_indices == [1, 2]
    with pytest.raises(ValueError, match="rwkv_layer_indices holds 4; this model's layers are 0 to 3"):
        of(4, rwkv_layer_indices=[4])


@pytest.mark.parametrize(
    "rwkv, transformer, words",
    [
        ([0, 1], [3], "layer 2 is in neither list"),
        ([0, 1, 2], [2, 3], "layer 2 is in both"),
        ([0, 1, 1], [2, 3], "rwkv_layer_indices holds layer 1 twice"),
        ([0, 1], [2, 3, 3], "transformer_layer_indices holds layer 3 twice"),
        ([0, 1], [2, 4], "transformer_layer_indices holds 4; this model's layers are 0 to 3"),
        ([-1, 1], None, "rwkv_layer_indices holds -1"),
        ([0, 0, 5], [1], "5"),
        ([0, 1.0], None, "holds 1.0; layer numbers are integers"),
        ([True], None, "holds True"),
        (3, None, "rwkv_layer_indices is 3; it must be a list"),
    ],
)
def test_what_is_no_division_of_the_layers_is_refused(rwkv, transformer, words):
    configurator = of(4, rwkv_layer_indices=[0])
    with pytest.raises(ValueError, match=words):
        configurator.configure_layer_architecture(rwkv_layer_indices=rwkv, transformer_layer_indices=transformer)
    assert configurator.rwkv_layer_indices == [0] and configurator.model_config.rwkv_layer_indices == [0]


def test_one_list_is_enough_and_ranges_are_lists():
    configurator = of(32)
    configurator.configure_layer_architecture(rwkv_layer_indices=range(16, 32), transformer_layer_indices=range(0, 16))
    assert configurator.rwkv_layer_indices == list(range(16, 32))
    configurator.configure_layer_architecture(transformer_layer_indices=[0, 31])
    assert configurator.rwkv_layer_indices == list(range(1, 31))
    configurator.configure_layer_architecture(rwkv_layer_indices=[])
    assert configurator.transformer_layer_indices == list(range(32))
    configurator.configure_layer_architecture()
    assert configurator.rwkv_layer_indices == list(range(0, 32, 2))


def test_deeper_layers_of_a_smaller_model_are_out_of_range():
    with pytest.raises(ValueError, match="holds 20; this model's layers are 0 to 19"):
        of(20).configure_layer_architecture(rwkv_layer_indices=range(16, 32), transformer_layer_indices=range(0, 16))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("num_layers", [1, 2, 7, 30, 32])
@pytest.mark.parametrize("ratio", [0, 0.1, 0.5, 0.75, 1])
def test_patterns_hold_their_share(pattern, num_layers, ratio):
    indices = pattern_indices(pattern, num_layers, ratio)
    assert len(indices) == math.ceil(round(ratio * num_layers, 9))
    assert indices == sorted(set(indices)) and all(0 <= i < num_layers for i in indices)


def test_patterns():
    wanted = {"alternating": [0, 2, 4, 6], "block": [2, 3, 4, 5], "deepstart": [0, 1, 2, 3], "deepend": [4, 5, 6, 7]}
    configurator = of(8)
    for pattern, indices in wanted.items():
        configurator.configure_layer_architecture(pattern=pattern)
        assert configurator.rwkv_layer_indices == indices
    configurator.configure_layer_architecture(pattern="deepend", rwkv_ratio=0.25)
    assert configurator.rwkv_layer_indices == [6, 7]
    for wrong, words in (({"pattern": "spiral"}, "pattern is 'spiral'; allowed are alternating"), ({"pattern": "block", "rwkv_ratio": 1.5}, "rwkv_ratio is 1.5"),
                         ({"pattern": "block", "rwkv_layer_indices": [0]}, "either pattern or lists")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            configurator.configure_layer_architecture(**wrong)


@pytest.mark.parametrize(
    "num_layers, seq_length, rwkv",
    [
        (32, 8192, [1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14, 16, 17, 18, 19, 21, 22, 23]),
        (20, 16384, list(range(16))),
        (20, 2048, list(range(8))),
        (20, 2049, [1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14]),
        (20, 8193, list(range(16))),
        (1, 100_000, []),
    ],
)
def test_sequence_length(num_layers, seq_length, rwkv):
    configurator = of(num_layers)
    assert configurator.optimize_for_sequence_length(seq_length=seq_length) is configurator
    assert configurator.rwkv_layer_indices == rwkv


def test_sequence_length_default_and_errors():
    assert (
        of(32).optimize_for_sequence_length().rwkv_layer_indices
        == of(32).optimize_for_sequence_length(8192).rwkv_layer_indices
    )
    for wrong in (0, -5, 1.5, "8k", True):
        with pytest.raises(ValueError, match="seq_length"):
            of(4).optimize_for_sequence_length(wrong)


def test_distribution_has_every_key():
    configurator = of(5)
    assert configurator.get_layer_distribution() == {
        "total_layers": 5, "rwkv_layers": 3, "transformer_layers": 2, "rwkv_percentage": 60.0, "transformer_percentage": 40.0,
        "rwkv_indices": [0, 2, 4], "transformer_indices": [1, 3],
    }  # fmt: skip
    assert [configurator.get_layer_type(i) for i in range(5)] == ["rwkv", "transformer"] * 2 + ["rwkv"]
    for wrong in (5, -1, "0"):
        with pytest.raises(ValueError, match="layer"):
            configurator.get_layer_type(wrong)


def test_configuration_is_updated_where_it_has_the_field():
    with_field, without = of(4, rwkv_layer_indices=[0]), of(4)
    for configurator in (with_field, without):
        configurator.configure_layer_architecture(rwkv_layer_indices=[1, 2])
        assert configurator.update_model_config() is configurator.model_config
    assert with_field.model_config.rwkv_layer_indices == [1, 2]
    assert not hasattr(without.model_config, "rwkv_layer_indices")
    as_dict = HybridModelConfigurator({"num_layers": 4, "rwkv_layer_indices": [0]})
    as_dict.configure_layer_architecture(rwkv_layer_indices=[3])
    assert as_dict.model_config["rwkv_layer_indices"] == [3]


def test_export(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    configurator = of(4)
    assert configurator.export_config("layers.json") == "layers.json"  # a bare file name
    assert json.loads((tmp_path / "layers.json").read_text()) == {
        "num_layers": 4, "rwkv_layer_indices": [0, 2], "transformer_layer_indices": [1, 3], "rwkv_ratio": 0.5
    }  # fmt: skip
    with pytest.raises(OSError, match="nowhere"):
        configurator.export_config(tmp_path / "nowhere" / "layers.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layers.json"]


def test_model_configuration_of_the_choice():
    config = ModelConfig(model_type="x060", n_layer=4, n_embd=64, vocab_size=30)
    configurator = HybridModelConfigurator(config)
    made = configurator.to_model_config(ctx_len=99)
    assert [layer["time_mix"] for layer in made.layer_list()] == ["x060", "attention"] * 2
    assert (made.n_embd, made.vocab_size, made.ctx_len) == (64, 30, 99) and config.layers is None
    configurator.configure_layer_architecture(rwkv_layer_indices=range(4))
    assert configurator.to_model_config().kinds == ["x060"]


def test_entries_of_a_recipe_that_fit_stay():
    recipe = [{"time_mix": "x070", "channel_mix": "x070", "head_size": 32}, "attention", "x060"]
    configurator = HybridModelConfigurator(ModelConfig(model_type="x070", layers=recipe, n_embd=64))
    configurator.configure_layer_architecture(rwkv_layer_indices=[0, 1])
    assert configurator.to_model_config().layers == [recipe[0], "x070", "attention"]


def test_the_choice_is_the_model():
    configurator = HybridModelConfigurator(
        {"num_layers": 3, "hidden_size": 64, "vocab_size": 11, "num_attention_heads": 2}
    )
    names = set(RWKV(configurator.to_model_config()).named_parameters())
    assert {"blocks.0.att.w0", "blocks.1.att.q_proj.weight", "blocks.1.ffn.fc.weight", "blocks.2.att.w0"} <= names
    assert not {"blocks.0.att.q_proj.weight", "blocks.1.att.w0"} & names


def test_a_dict_is_read_by_the_names_of_model_config():
    about = {"n_layer": 2, "n_embd": 64, "vocab_size": 99, "model_type": "x060", "head_size_a": 32, "dim_ffn": 96, "n_kv_head": 1, "rope": False}
    config = HybridModelConfigurator(about).to_model_config()
    assert config.kinds == ["attention", "x060"] and (config.head_size_a, config.dim_ffn, config.n_kv_head, config.rope) == (32, 96, 1, False)
    recipe = HybridModelConfigurator({"n_embd": 64, "layers": ["x070", "attention", {"time_mix": "x060"}]})
    assert recipe.rwkv_layer_indices == [0, 2]
    assert [layer["time_mix"] for layer in recipe.to_model_config().layer_list()] == ["x070", "attention", "x060"]
    with pytest.raises(ValueError, match="layers has 1 entries for 2 layers"):
        HybridModelConfigurator({"num_layers": 2, "layers": ["x070"]})
    with pytest.raises(ValueError, match="hybrid_attention_ratio is 'a'"):
        HybridModelConfigurator(about, {"hybrid_attention_ratio": "a"})
