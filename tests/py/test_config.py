"""Configurations: defaults, derived widths, what is refused and how it is said."""

import pytest

from rwkvtune import DataConfig, ModelConfig, TrainingConfig


def test_documented_defaults():
    model = ModelConfig()
    assert (model.model_type, model.n_layer, model.n_embd, model.ctx_len, model.vocab_size, model.head_size_a) == (
        "x060",
        3,
        128,
        1024,
        361,
        64,
    )
    training = TrainingConfig()
    assert (training.lr_init, training.lr_final, training.micro_bsz, training.grad_cp, training.precision) == (
        6e-4,
        6e-5,
        16,
        1,
        "bf16",
    )
    assert (training.warmup_steps, training.beta1, training.beta2, training.adam_eps, training.weight_decay) == (
        10,
        0.9,
        0.99,
        1e-18,
        0.001,
    )
    assert (training.epoch_save, training.strategy, training.grad_clip, training.l2wrap) == (
        1,
        "deepspeed_stage_1",
        1.0,
        True,
    )
    assert (DataConfig().sequence_length, DataConfig().n_epochs_duplication) == (1024, 3)


@pytest.mark.parametrize(
    "n_embd, decay, value, gate",
    [(128, 32, 32, 64), (256, 32, 32, 64), (512, 64, 32, 128), (768, 64, 32, 128), (1024, 64, 64, 160), (1536, 96, 64, 192),
     (2048, 128, 64, 224), (2560, 128, 96, 256), (4096, 160, 96, 320)],
)  # fmt: skip
def test_low_rank_widths_round_half_to_even(n_embd, decay, value, gate):
    config = ModelConfig(model_type="x070", n_embd=n_embd)
    assert (config.dim_att_lora, config.dim_mv_lora, config.dim_gate_lora) == (decay, value, gate)
    assert (config.d_decay, config.d_aaa, config.dim_ffn) == (decay, decay, 4 * n_embd)


def test_given_widths_win_and_split():
    config = ModelConfig(model_type="x070", dim_att_lora=48, d_aaa=24, dim_ffn=100)
    layer = config.layer_list()[0]
    assert (layer["d_decay"], layer["d_aaa"], layer["dim_ffn"]) == (48, 24, 100)


def test_ffn_width_of_older_versions():
    assert ModelConfig(model_type="x060", n_embd=128).dim_ffn == 448
    assert ModelConfig(model_type="x052", n_embd=192).dim_ffn == 672


@pytest.mark.parametrize("n_embd, decay, mix", [(128, 64, 32), (2048, 64, 32), (4096, 128, 64)])
def test_low_rank_widths_of_x060(n_embd, decay, mix):
    """Twice as wide in the released 7B; beside layers of another version each follows its own rule."""
    (layer,) = ModelConfig(model_type="x060", n_layer=1, n_embd=n_embd).layer_list()
    assert (layer["d_decay"], layer["d_mix"]) == (decay, mix)
    seven, six = ModelConfig(model_type="x070", n_embd=n_embd, layers=["x070", "x060"]).layer_list()
    assert (six["d_decay"], six["d_mix"]) == (decay, mix)
    assert seven["d_decay"] == ModelConfig(model_type="x070", n_embd=n_embd).d_decay
    (layer,) = ModelConfig(model_type="x060", n_layer=1, n_embd=n_embd, d_decay=24, d_mix=8).layer_list()
    assert (layer["d_decay"], layer["d_mix"]) == (24, 8)


def test_replace_derives_again_and_leaves_the_original():
    config = ModelConfig(model_type="x070", n_embd=128, dim_gate_lora=96)
    wide = config.replace(n_embd=1024)
    assert (wide.dim_ffn, wide.dim_att_lora, wide.dim_gate_lora) == (4096, 64, 96)
    assert (config.n_embd, config.dim_ffn) == (128, 512)
    assert ModelConfig.from_dict(wide.to_dict()) == wide


def test_recipe_of_layers():
    config = ModelConfig(
        model_type="x070", n_embd=128, layers=["x070", "attention", {"time_mix": "x060", "head_size": 32}]
    )
    kinds = [
        (layer["time_mix"], layer["channel_mix"], layer["dim_ffn"], layer["head_size"]) for layer in config.layer_list()
    ]
    assert kinds == [("x070", "x070", 512, 64), ("attention", "mlp", 512, 64), ("x060", "x060", 448, 32)]
    assert config.n_layer == 3
    assert config.replace(layers=["x070"]).n_layer == 1


def test_layer_norm_of_the_embedding():
    assert ModelConfig(layers=["attention"]).to_core_dict()["ln0"] is False
    assert ModelConfig(layers=["attention", "x070"]).to_core_dict()["ln0"] is True


@pytest.mark.parametrize(
    "values, words",
    [
        ({"model_type": "x071"}, ("model_type", "'x071'", "x070")),
        ({"n_layer": -1}, ("n_layer", "-1", "at least 1")),
        ({"n_embd": 100}, ("head_size_a", "64", "100")),
        ({"n_embd": 12.5}, ("n_embd", "12.5", "integer")),
        ({"vocab_size": 0}, ("vocab_size", "0", "at least 1")),
        ({"n_embd": 128, "dim_att": 256}, ("dim_att", "256", "128")),
        ({"layers": []}, ("layers",)),
        ({"layers": ["x070", "gru"]}, ("layers[1]", "'gru'", "attention")),
        ({"layers": [{"time_mix": "x070", "width": 3}]}, ("layers[0]", "'width'")),
        ({"layers": ["x070"], "n_layer": 2}, ("n_layer", "2", "1")),
        ({"n_embd": True}, ("n_embd", "True")),
    ],
)
def test_model_config_refuses(values, words):
    with pytest.raises(ValueError) as error:
        ModelConfig(**values)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"lr_init": -1}, ("lr_init", "-1")),
        ({"lr_init": "fast"}, ("lr_init", "'fast'")),
        ({"lr_init": float("nan")}, ("lr_init", "nan")),
        ({"beta2": 1.0}, ("beta2", "1")),
        ({"micro_bsz": 0}, ("micro_bsz", "0")),
        ({"precision": "int4"}, ("precision", "'int4'", "bf16")),
        ({"train_type": "lora"}, ("train_type", "'lora'")),
        ({"lr_final": float("inf")}, ("lr_final", "inf")),
        ({"adam_eps": 0}, ("adam_eps", "larger")),
        ({"grad_cp": 2}, ("grad_cp", "0 or 1")),
    ],
)
def test_training_config_refuses(values, words):
    with pytest.raises(ValueError) as error:
        TrainingConfig(**values)
    for word in words:
        assert word in str(error.value)


def test_unknown_field_is_named():
    with pytest.raises(ValueError, match="lr_int.*lr_init"):
        TrainingConfig.from_dict({"lr_int": 1})


def test_display_in_a_notebook():
    html = ModelConfig(model_type="x070", n_embd=96, head_size_a=32, description="<b> & co")._repr_html_()
    assert "<caption style='text-align:left'>ModelConfig</caption>" in html
    assert "<code>n_embd</code></td><td style='text-align:left'><b>96</b>" in html  # given
    assert "<code>dim_ffn</code></td><td style='text-align:left'>384<" in html  # by the rule
    assert "<code>ctx_len</code></td><td style='text-align:left'>1024<" in html  # the default
    assert "&lt;b&gt; &amp; co" in html and "config_dict" not in html and "_derived" not in html
    assert "<code>lr_init</code></td><td style='text-align:left'><b>0.001</b>" in TrainingConfig(lr_init=1e-3)._repr_html_()
