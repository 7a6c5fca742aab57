"""A small machine for the pickles inside torch files; it builds data and nothing else.

Pickle is a language for a stack machine, and in it a file can call any function it names.  Subclassing
`pickle.Unpickler` and refusing names is not enough: its C code still reserves memory for whatever index a
file puts into LONG_BINPUT, sets attributes on BUILD, hashes tuples of any depth and creates objects through
opcodes no checkpoint needs.  So the opcodes are read here, those a checkpoint needs and no other:

* constants, tuples, lists, dicts, the memo, marks;
* GLOBAL and STACK_GLOBAL: the names in `_GLOBALS`, each standing for a harmless function of this file;
* REDUCE: a call of one of those; BUILD: ignored, and only on what carries attributes that do not matter here;
* BINPERSID: a torch storage.

Memory is bounded by the limits below, values are never compared, hashed, printed or walked in depth.  What
comes out is made of dict, list, tuple, str, int, float, bool, None, bytes, `TensorRef`, `StorageRef` and `Opaque`.

Opcodes: Python's pickletools; the calls: what `torch.save` writes (protocol 2, also 3 to 5).
"""

import struct
from typing import NamedTuple

from ..errors import FormatError

_MAX_BYTES = 64 << 20
_MAX_OPCODES = 2_000_000  # a tensor takes about 45
_MAX_NAME = 256
_MAX_INT_BYTES = 16
_MAX_STORAGE = 1 << 60
_MAX_AXES = 32
_SCALARS = (str, int, float, bool, bytes, type(None))
_STOP = 0x2E


class StorageRef(NamedTuple):
    """A block of numbers in the file.  key: its name; dtype: None for plain bytes; numel: elements (or bytes)."""

    key: str
    dtype: str | None
    numel: int


class TensorRef(NamedTuple):
    """A view of a storage.  offset and strides count elements; the place in the storage is not checked yet."""

    storage: StorageRef
    dtype: str
    offset: int
    shape: tuple
    strides: tuple


class Opaque(NamedTuple):
    """A value that was recognised and left alone (a NumPy scalar, a device, ...).  name: of its type."""

    name: str


class Unpickled(NamedTuple):
    """A finished run.  value: the object; end: index after the pickle; storages: key -> `StorageRef`, all it named."""

    value: object
    end: int
    storages: dict


class _Global(NamedTuple):
    """An allowed name.  call: function(machine, *args) or None; storage, dtype: what the name stands for."""

    name: str
    call: object = None
    storage: bool = False
    dtype: str | None = None


class _Mark:
    """Bottom of a group on the stack."""


_MARK = _Mark()


class _Refused(Exception):
    """What is wrong at the current opcode; `run` adds the place."""


def _show(value):
    """A value for a message, at bounded length and without walking into it."""
    if isinstance(value, str):
        return repr(value if len(value) <= 80 else value[:77] + "...")
    if isinstance(value, (int, float, type(None))):
        return repr(value)
    if isinstance(value, (_Global, Opaque)):
        return value.name
    return f"a {type(value).__name__}"


def _is_count(value, limit=_MAX_STORAGE):
    return type(value) is int and 0 <= value <= limit


def _is_key(value):
    """May this be a key?  Not a tuple, hashed anew each time, nor a long integer, whose hash a file chooses."""
    return isinstance(value, _SCALARS) and not (isinstance(value, int) and value.bit_length() > 63)


def _counts(what, values):
    """A tuple of non-negative integers from a shape or strides of a file."""
    if type(values) not in (tuple, list) or len(values) > _MAX_AXES:
        raise _Refused(f"{what} is {_show(values)} and not a tuple of at most {_MAX_AXES} integers")
    for value in values:
        if not _is_count(value):
            raise _Refused(f"{what} contains {_show(value)}; only integers from 0 to 2^60 are possible")
    return tuple(values)


def _tensor(storage, dtype, offset, shape, strides, metadata=None):
    if not isinstance(storage, StorageRef):
        raise _Refused(f"a tensor is built on {_show(storage)} and not on a storage")
    if not _is_count(offset):
        raise _Refused(f"tensor offset is {_show(offset)}; only integers from 0 to 2^60 are possible")
    shape, strides = _counts("tensor shape", shape), _counts("tensor strides", strides)
    if len(shape) != len(strides):
        raise _Refused(f"a tensor has {len(shape)} sizes and {len(strides)} strides")
    if isinstance(metadata, dict) and any(metadata.get(flag) for flag in ("conj", "neg")):
        raise _Refused("a tensor is a lazy conjugate or negation; call .resolve_conj().resolve_neg() before saving")
    return TensorRef(storage, dtype, offset, shape, strides)


def _rebuild_tensor(_machine, storage, offset, shape, strides):
    if not isinstance(storage, StorageRef) or storage.dtype is None:
        raise _Refused(f"a tensor is built on {_show(storage)} and not on a typed storage")
    return _tensor(storage, storage.dtype, offset, shape, strides)


def _rebuild_tensor_v2(_machine, storage, offset, shape, strides, _requires_grad, _hooks, metadata=None):
    if not isinstance(storage, StorageRef) or storage.dtype is None:
        raise _Refused(f"a tensor is built on {_show(storage)} and not on a typed storage")
    return _tensor(storage, storage.dtype, offset, shape, strides, metadata)


def _rebuild_tensor_v3(_machine, storage, offset, shape, strides, _requires_grad, _hooks, dtype, metadata=None):
    if not isinstance(dtype, _Global) or dtype.dtype is None:
        raise _Refused(f"tensor dtype is {_show(dtype)} and not a torch dtype")
    return _tensor(storage, dtype.dtype, offset, shape, strides, metadata)


def _rebuild_parameter(_machine, data, _requires_grad, _hooks, _state=None):
    if not isinstance(data, TensorRef):
        raise _Refused(f"a parameter is built on {_show(data)} and not on a tensor")
    return data


def _rebuild_from_type(machine, function, _type, args, _state):
    if not isinstance(function, _Global) or function.call not in (_rebuild_tensor_v2, _rebuild_tensor_v3):
        raise _Refused(f"a tensor subclass is rebuilt by {_show(function)}")
    return machine.call(function, args)


def _ordered_dict(_machine):
    return {}


def _size(_machine, values):
    return _counts("torch.Size", values)


def _opaque(name):
    return _Global(name, lambda _machine, *_args: Opaque(name))


def _allowed():
    """module.name -> what it stands for."""
    calls = {
        "collections.OrderedDict": _ordered_dict,
        "torch.Size": _size,
        "torch._utils._rebuild_tensor": _rebuild_tensor,
        "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
        "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
        "torch._utils._rebuild_parameter": _rebuild_parameter,
        "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
        "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    }
    table = {name: _Global(name, call) for name, call in calls.items()}
    table |= {name: _Global(name) for name in ("torch.Tensor", "torch.nn.parameter.Parameter")}
    for name in (
        "torch.device", "torch.serialization._get_layout", "numpy.dtype", "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar", "__builtin__.set", "builtins.set", "_codecs.encode",
    ):  # fmt: skip
        table[name] = _opaque(name)
    storages = {
        "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
        "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool",
        "ComplexFloat": "complex64", "ComplexDouble": "complex128",
    }  # fmt: skip
    for prefix, dtype in storages.items():
        name = f"torch.{prefix}Storage"
        table[name] = _Global(name, storage=True, dtype=dtype)
    table["torch.storage.UntypedStorage"] = _Global("torch.storage.UntypedStorage", storage=True)
    for dtype in (
        *storages.values(), "uint16", "uint32", "uint64", "complex32", "float8_e4m3fn", "float8_e5m2",
        "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu",
    ):  # fmt: skip
        table[f"torch.{dtype}"] = _Global(f"torch.{dtype}", dtype=dtype)
    return table


_GLOBALS = _allowed()


class _Machine:
    """One run over one pickle.  data: bytes-like; at: index of the next byte; stack, memo: as pickle has them."""

    def __init__(self, data, start):
        self.data, self.at = data, start
        self.stack, self.memo, self.storages = [], {}, {}

    def take(self, count):
        """The next `count` bytes."""
        if count > len(self.data) - self.at:
            raise _Refused(f"{count} bytes are announced and {len(self.data) - self.at} are left")
        self.at += count
        return bytes(self.data[self.at - count : self.at])

    def number(self, size):
        """The next little-endian unsigned integer."""
        return int.from_bytes(self.take(size), "little")

    def line(self):
        """The next text up to a line end."""
        text = bytes(self.data[self.at : self.at + _MAX_NAME])
        end = text.find(b"\n")
        if end < 0:
            raise _Refused(f"a name does not end within {_MAX_NAME} bytes")
        self.at += end + 1
        return text[:end].decode("utf-8")

    def group(self):
        """Everything above the topmost mark, taken off the stack together with it."""
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                values = self.stack[index + 1 :]
                del self.stack[index:]
                return values
        raise _Refused("a group has no beginning")

    def pop(self):
        """The topmost value."""
        if not self.stack or self.stack[-1] is _MARK:
            raise _Refused("the stack is empty")
        return self.stack.pop()

    def top(self, kind):
        """The topmost value, left where it is; it must be of type `kind`."""
        if not self.stack or type(self.stack[-1]) is not kind:
            raise _Refused(f"there is no {kind.__name__} to add to")
        return self.stack[-1]

    def remember(self, index):
        if not self.stack or self.stack[-1] is _MARK:
            raise _Refused("there is nothing to remember")
        self.memo[index] = self.stack[-1]

    def recall(self, index):
        if index not in self.memo:
            raise _Refused(f"memo entry {index} was never written")
        self.stack.append(self.memo[index])

    def add_values(self, values):
        """Append to the list on top of the stack."""
        self.top(list).extend(values)

    def add_items(self, pairs):
        """Fill the dict on top of the stack from [key, value, key, value, ...]."""
        if len(pairs) % 2:
            raise _Refused("a dict is given a key without a value")
        target = self.top(dict)
        for key, value in zip(pairs[::2], pairs[1::2]):
            if not _is_key(key):
                raise _Refused(f"{_show(key)} is no key for a dict")
            target[key] = value

    def push_global(self, module, name):
        full = f"{module}.{name}"
        if full not in _GLOBALS:
            raise _Refused(
                f"the name {_show(full)} is not among those weights need, and is refused: a pickle can run any "
                "program. If you trust the file, load it with torch and save its state_dict() alone"
            )
        self.stack.append(_GLOBALS[full])

    def call(self, function, args):
        """The value of an allowed call."""
        if not isinstance(function, _Global) or function.call is None:
            raise _Refused(f"a call of {_show(function)} is refused")
        if type(args) is not tuple:
            raise _Refused(f"{function.name} is called with {_show(args)} and not with a tuple")
        try:
            return function.call(self, *args)
        except TypeError as error:
            raise _Refused(f"{function.name} is called with {len(args)} arguments, which it does not take") from error

    def reduce(self):
        args, function = self.pop(), self.pop()
        self.stack.append(self.call(function, args))

    def build(self):
        self.pop()
        if not self.stack or type(self.stack[-1]) not in (dict, Opaque):
            raise _Refused("attributes are set on a value that has none")

    def storage(self):
        """Replace the persistent id on top by its `StorageRef`."""
        ident = self.pop()
        if type(ident) is not tuple or len(ident) not in (5, 6) or ident[0] != "storage":
            raise _Refused("a persistent id is not ('storage', type, key, device, size)")
        kind, key, _device, numel = ident[1:5]
        if not isinstance(kind, _Global) or not kind.storage:
            raise _Refused(f"storage type is {_show(kind)}")
        if type(key) is not str or not _is_count(numel):
            raise _Refused(f"storage key {_show(key)} with size {_show(numel)} is impossible")
        if len(ident) == 6 and ident[5] is not None:
            raise _Refused(
                "a storage is a view of another, as torch before 0.4 wrote; save it again with a newer torch"
            )
        ref = StorageRef(key, kind.dtype, numel)
        if self.storages.setdefault(key, ref) != ref:
            raise _Refused(f"storage {_show(key)} is described in two ways")
        self.stack.append(ref)

    def push_int(self, size):
        if size > _MAX_INT_BYTES:
            raise _Refused(f"an integer of {size} bytes is longer than any size")
        self.stack.append(int.from_bytes(self.take(size), "little", signed=True))

    def push_text(self, size):
        self.stack.append(self.take(self.number(size)).decode("utf-8"))

    def push_bytes(self, size):
        self.stack.append(self.take(self.number(size)))

    def push_latin1(self, size):
        self.stack.append(self.take(self.number(size)).decode("latin1"))

    def push_tuple(self, count):
        values = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(values)))

    def proto(self):
        version = self.number(1)
        if not 2 <= version <= 5:
            raise _Refused(f"pickle protocol {version} is not one of 2 to 5")

    def stack_global(self):
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise _Refused("a global is named by something else than text")
        self.push_global(module, name)


_OPCODES = {
    b"\x80": _Machine.proto,
    b"\x95": lambda m: m.take(8),  # FRAME: the length of what follows, a hint for buffering
    b"(": lambda m: m.stack.append(_MARK),
    b"0": lambda m: m.stack.pop() if m.stack and m.stack[-1] is _MARK else m.pop(),
    b"1": lambda m: m.group(),
    b"N": lambda m: m.stack.append(None),
    b"\x88": lambda m: m.stack.append(True),
    b"\x89": lambda m: m.stack.append(False),
    b"J": lambda m: m.push_int(4),
    b"K": lambda m: m.stack.append(m.number(1)),
    b"M": lambda m: m.stack.append(m.number(2)),
    b"\x8a": lambda m: m.push_int(m.number(1)),
    b"\x8b": lambda m: m.push_int(m.number(4)),
    b"G": lambda m: m.stack.append(struct.unpack(">d", m.take(8))[0]),
    b"X": lambda m: m.push_text(4),
    b"\x8c": lambda m: m.push_text(1),
    b"\x8d": lambda m: m.push_text(8),
    b"U": lambda m: m.push_latin1(1),
    b"T": lambda m: m.push_latin1(4),
    b"C": lambda m: m.push_bytes(1),
    b"B": lambda m: m.push_bytes(4),
    b"\x8e": lambda m: m.push_bytes(8),
    b")": lambda m: m.stack.append(()),
    b"t": lambda m: m.stack.append(tuple(m.group())),
    b"\x85": lambda m: m.push_tuple(1),
    b"\x86": lambda m: m.push_tuple(2),
    b"\x87": lambda m: m.push_tuple(3),
    b"]": lambda m: m.stack.append([]),
    b"a": lambda m: m.add_values([m.pop()]),
    b"e": lambda m: m.add_values(m.group()),
    b"}": lambda m: m.stack.append({}),
    b"s": lambda m: m.add_items([m.pop(), m.pop()][::-1]),
    b"u": lambda m: m.add_items(m.group()),
    b"c": lambda m: m.push_global(m.line(), m.line()),
    b"\x93": _Machine.stack_global,
    b"R": _Machine.reduce,
    b"b": _Machine.build,
    b"Q": _Machine.storage,
    b"q": lambda m: m.remember(m.number(1)),
    b"r": lambda m: m.remember(m.number(4)),
    b"\x94": lambda m: m.remember(len(m.memo)),
    b"h": lambda m: m.recall(m.number(1)),
    b"j": lambda m: m.recall(m.number(4)),
}
_TABLE = {code[0]: action for code, action in _OPCODES.items()}


def _opcode_name(code):
    from pickletools import code2op

    known = code2op.get(chr(code))
    return known.name if known else f"0x{code:02x}"


def unpickle(data, where, start=0):
    """Run one pickle.

    data: bytes-like object; the pickle begins at index `start` and may be followed by other things.
    where: the file and member, for messages.
    Returns an `Unpickled`.  Raises FormatError, its text giving `where`, the byte and the reason.
    """
    machine = _Machine(data[: start + _MAX_BYTES], start)
    here = start
    try:
        for _ in range(_MAX_OPCODES):
            here = machine.at
            code = machine.number(1)
            if code == _STOP:
                return Unpickled(machine.pop(), machine.at, machine.storages)
            action = _TABLE.get(code)
            if action is None:
                raise _Refused(f"opcode {_opcode_name(code)} has no place in a file of weights, and is refused")
            action(machine)
        raise _Refused(f"more than {_MAX_OPCODES} opcodes")
    except _Refused as error:
        raise FormatError(f"{where}: byte {here} of the pickle: {error}") from error
    except UnicodeError as error:
        raise FormatError(f"{where}: byte {here} of the pickle: text is not valid in its encoding") from error
