"""Model configurations by name or path."""

from importlib import import_module

__all__ = ["ModelConfig", "list_available_models", "load_model_config", "print_model_info"]


def __getattr__(name):
    # On first use, so that `python -m rwkvtune.configs.model_loader` runs a module that is not imported yet.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".model_loader", __name__), name)
