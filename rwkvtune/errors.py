"""The exceptions of this package that Python does not already have."""


class FormatError(ValueError):
    """A file is not what it claims to be; the message names the file, the place in it and the reason."""


class DeviceError(RuntimeError):
    """A device failed or is not there; the message says why and what to do."""
