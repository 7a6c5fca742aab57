"""Model configurations by name or path."""

from ..lazy import lazy_names

__all__ = ["ModelConfig", "list_available_models", "load_model_config", "print_model_info"]
# On first use, so that `python -m rwkvtune.configs.model_loader` runs a module that is not imported yet.
__getattr__, __dir__ = lazy_names(__name__, dict.fromkeys(__all__, "model_loader"))
