"""Presets, what each setting does, building the model, environment variables."""

import dataclasses
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hybrid_helpers import byte_tokenizer

from rwkvtune import RWKV, HybridModelConfigurator, ModelConfig, TrainingEngine
from rwkvtune.hybrid import (ModelConfig1BRWKV, ModelConfig3BRWKV, RWKVArchitectureParams, RWKVMemoryConfig, RWKVTrainingEfficiencyConfig,
                             environment_report, model_3b_rwkv, parameter_count, read_environment, runnable_config, settings_report,
                             setup_model)  # fmt: skip

DEFAULTS = {
    ModelConfig3BRWKV: dict(
        num_layers=32, hidden_size=2560, num_attention_heads=32, vocab_size=50257, max_position_embeddings=49152, dropout=0.1,
        attention_dropout=0.1, use_rwkv=True, rwkv_time_mix_ratio=1.0, rwkv_use_linear_att=True, rwkv_att_scale=1.0,
        rwkv_chunk_size=8192, rwkv_chunk_overlap=1024, rwkv_state_compression=True, transformer_window_size=512,
        use_grouped_query_attention=True, num_kv_groups=8, use_flash_attention=True, use_8bit_kv_cache=True,
        use_gradient_checkpointing=True, attention_mechanism="hybrid_rwkv_transformer", use_sliding_window=True,
        use_adaptive_chunking=True, use_alibi=True, tie_word_embeddings=False, use_cache=True, use_mixed_precision=True,
        mixed_precision_dtype="bfloat16", target_vram_gb=8, optimize_for_inference=True,
        rwkv_layer_indices=[i for i in range(32) if i % 4 != 3],
    ),
    ModelConfig1BRWKV: dict(hidden_size=2048, num_layers=20, num_attention_heads=32,
                            rwkv_layer_indices=[0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 16, 17, 18]),
    RWKVMemoryConfig: dict(
        use_gradient_checkpointing=True, use_flash_attention=True, activation_checkpointing=True, optimize_memory_use=True,
        mem_efficient_linear=True, cpu_offload=False, low_cpu_mem_usage=True, max_memory_MB=None, rwkv_chunk_size=1024,
        rwkv_state_compression=True, rwkv_token_streaming=True, rwkv_cpu_offload_ratio=0.0, use_episodic_memory=False,
        use_working_memory=False,
    ),
    RWKVTrainingEfficiencyConfig: dict(
        use_mixed_precision=True, optimize_cuda_kernels=True, optimize_grouping=True, compile_model=False, dynamo_backend=None,
        use_fused_adam=True, use_fused_layer_norm=True, rwkv_optimize_backward=True, rwkv_backward_pass_length=1024,
        activation_checkpointing=True, checkpoint_every_n_layers=2, use_sharded_ddp=False, use_fsdp=False, use_offload=False,
        use_cpu_offload=False, gradient_accumulation_steps=1,
    ),
    RWKVArchitectureParams: dict(
        layer_norm_epsilon=1e-5, initializer_range=0.02, use_scaled_init=True, rwkv_lr_multiplier=1.2, rwkv_att_weight_decay=0.0,
        rwkv_ffn_weight_decay=0.01, hybrid_attention_ratio=0.5, hybrid_use_flash_attention=True, rwkv_time_shift=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("cls", DEFAULTS)
def test_defaults(cls):
    values = dataclasses.asdict(cls())
    assert {name: values[name] for name in DEFAULTS[cls]} == DEFAULTS[cls]


def test_ready_made_instances():
    kinds = {"model_config": ModelConfig3BRWKV, "memory_config": RWKVMemoryConfig, "training_config": RWKVTrainingEfficiencyConfig,
             "architecture_params": RWKVArchitectureParams}  # fmt: skip
    assert all(type(getattr(model_3b_rwkv, name)) is cls for name, cls in kinds.items())
    assert model_3b_rwkv.training_params == {
        "rwkv_lr_multiplier": 1.2,
        "rwkv_att_weight_decay": 0.0,
        "rwkv_ffn_weight_decay": 0.01,
    }


def by_hand(config, rwkv_layers, kv_heads):
    """Parameters by the formulas: x070 per layer 12 C^2 + 19 C + 2 C (Dw + Da + Dv + Dg), attention 2 C^2 + 2 C kv + 2 C F + 4 C."""
    c, v, n = config.n_embd, config.vocab_size, config.n_layer
    low_rank = 2 * config.dim_att_lora + config.dim_mv_lora + config.dim_gate_lora
    rwkv = 12 * c * c + 19 * c + 2 * c * low_rank
    attention = 2 * c * c + 2 * c * kv_heads * (c // 32) + 2 * c * 4 * c + 4 * c
    return 2 * v * c + 4 * c + rwkv_layers * rwkv + (n - rwkv_layers) * attention


def test_parameters_with_rwkv_layers_only():
    config = runnable_config(ModelConfig3BRWKV(), range(32))
    assert parameter_count(config) == by_hand(config, 32, 8) == 2_875_079_680
    small = ModelConfig(model_type="x070", n_layer=2, n_embd=64, vocab_size=50)
    assert parameter_count(small) == RWKV(small).num_parameters
    assert parameter_count(small, 1) == sum(
        v.size for n, v in RWKV(small).named_parameters().items() if n.startswith("blocks.1.")
    )


@pytest.mark.parametrize("cls, low, high", [(ModelConfig3BRWKV, 2.5e9, 3.2e9), (ModelConfig1BRWKV, 1.0e9, 1.4e9)])
def test_labels_are_true(cls, low, high):
    config = HybridModelConfigurator(cls()).to_model_config()
    count = parameter_count(config)
    assert low < count < high
    assert count == by_hand(config, len(cls().rwkv_layer_indices), 8)


def test_every_setting_is_accounted_for():
    sources = [cls() for cls in DEFAULTS]
    rows = settings_report(*sources)
    assert len(rows) == sum(len(dataclasses.fields(source)) for source in sources)
    assert all(what.split(":")[0] in ("used", "always", "no effect") and "unknown" not in what for _, _, what in rows)
    assert settings_report(SimpleNamespace(colour="red"))[0][2] == "no effect: unknown"
    assert settings_report(RWKVArchitectureParams(use_scaled_init=False))[3][2].startswith("refused")


@pytest.mark.parametrize("name, value", [("rwkv_use_linear_att", False), ("rwkv_ffn_scale", 0.5), ("tie_word_embeddings", True),
                                         ("rwkv_use_glu", True), ("rwkv_time_decay_base", 0.9)])  # fmt: skip
def test_what_cannot_be_had_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value!r}, which cannot be had"):
        runnable_config(ModelConfig3BRWKV(**{name: value}), range(32))


@pytest.mark.parametrize(
    "name, value", [("compile_model", True), ("use_fsdp", True), ("cpu_offload", True), ("use_working_memory", True)]
)
def test_what_cannot_be_had_in_training_is_refused(name, value):
    model, settings = RWKV(ModelConfig(model_type="x070", n_layer=1, n_embd=64, vocab_size=5)), {name: value}
    refused = f"{name} is True, which cannot be had"
    for make in (lambda: TrainingEngine(model, settings), lambda: TrainingEngine(model, memory_config=settings),
                 lambda: setup_model(None, model.config, None, settings)):  # fmt: skip
        with pytest.raises(ValueError, match=refused):
            make()


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="num_attention_heads is 31; it must divide hidden_size, 2560"):
        ModelConfig3BRWKV(num_attention_heads=31)
    with pytest.raises(ValueError, match="num_layers is 0"):
        ModelConfig3BRWKV(num_layers=0)
    with pytest.raises(ValueError, match="num_kv_groups is 5; it must divide num_attention_heads, 32"):
        runnable_config(ModelConfig3BRWKV(num_kv_groups=5), [0])


def test_layer_config():
    config = ModelConfig3BRWKV(rwkv_time_mix_ratio=0.8, rwkv_time_decay_base=2.0, rwkv_recurrent_scaling=0.5)
    first, last = config.get_rwkv_layer_config(0), config.get_rwkv_layer_config(30)
    assert first == {"layer_index": 0, "hidden_size": 2560, "time_mix_ratio": 0.8, "use_linear_att": True, "att_scale": 1.0,
                     "use_gate_res": False, "gate_init": 0.0, "layer_scale": 1.0, "ffn_scale": 1.0, "use_glu": False,
                     "time_decay_base": 2.0}  # fmt: skip
    assert (
        last["time_mix_ratio"] == pytest.approx(0.8 * (1 - 0.5 * 30 / 31)) and last["time_decay_base"] == 2.0 * 0.5**30
    )
    for wrong in (3, 32, -1, "0", 0.0):
        with pytest.raises(ValueError, match="layer_id"):
            config.get_rwkv_layer_config(wrong)


# ---- building the model ----


def tiny(**more):
    return ModelConfig3BRWKV(
        **{"hidden_size": 64, "num_layers": 2, "num_attention_heads": 2, "vocab_size": 30, "num_kv_groups": 1, **more}
    )


def test_setup_model_without_configurator_is_all_rwkv():
    model = setup_model(SimpleNamespace(seed=3), tiny(), None, None, RWKVArchitectureParams(ffn_hidden_size=96), None)
    assert model.config.kinds == ["x070"] and model.config.n_layer == 2 and model.config.dim_ffn == 96
    same = RWKV(model.config, seed=3)
    assert all(np.array_equal(value, same.named_parameters()[name]) for name, value in model.named_parameters().items())


def test_setup_model_vocabulary_and_own_configuration(tmp_path):
    assert setup_model(None, tiny(), byte_tokenizer(tmp_path)).config.vocab_size == 257
    config = ModelConfig(model_type="x070", n_layer=2, n_embd=64, vocab_size=9)
    assert setup_model(None, config).config is config
    with pytest.raises(ValueError, match="model_config is None"):
        setup_model()
    with pytest.raises(ValueError, match="hybrid_configurator is for 5 layers but model_config has 2"):
        setup_model(None, tiny(), hybrid_configurator=HybridModelConfigurator({"num_layers": 5}))


def test_setup_model_of_the_three_kinds():
    configurator = HybridModelConfigurator(tiny(rwkv_layer_indices=[1]))
    hybrid = setup_model(None, configurator.model_config, hybrid_configurator=configurator).config
    assert [layer["time_mix"] for layer in hybrid.layer_list()] == ["attention", "x070"]
    other = setup_model(None, tiny(attention_mechanism="rwkv"), hybrid_configurator=configurator).config
    assert other.kinds == ["x070"]
    assert setup_model(None, tiny(use_rwkv=False), hybrid_configurator=configurator).config.kinds == ["attention"]


def test_time_mix_ratio_and_att_scale_scale_the_initial_weights():
    plain, scaled = setup_model(None, tiny()), setup_model(None, tiny(rwkv_time_mix_ratio=0.5, rwkv_att_scale=3.0))
    factors = {"x_r": 0.5, "x_w": 0.5, "x_k": 0.5, "x_v": 0.5, "x_a": 0.5, "x_g": 0.5, "r_k": 3.0, "ln_x.weight": 3.0}
    for name, value in plain.named_parameters().items():
        factor = factors.get(name.split(".", 3)[-1], 1.0) if name.startswith("blocks") else 1.0
        assert np.array_equal(scaled.named_parameters()[name], value * np.float32(factor)), name
    with pytest.raises(ValueError, match="rwkv_att_scale is -1"):
        setup_model(None, tiny(rwkv_att_scale=-1))


# ---- environment ----


def test_environment():
    environ = {"RWKV_HEAD_SIZE": "32", "RWKV_MY_TESTING": "x060", "RWKV_CTXLEN": "256", "RWKV_JIT_ON": "1", "RWKV_TRAIN_TYPE": "states",
               "RWKV_FLOAT_MODE": "bf16", "HOME": "/"}  # fmt: skip
    assert read_environment(environ) == {
        "head_size_a": 32,
        "model_type": "x060",
        "ctx_len": 256,
        "train_type": "states",
        "precision": "bf16",
    }
    assert read_environment(environ | {"RWKV_HEAD_SIZE_A": "16"})["head_size_a"] == 16
    assert environment_report({"RWKV_CTXLEN": "256", "RWKV_JIT_ON": "0"}) == ["  RWKV_CTXLEN=256", "  RWKV_JIT_ON=0"]
    assert read_environment({}) == {} and environment_report({}) == []
    for name, value in (
        ("RWKV_HEAD_SIZE", "x"),
        ("RWKV_CTXLEN", "0"),
        ("RWKV_MY_TESTING", "x099"),
        ("RWKV_FLOAT_MODE", "int4"),
        ("RWKV_JIT_ON", "maybe"),
    ):
        with pytest.raises(ValueError, match=f"{name} is '{value}'"):
            read_environment({name: value})


def test_nothing_happens_at_import():
    code = "import rwkvtune, rwkvtune.hybrid.environment, rwkvtune.hybrid.engine, os; print(sorted(n for n in os.environ if n.startswith('RWKV_')))"
    environ = {"RWKV_MY_TESTING": "nonsense", "RWKV_HEAD_SIZE": "nonsense", "RWKV_CTXLEN": "-7"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ)
    assert done.returncode == 0 and done.stdout.strip() == str(sorted(environ)) and not done.stderr
