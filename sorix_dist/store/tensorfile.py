"""Files of named arrays and a text, in which any flipped bit and any cut is found.

They are safetensors files, which other tools read too. The header's metadata hold the text, the SHA-256 of the
bytes of each array, and first of all the SHA-256 of the header itself: of its length and its bytes, with zeros
where that digest stands. The arrays follow without a gap up to the end of the file, so every byte is covered.
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
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import numpy as np

from sorix_dist.store.files import DISK, PIECE, Buffer, Disk, write_whole

Array = np.ndarray[Any, Any]

FORMAT = "sorix_dist 2"
HEADER_LIMIT = 100_000_000  # bytes, as other readers of such files have it
VALUES_LIMIT = 2_000_000  # values in a header: what they take in memory is many times what they take in a file
# The element types that are saved, and their names in a file.
DTYPES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "uint32": "U32", "int32": "I32",
    "uint64": "U64", "int64": "I64", "float16": "F16", "float32": "F32", "float64": "F64",
}  # fmt: skip
_OF_NAMES = {name: np.dtype(dtype).newbyteorder("<") for dtype, name in DTYPES.items()}
_BFLOAT16 = "BF16"  # which NumPy does not have: read as the upper half of float32

_BEFORE_DIGEST = b'{"__metadata__":{"digest":"'
_ZEROS = b"0" * 64
_DIGEST = slice(len(_BEFORE_DIGEST), len(_BEFORE_DIGEST) + len(_ZEROS))
_LENGTH = struct.Struct("<Q")


class DamagedFile(ValueError):
    """A file that is not as it was written, or was not written here; the message says what is wrong with it."""


def write(path: Path, arrays: Mapping[str, Array], text: str, disk: Disk = DISK) -> None:
    """Writes a file whole or not at all (see `write_whole`), and reads it back before it gets its name.

    Arrays are in C order and of one of DTYPES; other threads may change them meanwhile. ValueError if there is too
    much for a header, OSError if the file can't be written or does not come back as it was written.
    """
    ordered, start = _laid_out(arrays, text)
    write_whole(path, _pieces(ordered, text, start), disk, check=_read_back)


def _laid_out(arrays: Mapping[str, Array], text: str) -> tuple[list[tuple[str, Array]], int]:
    """The arrays in the order of the file, and where the first one begins. The widest elements come first, so that
    each array begins at a multiple of its elements' size."""
    ordered = sorted(arrays.items(), key=lambda entry: -entry[1].dtype.itemsize)
    return ordered, len(_header(ordered, text, dict.fromkeys(arrays, _ZEROS.decode())))


def _pieces(ordered: Sequence[tuple[str, Array]], text: str, start: int) -> Iterator[tuple[int, Buffer]]:
    """What is to be written, and where: a copy of each piece of the arrays, which lie from `start` on, then the header
    with the digests of these copies; the arrays may have changed by the time they are on the disk. A copy holds until
    the next one is asked for."""
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
    """The header, as long as it is with any other digests, behind its length."""
    metadata = {"digest": _ZEROS.decode(), "format": FORMAT, "text": text, "digests": _dumped(digests)}
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, array in ordered:
        start, end = end, end + array.nbytes
        header[name] = {"dtype": DTYPES[array.dtype.name], "shape": array.shape, "data_offsets": (start, end)}
    encoded = bytearray(_dumped(header).encode())
    encoded += b" " * (-len(encoded) % 8)
    if len(encoded) > HEADER_LIMIT or _values(encoded) > VALUES_LIMIT:
        raise ValueError(
            f"there are too many values outside of arrays: a file holds {VALUES_LIMIT} of them in "
            f"{HEADER_LIMIT} bytes; long lists of numbers belong into arrays"
        )
    encoded[_DIGEST] = _header_digest(encoded)
    return bytearray(_LENGTH.pack(len(encoded))) + encoded


def _read_back(path: Path) -> None:
    try:
        verify(path)
    except DamagedFile as error:
        raise OSError(errno.EIO, f"what was read back is not what was written: {error}") from error


def dump(arrays: Mapping[str, Array], text: str) -> bytes:
    """The bytes of such a file."""
    ordered, start = _laid_out(arrays, text)
    content = bytearray(start + sum(array.nbytes for _, array in ordered))
    for at, piece in _pieces(ordered, text, start):
        content[at : at + len(piece)] = piece
    return bytes(content)


def read(path: Path) -> tuple[dict[str, Array], str]:
    """The arrays and the text of a file. DamagedFile if anything in it is not as it was written."""
    with open_regular(path) as file:
        return read_from(file, os.fstat(file.fileno()).st_size)


def read_from(file: Any, size: int) -> tuple[dict[str, Array], str]:
    """The arrays and the text in `size` bytes of a file that is open for reading; see `read`."""
    layout, text = _read_header(file, size)
    return dict(_read_arrays(file, layout)), text


def read_foreign(file: Any, size: int) -> dict[str, Array] | None:
    """The arrays of a safetensors file that another program wrote, which has no digests; None if it is none of those.

    bfloat16 becomes float32. DamagedFile if the header does not fit the file.
    """
    first = file.read(_LENGTH.size)
    (length,) = _LENGTH.unpack(first) if len(first) == _LENGTH.size else (0,)
    if not 2 <= length <= min(HEADER_LIMIT, size - _LENGTH.size):
        return None
    header = bytearray(length)
    _fill(file, memoryview(header))
    if not header.startswith(b"{") or header.startswith(_BEFORE_DIGEST) or FORMAT.encode() in header:
        return None  # one bit that is flipped makes no file of ours one of another program
    entries = _parsed(header)
    entries.pop("__metadata__", None)
    layout = _layout(entries, {}, size - _LENGTH.size - length)
    return dict(_read_arrays(file, layout))


def verify(path: Path) -> None:
    """Raises what `read` would raise, and takes the memory of a piece only."""
    with open_regular(path) as file:
        layout, _ = _read_header(file, os.fstat(file.fileno()).st_size)
        buffer = memoryview(bytearray(PIECE))
        for place in layout:
            digest = hashlib.sha256()
            for at in range(place.start, place.stop, PIECE):
                piece = buffer[: min(PIECE, place.stop - at)]
                _fill(file, piece)
                digest.update(piece)
                _check_bools(place, piece)
            _check_digest(place, digest.hexdigest())


def open_regular(path: Path) -> BinaryIO:
    """A file open for reading. DamagedFile for a pipe or a device, which might be read for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise DamagedFile("it is no regular file, but a pipe or device")
    return open(descriptor, "rb", buffering=0)


class _Place(NamedTuple):
    """Where an array is in a file, what it is, and the digest of its bytes, None in a file of another program."""

    start: int
    stop: int
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    digest: str | None
    bfloat16: bool


def _read_header(file: Any, size: int) -> tuple[list[_Place], str]:
    if size < _LENGTH.size:
        raise DamagedFile(f"it has {size} bytes, which is no file of arrays")
    first = file.read(_LENGTH.size)
    (length,) = _LENGTH.unpack(first)
    if length > min(HEADER_LIMIT, size - _LENGTH.size):
        pickled = first[:1] == b"\x80" or first[:2] == b"PK"
        pickled = (
            "; it looks like a pickle, which could run code; a state of torch's can be loaded from a file that "
            "safetensors.torch.save_file(state_dict, path) has written"
            if pickled
            else ""
        )
        raise DamagedFile(f"it has {size} bytes and claims a header of {length}{pickled}")
    header = bytearray(length)
    _fill(file, memoryview(header))
    if not header.startswith(_BEFORE_DIGEST):
        raise DamagedFile("it has no digest of its header; files of other programs are read by safetensors")
    if bytes(header[_DIGEST]) != _header_digest(header):
        raise DamagedFile("the digest of its header is wrong")
    entries = _parsed(header)
    try:
        metadata = entries.pop("__metadata__")
        if metadata["format"] != FORMAT:
            raise DamagedFile(f"its format is {metadata['format']!r}, this version reads {FORMAT!r}")
        text = metadata["text"]
        if not isinstance(text, str):
            raise DamagedFile("its text is none")
        digests = json.loads(metadata["digests"], object_pairs_hook=_without_repetition)
        missing = [name for name in entries if name not in digests]
        if missing:
            raise DamagedFile(f"the array {missing[0]!r} has no digest")
    except DamagedFile:
        raise
    except _BAD_JSON as error:
        raise DamagedFile(f"its header is none: {type(error).__name__}: {error}") from error
    return _layout(entries, digests, size - _LENGTH.size - length), text


_BAD_JSON = (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError)


def _parsed(header: bytearray) -> dict[str, Any]:
    """The JSON of a header, which may be anyone's: it can't take much more memory than the file."""
    if _values(header) > VALUES_LIMIT:
        raise DamagedFile(f"its header has more than {VALUES_LIMIT} values")
    try:
        entries = json.loads(
            header.decode(), object_pairs_hook=_without_repetition, parse_float=_refuse, parse_constant=_refuse
        )
    except DamagedFile:
        raise
    except _BAD_JSON as error:
        raise DamagedFile(f"its header is none: {type(error).__name__}: {error}") from error
    if not isinstance(entries, dict):
        raise DamagedFile(f"its header is none, but a {type(entries).__name__}")
    return entries


def _layout(entries: Mapping[str, Any], digests: Mapping[str, Any], size: int) -> list[_Place]:
    """Where the arrays of a header lie in the `size` bytes behind it: one after the other, without a gap."""
    try:
        layout = sorted(_place(name, entry, digests.get(name)) for name, entry in entries.items())
    except DamagedFile:
        raise
    except _BAD_JSON as error:
        raise DamagedFile(f"its header is none: {type(error).__name__}: {error}") from error
    end = 0
    for place in layout:
        if place.start != end:
            raise DamagedFile(f"the array {place.name!r} begins at {place.start}, but the one before ends at {end}")
        end = place.stop
    if end != size:
        raise DamagedFile(f"it holds {size} bytes of arrays, not the {end} of its header")
    return layout


def _place(name: str, entry: Any, digest: Any) -> _Place:
    dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    known = _OF_NAMES.get(dtype) if digest is not None or dtype != _BFLOAT16 else np.dtype("<u2")
    if known is None:
        raise DamagedFile(f"the array {name!r} has an unknown dtype, {dtype!r}")
    numbers = [*shape, start, stop]
    if len(shape) > 64 or not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise DamagedFile(f"the array {name!r} has an impossible shape or place: {str(numbers)[:200]}")
    if math.prod(shape) * known.itemsize != stop - start:
        raise DamagedFile(f"the array {name!r} has {stop - start} bytes, which is not its shape {shape} of {dtype}")
    if start == stop:
        try:
            np.empty(0, known).reshape(shape)
        except ValueError as error:
            raise DamagedFile(f"the array {name!r} has an impossible shape: {error}") from error
    return _Place(start, stop, name, known, tuple(shape), digest, dtype == _BFLOAT16)


def _read_arrays(file: Any, layout: list[_Place]) -> Iterator[tuple[str, Array]]:
    for place in layout:
        array = np.empty(place.stop - place.start, np.uint8)
        _fill(file, array.data)
        if place.digest is not None:
            _check_digest(place, hashlib.sha256(array.data).hexdigest())
        _check_bools(place, array.data)
        shaped = array.view(place.dtype).reshape(place.shape)
        native = shaped.astype(place.dtype.newbyteorder("="), copy=False)
        yield place.name, (native.astype(np.uint32) << 16).view(np.float32) if place.bfloat16 else native


def _check_digest(place: _Place, digest: str) -> None:
    if digest != place.digest:
        raise DamagedFile(f"the digest of the array {place.name!r} is wrong")


def _check_bools(place: _Place, memory: memoryview) -> None:
    if place.dtype.name == "bool" and memory.nbytes and np.frombuffer(memory, np.uint8).max() > 1:
        raise DamagedFile(f"the array {place.name!r} has bytes that are not booleans")


def _fill(file: Any, memory: memoryview) -> None:
    at = 0
    while at < memory.nbytes:
        count = file.readinto(memory[at:])
        if not count:
            raise DamagedFile("it became shorter while it was read")
        at += count


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


def _values(header: bytearray) -> int:
    """At least as many values as the JSON in a header has."""
    return 1 + sum(header.count(mark) for mark in (b",", b"[", b"{"))


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise DamagedFile("two entries of its header have one name")
    return entries


def _refuse(text: str) -> NoReturn:
    raise DamagedFile(f"its header has the number {text[:50]!r}, which is no integer")
