"""Where the members of a zip file lie, for a file nobody vouches for.

    local header + data, ... | central directory | [zip64 record, zip64 locator] | end record

Only what `torch.save` writes is accepted: members stored without compression or encryption, one disk, nothing
before the first member or after the end record, no name twice, no two members over the same bytes.
Programs that read a zip file by different ends then see the same members.  The standard `zipfile` writes our
files; for reading, it would trust announced lengths and hand out copies where a memory map needs positions.

Format: PKWARE APPNOTE 6.3, sections 4.3 and 4.5.3.
"""

import struct
from typing import NamedTuple

from ..errors import FormatError

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_MAX_DIRECTORY = 64 << 20
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF


class Member(NamedTuple):
    """start, size: the member's bytes in the file.  crc: its CRC-32, 0 where the writer did not compute it."""

    start: int
    size: int
    crc: int


def _fail(path, reason):
    raise FormatError(f"{path}: damaged or not written by torch: {reason}")


def _show(name):
    """A member's name for a message."""
    return repr(name if len(name) <= 80 else name[:77] + "...")


def _end_record(data, path):
    """(first byte of the central directory, its length, number of members, where it must end)."""
    at = data.rfind(b"PK\x05\x06", max(0, len(data) - _END.size - _FULL16))
    if at < 0 or at + _END.size > len(data):
        _fail(path, "the end of the zip directory is missing; the file is cut off (was it downloaded completely?)")
    _, disk, disk2, here, count, size, start, comment = _END.unpack_from(data, at)
    if at + _END.size + comment != len(data):
        _fail(path, "bytes follow the end of the zip directory")
    end = at
    if at >= _LOCATOR.size and data[at - _LOCATOR.size : at - _LOCATOR.size + 4] == b"PK\x06\x07":
        _, disk, end, disks = _LOCATOR.unpack_from(data, at - _LOCATOR.size)
        if end + _END64.size > at - _LOCATOR.size or disks > 1:
            _fail(path, "the zip64 record lies outside the file")
        mark, length, _, _, disk, disk2, here, count, size, start = _END64.unpack_from(data, end)
        if mark != b"PK\x06\x06" or end + 12 + length != at - _LOCATOR.size:
            _fail(path, "the zip64 record is not where it should be")
    if disk or disk2 or here != count:
        _fail(path, "the zip file is split over several disks")
    if start + size != end or size > _MAX_DIRECTORY or count * _CENTRAL.size > size:
        _fail(path, f"the zip directory of {count} members, {size} bytes at {start}, does not fit the file")
    return start, size, count


def _zip64(extra, wanted, path, name):
    """The 64-bit values of a member's extra field, as many as the header left open."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1 and length >= 8 * wanted and at + 4 + length <= len(extra):
            return list(struct.unpack_from(f"<{wanted}Q", extra, at + 4))
        at += 4 + length
    _fail(path, f"member {_show(name)} lacks its 64-bit sizes")


def _place(data, path, name, header, size, limit):
    """Start of a member's data, from its local header, which must agree with the directory."""
    if header + _LOCAL.size > limit:
        _fail(path, f"member {_show(name)} lies outside the file")
    mark, _, flags, method, _, _, _, _, _, name_length, extra_length = _LOCAL.unpack_from(data, header)
    start = header + _LOCAL.size + name_length + extra_length
    if mark != b"PK\x03\x04" or method or flags & 1:
        _fail(path, f"member {_show(name)} has no header of its own that agrees with the directory")
    if data[header + _LOCAL.size : header + _LOCAL.size + name_length] != name.encode("utf-8"):
        _fail(path, f"member {_show(name)} goes by another name in the directory than at its place")
    if start + size > limit:
        _fail(path, f"member {_show(name)} of {size} bytes at {start} does not fit the file; is it cut off?")
    return start


def _entry(data, path, at, end):
    """One entry of the directory: (name, header position, size, crc, position of the next entry)."""
    if at + _CENTRAL.size > end:
        _fail(path, "the zip directory ends within an entry")
    fields = _CENTRAL.unpack_from(data, at)
    mark, flags, method, crc, packed, size = fields[0], fields[3], fields[4], fields[7], fields[8], fields[9]
    name_length, extra_length, comment, header = fields[10], fields[11], fields[12], fields[16]
    name_at = at + _CENTRAL.size
    following = name_at + name_length + extra_length + comment
    if mark != b"PK\x01\x02" or following > end:
        _fail(path, "the zip directory holds something that is no entry")
    try:
        name = data[name_at : name_at + name_length].decode("utf-8")
    except UnicodeError:
        _fail(path, "a member's name is not UTF-8")
    open_fields = [value for value in (size, packed, header) if value == _FULL32]
    if open_fields:
        extra = data[name_at + name_length : name_at + name_length + extra_length]
        values = iter(_zip64(extra, len(open_fields), path, name))
        size, packed, header = (next(values) if value == _FULL32 else value for value in (size, packed, header))
    if flags & 1:
        _fail(path, f"member {_show(name)} is encrypted")
    if method or packed != size:
        _fail(path, f"member {_show(name)} is compressed, which torch never does; save the weights with torch.save")
    return name, header, size, crc, following


def read_zip_index(data, path):
    """The members of a zip file.

    data: the whole file as bytes or mmap; path: for messages.
    Returns dict: member name -> `Member`, in the order of the directory.  Raises FormatError.
    """
    start, size, count = _end_record(data, path)
    members, spans, at = {}, [], start
    for _ in range(count):
        name, header, length, crc, at = _entry(data, path, at, start + size)
        if name in members:
            _fail(path, f"member {_show(name)} is there twice")
        if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
            _fail(path, f"member name {_show(name)} points outside the archive")
        members[name] = Member(_place(data, path, name, header, length, start), length, crc)
        spans.append((header, members[name].start + length, name))
    if at != start + size:
        _fail(path, "the zip directory is longer than its entries")
    spans.sort()
    if spans and spans[0][0] != 0:
        _fail(path, f"{spans[0][0]} bytes precede the first member")
    for (_, end, first), (header, _, second) in zip(spans, spans[1:]):
        if header < end:
            _fail(path, f"members {_show(first)} and {_show(second)} lie over the same bytes")
    return members
