"""Reading settings from whatever carries them: a dataclass, a namespace, a dict, or nothing."""


def setting(source, name, default=None):
    """The setting `name` of `source` (an object with attributes, a dict or None); `default` where it has none."""
    if source is None:
        return default
    if isinstance(source, dict):
        return source.get(name, default)
    return getattr(source, name, default)


def has_setting(source, name):
    """Whether `source` says anything about `name`."""
    return name in source if isinstance(source, dict) else hasattr(source, name)


def change_setting(source, name, value):
    """Sets `name` where `source` already has it; whether it had."""
    if source is None or not has_setting(source, name):
        return False
    if isinstance(source, dict):
        source[name] = value
    else:
        setattr(source, name, value)
    return True
