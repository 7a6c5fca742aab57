"""Reading and writing `.pth` files, the container of `torch.save`, without torch.

    zip (torch 1.6 and later)                    legacy
    archive/data.pkl    the pickle               pickles: magic number, protocol 1001, facts of the machine
    archive/byteorder   "little"                 pickle:  the object
    archive/data/0 ...  one storage each         pickle:  list of the keys of the storages
    archive/version     "3"                      per key: int64 number of elements, the elements

Members of the zip are stored as they are, each starting at a multiple of 64 bytes, so a tensor is a view of the
memory-mapped file.  In the pickle a tensor is a call `_rebuild_tensor_v2(storage, offset, shape, strides, ...)`
and a storage a persistent id; see unpickle.py for what else may stand there.

Nothing but the directory and the pickle is read on opening, whatever the size of the file.  A file that another
program shortens while it is open ends the process with SIGBUS, as with every memory map; writers that rename,
as ours do, are safe.

Source: the files themselves, and torch/serialization.py for the order of the parts.
"""

import contextlib
import math
import mmap
import os
import struct
import threading

from ..errors import FormatError
from ..atomic import atomic_write
from .lazy_tensor import FLOATING, QUANTISED, Checkpoint, LazyTensor, itemsize, shape_of, stored_chunks, strip_prefix, target_dtype
from .unpickle import TensorRef, unpickle
from .zip_index import read_zip_index

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_WEIGHT_MEMBERS = ("state_dict", "model_state_dict", "model", "module")
_OPTIMIZER_MEMBERS = ("param_groups", "optimizer_state_dict", "optimizer_states", "optimizer")
_ALIGNMENT = 64
_CRC_THREADS = 4
_ZIP64_FROM = 1 << 30  # above this the 64-bit form is announced in advance; it is needed from 4 GiB on
_STORAGE_CLASS = {
    "float64": "Double", "float32": "Float", "float16": "Half", "bfloat16": "BFloat16", "int64": "Long",
    "int32": "Int", "int16": "Short", "int8": "Char", "uint8": "Byte", "bool": "Bool",
    "complex64": "ComplexFloat", "complex128": "ComplexDouble",
}  # fmt: skip
_OTHER_FILES = (
    (b"GGUF", "a GGUF file"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"version https://git-lfs", "a Git LFS pointer and not the file itself; fetch it with `git lfs pull`"),
    (b"<", "a web page; the download went wrong"),
    (b"\x93NUMPY", "a NumPy array"),
)
_BIG_ENDIAN = "written on a big-endian machine; load and save it again with torch on a little-endian one"


def _open(path):
    """The file as a read-only memory map."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise FormatError(f"{path}: the file is empty")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _storage_bytes(storage):
    return storage.numel * (1 if storage.dtype is None else itemsize(storage.dtype))


# The two containers.  Each gives the root object and a function from a StorageRef to its first byte in the file.


def _read_zip(data, path, verify):
    members = read_zip_index(data, path)
    roots = [name[: -len("data.pkl")] for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise FormatError(
            f"{path}: a zip file, but not one of torch: {len(roots)} members NAME/data.pkl instead of one"
        )
    root = roots[0]
    order = members.get(root + "byteorder")
    if order and data[order.start : order.start + min(order.size, 16)].strip() != b"little":
        raise FormatError(f"{path}: {_BIG_ENDIAN}")
    member = members[root + "data.pkl"]
    pickle = memoryview(data)[member.start : member.start + member.size]
    _check_crc(pickle, member, path)
    root_object, end, _ = unpickle(pickle, f"{path}: data.pkl")
    if end != member.size:
        raise FormatError(f"{path}: data.pkl: {member.size - end} bytes follow the pickle")

    if verify:
        _check_all(data, members, path)

    def place(storage):
        entry = members.get(f"{root}data/{storage.key}")
        if entry is None:
            raise FormatError(f"{path}: storage {storage.key[:80]!r} is not in the file")
        if entry.size != _storage_bytes(storage):
            size = _storage_bytes(storage)
            raise FormatError(f"{path}: storage {storage.key[:80]!r} has {entry.size} bytes instead of {size}")
        return entry.start

    return root_object, place


def _check_all(data, members, path):
    """The checksums of all members, on a few threads: one reads about 1.5 GB/s.  Raises FormatError naming the first that is wrong."""
    view, waiting, damaged = memoryview(data), sorted(members.items(), key=lambda item: item[1].size), []

    def work():
        with contextlib.suppress(IndexError):  # from an empty list: done
            while not damaged:
                name, entry = waiting.pop()
                try:
                    _check_crc(view[entry.start : entry.start + entry.size], entry, path, name)
                except FormatError as error:
                    damaged.append(error)

    threads = [threading.Thread(target=work) for _ in range(min(_CRC_THREADS, os.cpu_count() or 1) - 1)]
    for thread in threads:
        thread.start()
    work()
    for thread in threads:
        thread.join()
    if damaged:
        raise damaged[0]


def _check_crc(content, member, path, name="data.pkl"):
    """The checksum of a member; torch writes 0 where it was told not to compute one."""
    import zlib

    if member.crc and zlib.crc32(content) != member.crc:
        raise FormatError(f"{path}: {name} is damaged: its checksum is wrong; download or copy the file again")


def _read_legacy(data, path):
    view = memoryview(data)
    magic, at, _ = unpickle(view, path)
    if type(magic) is not int or magic != _MAGIC:
        raise FormatError(f"{path}: a pickle, but not one of torch (no magic number); save the weights with torch.save")
    protocol, at, _ = unpickle(view, path, at)
    machine, at, _ = unpickle(view, path, at)
    if type(protocol) is not int or protocol != _PROTOCOL or type(machine) is not dict:
        raise FormatError(f"{path}: legacy torch file with an unknown protocol")
    if machine.get("little_endian") is not True:
        raise FormatError(f"{path}: {_BIG_ENDIAN}")
    root_object, at, storages = unpickle(view, path, at)
    keys, at, _ = unpickle(view, path, at)
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise FormatError(f"{path}: the list of storages is damaged")
    starts = _legacy_starts(view, path, keys, at, storages)

    def place(storage):
        if storage.key not in starts:
            raise FormatError(f"{path}: storage {storage.key[:80]!r} is not in the file")
        return starts[storage.key]

    return root_object, place


def _legacy_starts(view, path, keys, at, storages):
    """key -> first byte, for storages that follow one another from byte `at`; their dtypes come from the pickle."""
    starts = {}
    for key in keys:
        storage = storages.get(key)
        if storage is None or key in starts:
            raise FormatError(f"{path}: storage {key[:80]!r} is listed, but no tensor uses it, or it is listed twice")
        if at + 8 > len(view):
            raise FormatError(f"{path}: the file ends before storage {key[:80]!r}; was it downloaded completely?")
        (numel,) = struct.unpack_from("<q", view, at)
        if numel != storage.numel:
            raise FormatError(f"{path}: storage {key[:80]!r} has {numel} elements instead of {storage.numel}")
        starts[key] = at + 8
        at += 8 + _storage_bytes(storage)
        if at > len(view):
            raise FormatError(f"{path}: the file ends within storage {key[:80]!r}; was it downloaded completely?")
    return starts


# From the root object to tensors by name.


def _state_dict(root_object, path):
    """The dict of tensors in the root object: one of its usual members, or itself."""
    found = root_object
    for _ in range(4):  # a dict may contain itself
        if not isinstance(found, dict):
            kind = type(found).__name__
            raise FormatError(f"{path}: holds a {kind} and not a dict of tensors; save model.state_dict()")
        inner = [found[name] for name in _WEIGHT_MEMBERS if isinstance(found.get(name), dict)]
        if not inner:
            break
        found = inner[0]
    tensors = {name: value for name, value in found.items() if isinstance(value, TensorRef)}
    if not tensors and any(name in found for name in _OPTIMIZER_MEMBERS):
        raise FormatError(f"{path}: the state of an optimizer, without weights; give the file with the model beside it")
    if not tensors:
        names = ", ".join(str(name)[:40] for name in list(found)[:5] if isinstance(name, str))
        raise FormatError(f"{path}: holds no tensors; its members are: {names or 'none'}")
    return tensors


def _lazy(ref, name, place, path, data):
    """The tensor of a reference, after checking that it lies inside its storage."""
    where = f"{path}: tensor {name[:80]!r} of shape {ref.shape}"
    start = place(ref.storage)
    size = itemsize(ref.dtype)
    available = _storage_bytes(ref.storage) // size
    if 0 in ref.shape:
        needed = ref.offset
    else:
        needed = ref.offset + 1 + sum((count - 1) * step for count, step in zip(ref.shape, ref.strides))
    if needed > available:
        raise FormatError(f"{where} needs {needed} elements of a storage that has {available}")
    if math.prod(max(1, count) for count in ref.shape) > 1 << 56 or max(ref.strides, default=0) > 1 << 56:
        raise FormatError(f"{where} and strides {ref.strides} is too large to exist")
    return LazyTensor(ref.dtype, ref.shape, ref.strides, data, start + ref.offset * size)


def read_pth(path, strip_prefixes=True, verify=False):
    """Open a file written by `torch.save`, in either container.

    path: file name.  The file may hold a dict of tensors, or a dict with one as its member `state_dict`,
    `model_state_dict`, `model` or `module`; what is no tensor is passed over.
    strip_prefixes: take `_forward_module.`, `module.` and `model.` off the front of names (default True).
    verify: check the checksums of all numbers, which reads the whole file; otherwise only that of the names and shapes.
    Returns a `Checkpoint`: name -> `LazyTensor` (dtype, shape, `numpy()`); tensors are views of the mapped file.
    Raises FormatError (not such a file, damaged, or one that asks for anything but tensors), OSError.
    """
    data = _open(path)
    head = data[:64].lstrip()
    if head.startswith(b"PK"):
        container, (root_object, place) = "zip", _read_zip(data, path, verify)
    elif head.startswith(b"\x80"):
        container, (root_object, place) = "legacy", _read_legacy(data, path)
    else:
        kind = next((kind for magic, kind in _OTHER_FILES if head.startswith(magic)), "no file of torch")
        raise FormatError(f"{path}: this is {kind}; expected a .pth file")
    tensors = {}
    for name, ref in _state_dict(root_object, path).items():
        if not isinstance(name, str):
            raise FormatError(f"{path}: a tensor is named by {name!r:.80} and not by text")
        short = strip_prefix(name) if strip_prefixes else name
        if short in tensors:
            raise FormatError(f"{path}: two tensors are named {short[:80]!r} once prefixes are taken off")
        tensors[short] = _lazy(ref, name, place, path, data)
    _check_total(tensors, path, len(data))
    return Checkpoint(path, container, tensors)


def _check_total(tensors, path, file_size):
    """Refuse files whose tensors repeat the same bytes so often that a small file would fill the memory."""
    total = sum(tensor.nbytes for tensor in tensors.values())
    if total > 16 * file_size + 65536:
        raise FormatError(f"{path}: its tensors claim {total} bytes, the file has {file_size}")


def load_state_dict(path, dtype=None):
    """All tensors of a `.pth` file as arrays.

    dtype: a NumPy dtype for floating-point tensors; default: their own (bfloat16 becomes float32).
    Returns dict: name -> array; without conversion a read-only view of the mapped file.  Raises as `read_pth`.
    """
    return {name: tensor.numpy(dtype if tensor.dtype in FLOATING else None) for name, tensor in read_pth(path).items()}


# Writing.


def _binunicode(text):
    encoded = text.encode("utf-8")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _integer(value):
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _integers(values):
    return b"(" + b"".join(map(_integer, values)) + b"t"


def _pickle_tensor(name, key, dtype, shape):
    """The opcodes of one item of the dict: its name and the call that rebuilds it from storage `key`."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    storage = b"(" + _binunicode("storage") + f"ctorch\n{_STORAGE_CLASS[dtype]}Storage\n".encode()
    storage += _binunicode(str(key)) + _binunicode("cpu") + _integer(math.prod(shape)) + b"tQ"
    view = _integer(0) + _integers(shape) + _integers(strides)
    no_hooks = b"\x89ccollections\nOrderedDict\n)R"
    return _binunicode(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + no_hooks + b"tR"


def _plan(tensors, dtype):
    """[(name, dtype name, shape)] of what will be written."""
    if not tensors:
        raise ValueError("there are no tensors to write")
    plan = []
    for name in tensors:
        if not isinstance(name, str):
            raise TypeError(f"a tensor is named by {name!r:.80} and not by text")
        value = tensors[name]
        target = target_dtype(name, value, dtype)
        if target not in _STORAGE_CLASS:
            if target in QUANTISED:
                raise ValueError(f"tensor {name!r:.80}: a .pth file cannot hold {target}; write .safetensors, or dtype='bf16'")
            raise TypeError(f"tensor {name!r:.80}: torch stores no {target}; convert it (bf16 bits: bfloat16_tensor)")
        plan.append((name, target, shape_of(value)))
    return plan


def _add_member(archive, file, name, size, chunks):
    """Append one member whose data starts at a multiple of 64 bytes."""
    from zipfile import ZipInfo

    large = size >= _ZIP64_FROM
    info = ZipInfo(f"archive/{name}")
    info.create_system = 3
    header = 30 + len(info.filename) + 4 + (20 if large else 0)
    padding = -(file.tell() + header) % _ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
    with archive.open(info, "w", force_zip64=large) as member:
        for chunk in chunks:
            member.write(chunk)
    info.extra = b""  # the padding belongs in front of the data and not into the directory
    return info.CRC


def write_pth(path, tensors, dtype=None):
    """Write tensors as `torch.save` would; `torch.load` reads the file, with `weights_only` and with `mmap`.

    tensors: mapping name -> array of any shape, or `LazyTensor` (bf16 bits: `bfloat16_tensor`); the order of the
    names is kept.  Each is taken twice, first for its shape and then for its numbers, and let go before the next.
    dtype: "fp32", "bf16" (rounded to nearest, ties to even) or "fp16" for all floating-point tensors; None
    (default) leaves every tensor as it is.  Integers and bools always stay as they are.
    The file appears under its name when it is complete.  Equal tensors give equal files.
    Raises ValueError (dtype, a number too large for fp16, nothing to write), TypeError (a dtype torch has no
    storage for), OSError (disk full, no permission, ...; the message names the path).
    """
    from zipfile import ZipFile

    plan = _plan(tensors, dtype)
    items = b"".join(_pickle_tensor(name, key, *rest) for key, (name, *rest) in enumerate(plan))
    pickle = b"\x80\x02}(" + items + b"u."
    with atomic_write(path) as file, ZipFile(file, "w") as archive:
        identity = _add_member(archive, file, "data.pkl", len(pickle), [pickle])
        _add_member(archive, file, "byteorder", 6, [b"little"])
        for key, (name, target, shape) in enumerate(plan):
            value = tensors[name]
            if shape_of(value) != shape:
                raise ValueError(f"tensor {name!r:.80} changed its shape from {shape} while it was written")
            size = math.prod(shape) * itemsize(target)
            crc = _add_member(archive, file, f"data/{key}", size, stored_chunks(name, value, target))
            identity = identity * 1000003 + crc
        _add_member(archive, file, "version", 2, [b"3\n"])
        _add_member(archive, file, ".data/serialization_id", 40, [b"%040d" % (identity % 10**40)])
