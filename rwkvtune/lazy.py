"""Names of a package that are imported when they are first used, so that importing the package stays cheap."""

import sys
from importlib import import_module


def lazy_names(package, home):
    """The `__getattr__` and `__dir__` of a package.

    package: its `__name__`.  home: dict, name -> the submodule that defines it.
    """
    names = vars(sys.modules[package])

    def get(name):
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        names[name] = getattr(import_module(f".{home[name]}", package), name)
        return names[name]

    def listed():
        return sorted({*names, *home})

    return get, listed
