"""What RWKV layers ask of a model's surroundings: chunk size, state, parameter groups, export, chunked loaders."""

import json
import os
from pathlib import Path

from ..checkpoint import read_pth, read_safetensors, write_pth, write_safetensors
from ..config import whole_number
from ..errors import FormatError
from ..model import RWKV
from ..trainer import Trainer
from .chunking import apply_chunking
from .groups import INTEGRATOR, setup_groups
from .runnable import runnable_config
from .settings import setting
from .setup import release_training_memory

_MAP = "rwkv_layer_map"


def rwkv_layers(model):
    """list of int: the RWKV layers of a model."""
    return [i for i, layer in enumerate(model.config.layer_list()) if layer["time_mix"] != "attention"]


def compress_states(model, *configs):
    """Turns state compression on where a configuration asks for it, by True or the name of a type; whether one did."""
    wanted = next(filter(None, (setting(config, "rwkv_state_compression") for config in configs)), None)
    if wanted is None:
        return False
    model.enable_state_compression(*([] if wanted is True else [wanted]))
    return True


class RWKVIntegrator:
    """Sets a model with RWKV layers up for training, long sequences and deployment.

    model: `rwkvtune.RWKV`.  model_config: rwkv_chunk_size (1024), rwkv_state_compression (off where it is not said);
    default: the model's own.  training_config: `TrainingConfig` or anything with batch_size (1).
    chunk_size: tokens of a chunk.
    Raises ValueError (not an RWKV, no RWKV layer in it).
    """

    def __init__(self, model=None, model_config=None, training_config=None):
        if not isinstance(model, RWKV):
            raise ValueError(f"model is a {type(model).__name__}; it must be a rwkvtune.RWKV")
        if not rwkv_layers(model):
            raise ValueError("the model has no RWKV layer; there is nothing to integrate")
        self.model, self.training_config = model, training_config
        self.model_config = model.config if model_config is None else model_config
        self.chunk_size = whole_number("rwkv_chunk_size", setting(self.model_config, "rwkv_chunk_size", 1024))

    def apply_rwkv_optimizations(self):
        """Set the model's chunk size, make `model.state` for training_config's batch size, and turn state compression on
        where model_config asks for it.  Returns the model."""
        self.model.set_chunk_size(self.chunk_size)
        compress_states(self.model, self.model_config)
        self.model.reset_state(whole_number("batch_size", setting(self.training_config, "batch_size", 1)))
        return self.model

    def setup_rwkv_optimizer(self, optimizer=None, rwkv_lr_multiplier=1.0, att_weight_decay=0.0, ffn_weight_decay=0.0):
        """Give each part of the model its learning rate and weight decay, see the table in `rwkvtune.hybrid.groups`.

        optimizer: `rwkvtune.Trainer`, whose moments stay (default: a new one on this model).  Parameters in no group, the
        embedding and the head for example, keep what they have.  Returns the trainer.  Raises ValueError.
        """
        if optimizer is None:
            from .engine import training_config_of

            optimizer = Trainer(self.model, training_config_of(self.training_config))
        return setup_groups(optimizer, INTEGRATOR, rwkv_lr_multiplier, att_weight_decay, ffn_weight_decay)

    def apply_rwkv_chunking(self, dataloader, chunk_size=None):
        """A loader that yields `dataloader`'s batches as consecutive chunks; see `ChunkedLoader`.  chunk_size: default the
        integrator's."""
        return apply_chunking(dataloader, self.chunk_size if chunk_size is None else chunk_size)

    def export_rwkv_weights(self, output_path):
        """Write every tensor of the RWKV layers, layer norms included, and a map of the model's layers.

        output_path: ends in .pth, .pt or .safetensors; its directory is made.  `read_rwkv_weights` reads it back.
        Returns the path as given.  Raises ValueError (the ending), OSError.
        """
        starts = tuple(f"blocks.{layer}." for layer in rwkv_layers(self.model))
        tensors = {name: value for name, value in self.model.named_parameters().items() if name.startswith(starts)}
        layer_map = json.dumps(self._layer_map())
        ending = Path(output_path).suffix
        if ending not in (".pth", ".pt", ".safetensors"):
            raise ValueError(f"output_path is {os.fspath(output_path)!r}; its ending must be .pth, .pt or .safetensors")
        Path(output_path).parent.mkdir(parents=True, exist_ok=True)
        if ending == ".safetensors":
            write_safetensors(output_path, tensors, metadata={"format": "pt", _MAP: layer_map})
        else:
            import numpy as np

            write_pth(output_path, {_MAP: np.frombuffer(layer_map.encode(), np.uint8), **tensors})
        return output_path

    def _layer_map(self):
        indices, config = rwkv_layers(self.model), self.model.config
        return {
            "num_layers": config.n_layer, "rwkv_layer_indices": indices,
            "transformer_layer_indices": [i for i in range(config.n_layer) if i not in indices],
            "layers": config.layer_list(), "n_embd": config.n_embd, "vocab_size": config.vocab_size,
        }  # fmt: skip

    def optimize_for_inference(self):
        """Release what only training needs (see `release_training_memory`), set the chunk size, begin with a fresh state of
        one sequence.  Returns the model."""
        release_training_memory(self.model)
        self.model.set_chunk_size(self.chunk_size)
        self.model.reset_state(batch_size=1)
        return self.model


def read_rwkv_weights(path):
    """(dict name -> tensor, layer map) of a file that `export_rwkv_weights` wrote.  Raises OSError, FormatError."""
    if Path(path).suffix == ".safetensors":
        tensors = read_safetensors(path)
        with open(path, "rb") as file:  # the header has been checked by now
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        text = header.get("__metadata__", {}).get(_MAP)
    else:
        tensors = dict(read_pth(path))
        stored = tensors.pop(_MAP, None)
        text = None if stored is None else stored.numpy().tobytes()
    try:
        layer_map = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise FormatError(
            f"{path}: no map of layers in it; it is written by RWKVIntegrator.export_rwkv_weights"
        ) from error
    if not isinstance(layer_map, dict):
        raise FormatError(f"{path}: its map of layers is no map")
    return dict(tensors), layer_map


def convert_to_rwkv(transformer_model, rwkv_layer_indices=None, seed=0):
    """A hybrid from a model: these layers become fresh RWKV layers, everything else keeps its weights.

    transformer_model: `rwkvtune.RWKV`, unchanged.  rwkv_layer_indices: default: the even layers.  seed: of the new layers.
    Tensors of the same name and shape are copied, the layer norms of converted layers among them.
    Returns `rwkvtune.RWKV`, where the given one is.  Raises ValueError (layer numbers).
    """
    from .configurator import HybridModelConfigurator

    old = transformer_model.config
    configurator = HybridModelConfigurator({"num_layers": old.n_layer})
    configurator.configure_layer_architecture(rwkv_layer_indices)
    device = transformer_model.device
    precision = None if device == "cpu" else transformer_model.precision
    model = RWKV(runnable_config(old, configurator.rwkv_layer_indices), seed=seed, device=device, precision=precision)
    before, weights = transformer_model.named_parameters(), model.named_parameters()
    same = {name: before[name] for name, value in weights.items() if name in before and before[name].shape == value.shape}
    model.load_state_dict(weights | same)
    return model
