"""The zip archive that torch.save writes, taken apart by hand: only plain, uncompressed entries that lie whole inside the file."""

import dataclasses
import struct
from collections.abc import Mapping

from lmx.convert.reading import OffsetReader
from lmx.convert.source import ConversionError

_END, _END64, _LOCATOR64, _CENTRAL, _LOCAL = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x01\x02", b"PK\x03\x04"
_END_BYTES, _LOCATOR_BYTES, _END64_BYTES, _CENTRAL_BYTES, _LOCAL_BYTES = 22, 20, 56, 46, 30
_LONGEST_COMMENT = 65_535
_MAX_DIRECTORY = 64 << 20  # bytes of names and offsets: a million entries
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_ENCRYPTED = 1
_TAR_OR_PICKLE = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One file in the archive.

    Attributes:
      offset: of its first byte in the archive.
      size: in bytes.
    """

    offset: int
    size: int


def read_entries(file: OffsetReader) -> Mapping[str, Entry]:
    """Name -> place of everything in the archive.

    Raises:
      ConversionError: the file is no zip archive, was cut short, or holds entries that are compressed, encrypted, named twice or
        with a path that leads elsewhere, overlapping or outside the file.
    """
    _check_beginning(file)
    position, length, count = _directory(file)
    data = file.read(position, length, "the archive's directory")
    entries: dict[str, Entry] = {}
    offset = 0
    for _ in range(count):
        name, entry, offset = _entry(file, data, offset, position)
        if name in entries:
            raise ConversionError(f"{file.path}: the entry {name!r} occurs twice in the archive")
        entries[name] = entry
    _check_apart(entries, file)
    return entries


def _check_beginning(file: OffsetReader) -> None:
    beginning = file.read(0, min(262, file.size), "its beginning")
    if beginning.startswith(_LOCAL):
        return
    if beginning.startswith(_TAR_OR_PICKLE) or beginning[257:262] == b"ustar":
        raise ConversionError(
            f"{file.path}: in the format of torch.save before version 1.6, which only unpickling could read; "
            "load it with torch in a place that you trust and save it again, best as safetensors"
        )
    raise ConversionError(
        f"{file.path}: not a checkpoint of torch.save: it begins with {beginning[:4]!r}, not with a zip archive's {_LOCAL!r}"
    )


def _directory(file: OffsetReader) -> tuple[int, int, int]:
    """Position, length and number of entries of the central directory."""
    size = file.size
    tail_length = min(size, _END_BYTES + _LONGEST_COMMENT)
    tail = file.read(size - tail_length, tail_length, "the archive's end")
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < _END_BYTES:
        raise ConversionError(f"{file.path}: the zip archive ({size:,} bytes) has no end; the file was cut short")
    disk, _, _, count, length, position, comment = struct.unpack_from("<4H2IH", tail, at + 4)
    end = size - tail_length + at
    if end + _END_BYTES + comment != size:
        raise ConversionError(f"{file.path}: the zip archive does not end where the file ends; it was changed or cut short")
    if disk not in (0, _FULL16):
        raise ConversionError(f"{file.path}: the zip archive is split over several disks, which torch.save never does")
    if count == _FULL16 or _FULL32 in (length, position):
        count, length, position, end = _directory64(file, end)
    if length > _MAX_DIRECTORY or position + length > end or count * _CENTRAL_BYTES > length:
        raise ConversionError(
            f"{file.path}: the zip archive's directory ({count:,} entries, {length:,} bytes at byte {position:,}) does not fit "
            f"in front of its end at {end:,}"
        )
    return position, length, count


def _directory64(file: OffsetReader, end: int) -> tuple[int, int, int, int]:
    """Number of entries, length and position of the central directory of a large archive, and where its end record begins."""
    locator = file.read(end - _LOCATOR_BYTES, _LOCATOR_BYTES, "the large archive's locator")
    if not locator.startswith(_LOCATOR64):
        raise ConversionError(f"{file.path}: the zip archive says it is a large one, but lacks a large one's locator")
    at: int = struct.unpack_from("<Q", locator, 8)[0]
    record = file.read(at, _END64_BYTES, "the large archive's end")
    if not record.startswith(_END64):
        raise ConversionError(f"{file.path}: the large zip archive's end is not at byte {at:,}, where its locator says")
    count, length, position = struct.unpack_from("<3Q", record, 32)
    return count, length, position, at


def _entry(file: OffsetReader, data: bytes, offset: int, directory: int) -> tuple[str, Entry, int]:
    """The entry described at an offset of the central directory, checked against its local header; the offset of the next."""
    if data[offset : offset + 4] != _CENTRAL or len(data) - offset < _CENTRAL_BYTES:
        raise ConversionError(f"{file.path}: the zip archive's directory is damaged at byte {directory + offset:,}")
    _, _, flags, method, _, _, _, stored, size, name_length, extra_length, comment_length = struct.unpack_from(
        "<6H3I3H", data, offset + 4
    )
    local: int = struct.unpack_from("<I", data, offset + 42)[0]
    begin = offset + _CENTRAL_BYTES
    following = begin + name_length + extra_length + comment_length
    if following > len(data):
        raise ConversionError(f"{file.path}: the zip archive's directory is damaged at byte {directory + offset:,}")
    raw = data[begin : begin + name_length]
    name = _checked_name(raw, file)
    stored, size, local = _extended(
        data[begin + name_length : begin + name_length + extra_length], (stored, size, local), name, file
    )
    if method != 0 or stored != size:
        raise ConversionError(f"{file.path}: the entry {name!r} is compressed, which torch.save never does")
    if flags & _ENCRYPTED:
        raise ConversionError(f"{file.path}: the entry {name!r} is encrypted")
    header = file.read(local, _LOCAL_BYTES, f"the header of {name!r}")
    local_name, local_extra = struct.unpack_from("<2H", header, 26)
    start = local + _LOCAL_BYTES + local_name + local_extra
    if not header.startswith(_LOCAL) or file.read(local + _LOCAL_BYTES, local_name, f"the name of {name!r}") != raw:
        raise ConversionError(f"{file.path}: the entry {name!r} is not at byte {local:,}, where the archive's directory says")
    if start + size > directory:
        raise ConversionError(
            f"{file.path}: the entry {name!r} of {size:,} bytes at byte {start:,} reaches into the archive's directory"
        )
    return name, Entry(start, size), following


def _checked_name(raw: bytes, file: OffsetReader) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ConversionError(f"{file.path}: an entry of the archive has a name that is not UTF-8: {raw[:40]!r}") from None
    parts = name.split("/")
    if not name or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts) or ":" in parts[0]:
        raise ConversionError(f"{file.path}: an entry of the archive has the name {name[:80]!r}, which is no plain relative path")
    return name


def _extended(extra: bytes, fields: tuple[int, int, int], name: str, file: OffsetReader) -> tuple[int, int, int]:
    """Stored size, size and header offset, those that do not fit 32 bits from the extra field of large archives."""
    stored, size, local = fields
    if _FULL32 not in fields:
        return fields
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        body, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == 1:
            numbers = iter(struct.unpack_from(f"<{len(body) // 8}Q", body))
            size = next(numbers, size) if size == _FULL32 else size
            stored = next(numbers, stored) if stored == _FULL32 else stored
            local = next(numbers, local) if local == _FULL32 else local
            return stored, size, local
    raise ConversionError(f"{file.path}: the entry {name!r} says it is a large one, but lacks a large one's sizes")


def _check_apart(entries: Mapping[str, Entry], file: OffsetReader) -> None:
    ordered = sorted(entries.items(), key=lambda item: item[1].offset)
    for (before, first), (after, second) in zip(ordered, ordered[1:], strict=False):
        if first.offset + first.size > second.offset:
            raise ConversionError(f"{file.path}: the entries {before!r} and {after!r} of the archive overlap")
