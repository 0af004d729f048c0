"""Files of named arrays and a text. Any flipped bit and any cut in them is found.

They are safetensors files, which other programs can read. The header's metadata contain the text, a SHA-256 of each
array, and first of all a SHA-256 of the header itself: of its length and its bytes, with zeros in the digest's place.
The arrays follow without gaps up to the end of the file, so the digests cover every byte.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import numpy as np

from sorix_dist.store import files
from sorix_dist.store.files import DISK, PIECE, Buffer, Disk, write_whole

Array = np.ndarray[Any, Any]

FORMAT = "sorix_dist 2"
HEADER_LIMIT = 100_000_000  # bytes, the limit of other readers of safetensors files
VALUES_LIMIT = 2_000_000  # JSON values in a header, which take many times the memory that they take in the file
# The dtypes that can be saved, and their names in a file.
DTYPES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "uint32": "U32", "int32": "I32",
    "uint64": "U64", "int64": "I64", "float16": "F16", "float32": "F32", "float64": "F64",
}  # fmt: skip
_OF_NAMES = {name: np.dtype(dtype).newbyteorder("<") for dtype, name in DTYPES.items()}
_BFLOAT16 = "BF16"  # the upper half of a float32; NumPy has no such dtype

_BEFORE_DIGEST = b'{"__metadata__":{"digest":"'
_ZEROS = b"0" * 64
_DIGEST = slice(len(_BEFORE_DIGEST), len(_BEFORE_DIGEST) + len(_ZEROS))
_LENGTH = struct.Struct("<Q")


class DamagedFile(ValueError):
    """A file that is damaged or of another kind; the message says what is wrong with it."""


class OtherFormat(DamagedFile):
    """A file that another version of this package has written."""


# -- writing


def write(path: Path, arrays: Mapping[str, Array], text: str, disk: Disk = DISK) -> None:
    """Writes a file whole or not at all (see `write_whole`), and reads it back before it gets its name.

    Arrays are in C order and of one of DTYPES; other threads may change them meanwhile. ValueError if there is too
    much for a header, OSError if the file can't be written or reads back as something else.
    """
    ordered, start = _in_file_order(arrays, text)
    write_whole(path, _pieces(ordered, text, start), disk, check=_read_back)


def dump(arrays: Mapping[str, Array], text: str) -> bytes:
    """The bytes of such a file."""
    ordered, start = _in_file_order(arrays, text)
    content = bytearray(start + sum(array.nbytes for _, array in ordered))
    for at, piece in _pieces(ordered, text, start):
        content[at : at + len(piece)] = piece
    return bytes(content)


def _in_file_order(arrays: Mapping[str, Array], text: str) -> tuple[list[tuple[str, Array]], int]:
    """The arrays in the order of the file, and where the first one begins. The widest elements come first, so that
    each array begins at a multiple of its element size."""
    ordered = sorted(arrays.items(), key=lambda entry: -entry[1].dtype.itemsize)
    return ordered, len(_header(ordered, text, dict.fromkeys(arrays, _ZEROS.decode())))


def _pieces(ordered: Sequence[tuple[str, Array]], text: str, start: int) -> Iterator[tuple[int, Buffer]]:
    """Offsets and bytes to write: the arrays from `start` on, piece by piece, then the header with their digests.

    Each piece is copied before it is digested and written, because another thread may change the array in between.
    The next piece reuses the buffer.
    """
    digests = {}
    buffer = memoryview(bytearray(PIECE))
    for name, array in ordered:
        digest = hashlib.sha256()
        memory = _bytes(array)
        for at in range(0, memory.nbytes, PIECE):
            piece = buffer[: min(PIECE, memory.nbytes - at)]
            piece[:] = memory[at : at + PIECE]
            digest.update(piece)
            yield start + at, piece
        start += memory.nbytes
        digests[name] = digest.hexdigest()
    yield 0, _header(ordered, text, digests)


def _header(ordered: Sequence[tuple[str, Array]], text: str, digests: Mapping[str, str]) -> bytearray:
    """The length of the header and the header; the length does not depend on the digests."""
    metadata = {"digest": _ZEROS.decode(), "format": FORMAT, "text": text, "digests": _dumped(digests)}
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, array in ordered:
        start, end = end, end + array.nbytes
        header[name] = {"dtype": DTYPES[array.dtype.name], "shape": array.shape, "data_offsets": (start, end)}
    encoded = bytearray(_dumped(header).encode())
    encoded += b" " * (-len(encoded) % 8)
    if len(encoded) > HEADER_LIMIT or _count_values(encoded) > VALUES_LIMIT:
        raise ValueError(
            f"there are too many values outside of arrays: a file can have {VALUES_LIMIT} of them in "
            f"{HEADER_LIMIT} bytes; put long lists of numbers into arrays"
        )
    encoded[_DIGEST] = _header_digest(encoded)
    return bytearray(_LENGTH.pack(len(encoded))) + encoded


def _read_back(path: Path) -> None:
    try:
        verify(path)
    except DamagedFile as error:
        raise OSError(errno.EIO, f"what was read back is not what was written: {error}") from error


# -- reading


def read(path: Path) -> tuple[dict[str, Array], str]:
    """The arrays and the text of a file. DamagedFile if any byte differs from what was written."""
    with open_regular(path) as file:
        return read_from(file, os.fstat(file.fileno()).st_size)


def read_from(file: Any, size: int) -> tuple[dict[str, Array], str]:
    """The arrays and the text of an open file of `size` bytes; see `read`."""
    layout, text = _read_header(file, size)
    return dict(_read_arrays(file, layout)), text


def read_foreign(file: Any, size: int) -> dict[str, Array] | None:
    """The arrays of an open safetensors file of another program, which has no digests; None if it is no such
    file. bfloat16 becomes float32. DamagedFile if the header does not fit the file."""
    first = file.read(_LENGTH.size)
    (length,) = _LENGTH.unpack(first) if len(first) == _LENGTH.size else (0,)
    if not 2 <= length <= min(HEADER_LIMIT, size - _LENGTH.size):
        return None
    header = bytearray(length)
    _fill(file, memoryview(header))
    if not header.startswith(b"{") or header.startswith(_BEFORE_DIGEST) or FORMAT.encode() in header:
        return None  # two marks: a flipped bit in one must not disable the digests
    with _damage():
        entries = _parsed(header)
        entries.pop("__metadata__", None)
        layout = _layout(entries, {}, size - _LENGTH.size - length)
    return dict(_read_arrays(file, layout))


def verify(path: Path) -> None:
    """Raises what `read` would raise, with the memory of one piece."""
    with open_regular(path) as file:
        layout, _ = _read_header(file, os.fstat(file.fileno()).st_size)
        buffer = memoryview(bytearray(PIECE))
        for entry in layout:
            digest = hashlib.sha256()
            for at in range(entry.start, entry.stop, PIECE):
                piece = buffer[: min(PIECE, entry.stop - at)]
                _fill(file, piece)
                digest.update(piece)
                _check_bools(entry, piece)
            _check_digest(entry, digest.hexdigest())


def open_regular(path: Path) -> BinaryIO:
    """A file open for reading. DamagedFile for a pipe or a device, which might never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise DamagedFile("it is not a regular file, but a pipe or device")
    return open(descriptor, "rb", buffering=0)


class _Entry(NamedTuple):
    """An array in a file: its offsets behind the header, and the digest of its bytes, None if another program wrote
    the file."""

    start: int
    stop: int
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    digest: str | None
    bfloat16: bool


@contextmanager
def _damage() -> Iterator[None]:
    """Makes any error in a header a DamagedFile."""
    try:
        yield
    except DamagedFile:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise DamagedFile(f"its header can't be understood: {type(error).__name__}: {error}") from error


def _read_header(file: Any, size: int) -> tuple[list[_Entry], str]:
    if size < _LENGTH.size:
        raise DamagedFile(f"it has {size} bytes, too few for a file of arrays")
    first = file.read(_LENGTH.size)
    (length,) = _LENGTH.unpack(first)
    if length > min(HEADER_LIMIT, size - _LENGTH.size):
        pickled = (
            "; it looks like a pickle, which could run code; a state of torch's can be loaded from a file that "
            "safetensors.torch.save_file(state_dict, path) has written"
        )
        is_pickle = first[:1] == b"\x80" or first[:2] == b"PK"
        raise DamagedFile(f"it has {size} bytes and claims a header of {length}{pickled if is_pickle else ''}")
    header = bytearray(length)
    _fill(file, memoryview(header))
    if not header.startswith(_BEFORE_DIGEST):
        raise DamagedFile("it has no digest of its header")
    if bytes(header[_DIGEST]) != _header_digest(header):
        raise DamagedFile("the digest of its header is wrong")
    # A forged file has right digests too, so what follows trusts nothing.
    with _damage():
        entries = _parsed(header)
        metadata = entries.pop("__metadata__")
        if metadata["format"] != FORMAT:
            raise OtherFormat(f"its format is {metadata['format']!r}, this version of sorix_dist reads {FORMAT!r}")
        text = metadata["text"]
        if not isinstance(text, str):
            raise DamagedFile(f"its text is a {type(text).__name__}")
        digests = json.loads(metadata["digests"], object_pairs_hook=_unique_names)
        undigested = [name for name in entries if not isinstance(digests[name], str)]
        if undigested:
            raise DamagedFile(f"the array {undigested[0]!r} has no digest")
        return _layout(entries, digests, size - _LENGTH.size - length), text


def _parsed(header: bytearray) -> dict[str, Any]:
    if _count_values(header) > VALUES_LIMIT:
        raise DamagedFile(f"its header has more than {VALUES_LIMIT} values")
    entries = json.loads(header.decode(), object_pairs_hook=_unique_names, parse_float=_refuse, parse_constant=_refuse)
    if not isinstance(entries, dict):
        raise DamagedFile(f"its header is a {type(entries).__name__}")
    return entries


def _layout(entries: Mapping[str, Any], digests: Mapping[str, str], size: int) -> list[_Entry]:
    """The arrays in the `size` bytes behind a header, which they fill without gaps."""
    layout = sorted(_entry(name, entry, digests.get(name)) for name, entry in entries.items())
    end = 0
    for entry in layout:
        if entry.start != end:
            raise DamagedFile(f"the array {entry.name!r} begins at {entry.start}, but the one before ends at {end}")
        end = entry.stop
    if end != size:
        raise DamagedFile(f"it has {size} bytes of arrays, its header claims {end}")
    return layout


def _entry(name: str, entry: Any, digest: str | None) -> _Entry:
    try:
        kind, shape, (start, stop) = str(entry["dtype"]), list(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        wanted = "must have a dtype, a shape and two data_offsets"
        raise DamagedFile(f"the array {name!r} {wanted}, got {str(entry)[:200]}") from error
    bfloat16 = kind == _BFLOAT16 and digest is None
    if kind not in _OF_NAMES and not bfloat16:
        known = ", ".join([*_OF_NAMES, _BFLOAT16])
        raise DamagedFile(f"the array {name!r} has an unknown dtype, {kind!r}: convert it to one of {known} first")
    dtype = np.dtype("<u2") if bfloat16 else _OF_NAMES[kind]
    numbers = [*shape, start, stop]
    if len(shape) > 64 or not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise DamagedFile(f"the array {name!r} has an impossible shape or place: {str(numbers)[:200]}")
    if math.prod(shape) * dtype.itemsize != stop - start:
        raise DamagedFile(f"the array {name!r} has {stop - start} bytes, which is not its shape {shape} of {kind}")
    if start == stop:
        try:
            np.empty(0, dtype).reshape(shape)
        except ValueError as error:
            raise DamagedFile(f"the array {name!r} has an impossible shape: {error}") from error
    return _Entry(start, stop, name, dtype, tuple(shape), digest, bfloat16)


def _read_arrays(file: Any, layout: list[_Entry]) -> Iterator[tuple[str, Array]]:
    for entry in layout:
        array = np.empty(entry.stop - entry.start, np.uint8)
        _fill(file, array.data)
        if entry.digest is not None:
            _check_digest(entry, hashlib.sha256(array.data).hexdigest())
        _check_bools(entry, array.data)
        shaped = array.view(entry.dtype).reshape(entry.shape)
        native = shaped.astype(entry.dtype.newbyteorder("="), copy=False)
        yield entry.name, (native.astype(np.uint32) << 16).view(np.float32) if entry.bfloat16 else native


def _check_digest(entry: _Entry, digest: str) -> None:
    if digest != entry.digest:
        raise DamagedFile(f"the digest of the array {entry.name!r} is wrong")


def _check_bools(entry: _Entry, memory: memoryview) -> None:
    if entry.dtype.name == "bool" and memory.nbytes and np.frombuffer(memory, np.uint8).max() > 1:
        raise DamagedFile(f"the array {entry.name!r} has bytes that are not booleans")


def _fill(file: Any, memory: memoryview) -> None:
    at = 0
    while at < memory.nbytes:
        count = file.readinto(memory[at : at + PIECE])
        if not count:
            raise DamagedFile("it became shorter while it was read")
        at += count
        files.on_progress()


def _bytes(array: Array) -> memoryview:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return little.reshape(-1).view(np.uint8).data if little.size else memoryview(b"")


def _dumped(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _header_digest(header: bytearray) -> bytes:
    digest = hashlib.sha256(_LENGTH.pack(len(header)))
    view = memoryview(header)
    digest.update(view[: _DIGEST.start])
    digest.update(_ZEROS)
    digest.update(view[_DIGEST.stop :])
    return digest.hexdigest().encode()


def _count_values(header: bytearray) -> int:
    """An upper bound of the number of JSON values in a header."""
    return 1 + sum(header.count(mark) for mark in (b",", b"[", b"{"))


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise DamagedFile("two entries of its header have one name")
    return entries


def _refuse(text: str) -> NoReturn:
    raise DamagedFile(f"its header has the number {text[:50]!r}, which is not an integer")
