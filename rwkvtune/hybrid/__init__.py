"""Models of RWKV layers and attention layers: which layer is which, training, evaluation; see docs/hybrid.md."""

from ..lazy import lazy_names

_HOME = {
    "HybridModelConfigurator": "configurator",
    "RWKVIntegrator": "integrator", "convert_to_rwkv": "integrator",
    "TrainingEngine": "engine",
    "evaluate_sequence_modeling": "evaluation", "process_long_sequence": "evaluation", "score": "evaluation",
    "ChunkedLoader": "chunking", "apply_chunking": "chunking",
    "DataLoader": "datasets", "TextDataset": "datasets", "setup_train_dataloader": "datasets",
    "setup_val_dataloader": "datasets",
    "setup_model": "setup", "release_training_memory": "setup",
    "read_environment": "environment", "environment_report": "environment",
    "runnable_config": "runnable", "parameter_count": "runnable", "settings_report": "runnable",
    "ModelConfig3BRWKV": "model_3b_rwkv", "ModelConfig1BRWKV": "model_3b_rwkv", "RWKVMemoryConfig": "model_3b_rwkv",
    "RWKVTrainingEfficiencyConfig": "model_3b_rwkv", "RWKVArchitectureParams": "model_3b_rwkv",
}  # fmt: skip

__all__ = list(_HOME)
__getattr__, __dir__ = lazy_names(__name__, _HOME)
