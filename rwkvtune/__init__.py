"""Train, fine-tune and run RWKV language models on the CPU, without PyTorch.

>>> import rwkvtune
>>> sorted(rwkvtune.info())[:3]
['compiler', 'cpus', 'cuda_built']
"""

from .lazy import lazy_names

__version__ = "0.1.0"

_HOME = {
    "RWKV": "model", "ModelOutput": "model", "RWKVState": "state",
    "ModelConfig": "config", "TrainingConfig": "config", "DataConfig": "config",
    "Generator": "generation", "Generation": "generation", "SamplingOptions": "sampling", "Chat": "chat",
    "Trainer": "trainer", "evaluate": "trainer", "Schedule": "schedule",
    "Callback": "callbacks", "TensorBoardCallback": "callbacks", "WandbCallback": "callbacks",
    "TrainingRun": "loop", "RunPlan": "loop", "BinIdxBatches": "loop",
    "RWKVTrainingPipeline": "pipeline",
    "FormatError": "errors", "DeviceError": "errors",
    "BaseTokenizer": "data.tokenizers", "IntegerTokenizer": "data.tokenizers", "GenericTokenizer": "data.tokenizers",
    "AngleTokenizer": "data.tokenizers", "create_vocab_file_from_tokens": "data.tokenizers",
    "create_default_vocab_file": "data.tokenizers", "create_byte_vocab_file": "data.tokenizers",
    "NumpyToJsonlConverter": "data.converters", "JsonlToBinIdxConverter": "data.converters", "DataPipeline": "data.converters",
    "BinIdxDataset": "data.binidx", "MagicPrimeSampler": "data.binidx", "compute_magic_prime": "data.binidx",
    "HybridModelConfigurator": "hybrid.configurator", "RWKVIntegrator": "hybrid.integrator",
    "TrainingEngine": "hybrid.engine", "evaluate_sequence_modeling": "hybrid.evaluation",
    "inspect_checkpoint": "checkpoint", "inspect_rwkv_checkpoint": "checkpoint", "load_checkpoint_for_training": "checkpoint",
    "validate_checkpoint_compatibility": "checkpoint", "DetectedModelConfig": "checkpoint", "load_model_config": "configs.model_loader",
    "list_available_models": "configs.model_loader", "print_model_info": "configs.model_loader",
}  # fmt: skip

__all__ = ["__version__", "info", "set_num_threads", *_HOME]
__getattr__, __dir__ = lazy_names(__name__, _HOME)


def info():
    """dict: version, instruction set chosen, threads, CUDA build and devices, as the compiled core reports them."""
    from . import _rwkvcore

    return {"version": __version__, **_rwkvcore.info()}


def set_num_threads(n):
    """Use n threads, 1 or more.  Results do not depend on n.  Raises ValueError."""
    from . import _rwkvcore

    _rwkvcore.set_num_threads(n)
