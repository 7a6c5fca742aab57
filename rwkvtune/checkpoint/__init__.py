"""Reading, writing and recognising weight files, without torch.

| name | from | purpose |
|---|---|---|
| `read_checkpoint` | here | open a `.pth` or `.safetensors` file, whichever it is |
| `read_pth`, `load_state_dict`, `write_pth` | `pth` | torch's own container |
| `read_safetensors`, `write_safetensors` | `safetensors` | the safetensors container |
| `Checkpoint`, `LazyTensor`, `bfloat16_tensor` | `lazy_tensor` | what readers return, and raw bf16 for writers |
| `detect`, `inspect_checkpoint` | `detect` | version and sizes of a model from the shapes in its file |
| `CheckpointInfo` | `info` | how the result of an inspection shows itself |
| `DetectedModelConfig`, `load_checkpoint_for_training`, `validate_checkpoint_compatibility` | `starting` | weights to start training from |

Submodules are imported at first use, so that importing the package stays cheap.
"""

from ..atomic import reading
from ..lazy import lazy_names
from .detect import detect, inspect_checkpoint

_HOME = {
    "CheckpointInfo": "info",
    "DetectedModelConfig": "starting",
    "load_checkpoint_for_training": "starting",
    "validate_checkpoint_compatibility": "starting",
    "Checkpoint": "lazy_tensor",
    "LazyTensor": "lazy_tensor",
    "bfloat16_tensor": "lazy_tensor",
    "load_state_dict": "pth",
    "read_pth": "pth",
    "write_pth": "pth",
    "read_safetensors": "safetensors",
    "write_safetensors": "safetensors",
}

inspect_rwkv_checkpoint = inspect_checkpoint

__all__ = ["detect", "inspect_checkpoint", "inspect_rwkv_checkpoint", "read_checkpoint", *sorted(_HOME)]
__getattr__, __dir__ = lazy_names(__name__, _HOME)


def read_checkpoint(path, verify=False):
    """Open a weight file of either format, told apart by its first bytes and not by its name.

    path: file name.  verify: check the checksums of a `.pth` file, which reads all of it; `.safetensors` has none.  Returns a `Checkpoint`: tensor name -> `LazyTensor`, nothing but the header read.
    Raises FormatError (not a weight file, or a damaged one), OSError (cannot be opened).
    """
    from . import pth, safetensors

    with reading(path):
        if safetensors.is_safetensors(path):
            return safetensors.read_safetensors(path)
        return pth.read_pth(path, verify=verify)
