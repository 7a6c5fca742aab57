"""A hybrid of 3 billion parameters, and the settings of its training.

The classes hold settings only; `runnable_config` makes the `rwkvtune.ModelConfig` that runs, and `settings_report` tells
what each setting does in this package.  `model_config`, `memory_config`, `training_config`, `architecture_params` and
`training_params` are ready-made instances.
"""

from dataclasses import dataclass

from ..config import whole_number


def _three_of_four(num_layers):
    return [i for i in range(num_layers) if i % 4 != 3]


@dataclass
class ModelConfig3BRWKV:
    """32 layers of 2560 channels, three RWKV layers to each attention layer: 2.8 billion parameters.

    num_layers and rwkv_layer_indices belong together: with another number of layers and no indices, every fourth layer
    is an attention layer.  Raises ValueError (sizes that do not fit each other).

    >>> from rwkvtune.hybrid import ModelConfig3BRWKV
    >>> ModelConfig3BRWKV().rwkv_layer_indices[:6]
    [0, 1, 2, 4, 5, 6]
    """

    hidden_size: int = 2560
    num_layers: int = 32
    num_attention_heads: int = 32
    vocab_size: int = 50257
    max_position_embeddings: int = 49152
    dropout: float = 0.1
    attention_dropout: float = 0.1
    use_rwkv: bool = True
    rwkv_version: str = "x070"
    rwkv_head_size: int = 64
    rwkv_time_mix_ratio: float = 1.0
    rwkv_use_linear_att: bool = True
    rwkv_att_scale: float = 1.0
    rwkv_ffn_scale: float = 1.0
    rwkv_use_gated_residual: bool = False
    rwkv_gate_init: float = 0.0
    rwkv_use_glu: bool = False
    rwkv_time_decay_base: float = 1.0
    rwkv_recurrent_scaling: float = 1.0
    rwkv_layer_indices: list | None = None
    rwkv_chunk_size: int = 8192
    rwkv_chunk_overlap: int = 1024
    rwkv_state_compression: bool = True
    transformer_window_size: int = 512
    use_grouped_query_attention: bool = True
    num_kv_groups: int = 8
    use_flash_attention: bool = True
    use_8bit_kv_cache: bool = True
    use_gradient_checkpointing: bool = True
    attention_mechanism: str = "hybrid_rwkv_transformer"
    use_sliding_window: bool = True
    use_adaptive_chunking: bool = True
    use_alibi: bool = True
    tie_word_embeddings: bool = False
    use_cache: bool = True
    use_mixed_precision: bool = True
    mixed_precision_dtype: str = "bfloat16"
    target_vram_gb: int = 8
    optimize_for_inference: bool = True

    def __post_init__(self):
        for name in (
            "hidden_size",
            "num_layers",
            "num_attention_heads",
            "vocab_size",
            "max_position_embeddings",
            "rwkv_chunk_size",
        ):
            setattr(self, name, whole_number(name, getattr(self, name)))
        if self.rwkv_layer_indices is None:
            self.rwkv_layer_indices = _three_of_four(self.num_layers)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads is {self.num_attention_heads}; it must divide hidden_size, {self.hidden_size}"
            )

    def get_rwkv_layer_config(self, layer_id):
        """dict: the settings of one RWKV layer.

        layer_id: its number.  Keys: layer_index, hidden_size, time_mix_ratio (falls linearly to half of
        rwkv_time_mix_ratio in the last layer), use_linear_att, att_scale, use_gate_res, gate_init, layer_scale,
        ffn_scale, use_glu, time_decay_base (rwkv_time_decay_base * rwkv_recurrent_scaling^layer_id).
        Raises ValueError (no such layer, or an attention layer).
        """
        if isinstance(layer_id, bool) or not hasattr(layer_id, "__index__") or layer_id not in self.rwkv_layer_indices:
            raise ValueError(f"layer_id is {layer_id!r}; the RWKV layers are {self.rwkv_layer_indices}")
        depth = layer_id / max(1, self.num_layers - 1)
        return {
            "layer_index": int(layer_id), "hidden_size": self.hidden_size,
            "time_mix_ratio": self.rwkv_time_mix_ratio * (1 - 0.5 * depth), "use_linear_att": self.rwkv_use_linear_att,
            "att_scale": self.rwkv_att_scale, "use_gate_res": self.rwkv_use_gated_residual, "gate_init": self.rwkv_gate_init,
            "layer_scale": 1.0, "ffn_scale": self.rwkv_ffn_scale, "use_glu": self.rwkv_use_glu,
            "time_decay_base": self.rwkv_time_decay_base * self.rwkv_recurrent_scaling**layer_id,
        }  # fmt: skip


@dataclass
class ModelConfig1BRWKV(ModelConfig3BRWKV):
    """The same in small: 20 layers of 2048 channels, 1.2 billion parameters."""

    hidden_size: int = 2048
    num_layers: int = 20


@dataclass
class RWKVMemoryConfig:
    """What may be done to save memory; max_memory_MB: memory of the machine to plan for, None = not said."""

    use_gradient_checkpointing: bool = True
    use_flash_attention: bool = True
    activation_checkpointing: bool = True
    optimize_memory_use: bool = True
    mem_efficient_linear: bool = True
    cpu_offload: bool = False
    low_cpu_mem_usage: bool = True
    max_memory_MB: int | None = None
    rwkv_chunk_size: int = 1024
    rwkv_state_compression: bool = True
    rwkv_token_streaming: bool = True
    rwkv_cpu_offload_ratio: float = 0.0
    use_episodic_memory: bool = False
    use_working_memory: bool = False


@dataclass
class RWKVTrainingEfficiencyConfig:
    """How training is made efficient."""

    use_mixed_precision: bool = True
    optimize_cuda_kernels: bool = True
    optimize_grouping: bool = True
    compile_model: bool = False
    dynamo_backend: str | None = None
    use_fused_adam: bool = True
    use_fused_layer_norm: bool = True
    rwkv_optimize_backward: bool = True
    rwkv_backward_pass_length: int = 1024
    activation_checkpointing: bool = True
    checkpoint_every_n_layers: int = 2
    use_sharded_ddp: bool = False
    use_fsdp: bool = False
    use_offload: bool = False
    use_cpu_offload: bool = False
    gradient_accumulation_steps: int = 1


@dataclass
class RWKVArchitectureParams:
    """Sizes beside those of the model, and how the optimizer treats RWKV layers.  ffn_hidden_size: None = 4 * hidden_size."""

    ffn_hidden_size: int | None = None
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    use_scaled_init: bool = True
    rwkv_lr_multiplier: float = 1.2
    rwkv_att_weight_decay: float = 0.0
    rwkv_ffn_weight_decay: float = 0.01
    hybrid_attention_ratio: float = 0.5
    hybrid_use_flash_attention: bool = True
    rwkv_time_shift: bool = True

    def training_params(self):
        """dict: rwkv_lr_multiplier, rwkv_att_weight_decay, rwkv_ffn_weight_decay."""
        names = ("rwkv_lr_multiplier", "rwkv_att_weight_decay", "rwkv_ffn_weight_decay")
        return {name: getattr(self, name) for name in names}


model_config = ModelConfig3BRWKV()
memory_config = RWKVMemoryConfig()
training_config = RWKVTrainingEfficiencyConfig()
architecture_params = RWKVArchitectureParams()
training_params = architecture_params.training_params()
