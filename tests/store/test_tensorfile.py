"""Files of arrays: others read them, no damage is missed, and no dishonest file gets memory or anything else."""

from __future__ import annotations

import hashlib
import json
import random
import struct
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

from sorix_dist.store import tensorfile
from sorix_dist.store.files import PIECE, Disk
from sorix_dist.store.tensorfile import DamagedFile

ARRAYS = {
    "model.0.W": np.arange(12.0).reshape(3, 4),
    "half": np.arange(5, dtype=np.float16),
    "flags": np.array([True, False, True]),
    "scalar": np.array(7),
    "empty": np.zeros((0, 3), np.float32),
    "bytes": np.arange(3, dtype=np.uint8),
    "ünïcödé": np.arange(4, dtype=np.int32),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "arrays.safetensors"


def written(arrays: dict[str, Any], text: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        tensorfile.write(Path(folder, "arrays"), arrays, text)
        return Path(folder, "arrays").read_bytes()


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(DamagedFile) as caught:
        tensorfile.read(path)
    with pytest.raises(DamagedFile):
        tensorfile.verify(path)
    return str(caught.value)


def test_arrays_and_text_come_back(path: Path) -> None:
    text = 'any "text" \\ with\nünïcödé \0 and \ud800'
    path.write_bytes(written(ARRAYS, text))
    arrays, back = tensorfile.read(path)
    assert back == text
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        assert arrays[name].shape == array.shape
        assert np.array_equal(arrays[name], array)
        assert arrays[name].flags.writeable
        assert arrays[name].flags.aligned


def test_the_safetensors_library_reads_them(path: Path) -> None:
    path.write_bytes(written(ARRAYS, "text"))
    theirs = load_file(path)
    assert theirs.keys() == ARRAYS.keys()
    assert all(np.array_equal(theirs[name], array) for name, array in ARRAYS.items())
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    digests = json.loads(metadata["digests"])
    assert digests == {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in ARRAYS.items()}
    assert metadata["text"] == "text"


def test_nothing_at_all(path: Path) -> None:
    path.write_bytes(written({}, ""))
    assert tensorfile.read(path) == ({}, "")
    assert load_file(path) == {}


def test_every_truncation_is_found(path: Path) -> None:
    whole = written(ARRAYS, "some text")
    for length in range(len(whole)):
        refused(path, whole[:length])
    for more in (b"\0", b"more"):
        refused(path, whole + more)


def test_every_flipped_bit_is_found(path: Path) -> None:
    whole = written(ARRAYS, "some text")
    for at in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[at // 8] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(DamagedFile):
            tensorfile.read(path)


def test_random_damage_of_a_larger_file_is_found(path: Path) -> None:
    """Runs of bytes zeroed, copied elsewhere, exchanged, cut out and put in."""
    generator = np.random.default_rng(0)
    whole = written({"x": generator.standard_normal(5000), "y": generator.standard_normal(777)}, "text " * 100)
    numbers = random.Random(0)
    for _ in range(300):
        start, end = sorted(numbers.sample(range(len(whole)), 2))
        other = numbers.randrange(len(whole))
        part = whole[start:end]
        damaged = numbers.choice(
            [
                whole[:start] + bytes(end - start) + whole[end:],
                (whole[:other] + part + whole[other + len(part) :])[: len(whole)],
                whole[:start] + whole[end:],
                whole[:other] + part + whole[other:],
            ]
        )
        if damaged != whole:
            refused(path, damaged)


# -- files that are not honest: their digests are right, the rest is not


def sealed(header: bytes | dict[str, Any], data: bytes = b"") -> bytes:
    """A file whose header has the digest that belongs to it, whatever it says."""
    zeros = "0" * 64
    if isinstance(header, dict):
        metadata = {"digest": zeros, "format": tensorfile.FORMAT, "text": "", "digests": "{}"}
        header = json.dumps(
            {"__metadata__": metadata | header.pop("__metadata__", {}), **header}, separators=(",", ":")
        ).encode()
    length = struct.pack("<Q", len(header))
    return length + header.replace(zeros.encode(), hashlib.sha256(length + header).hexdigest().encode(), 1) + data


def entry(dtype: Any, shape: Any, *offsets: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [*offsets]}


def digested(data: bytes, *names: str) -> dict[str, str]:
    return {"digests": json.dumps({name: hashlib.sha256(data).hexdigest() for name in names})}


def cases() -> Iterator[tuple[str, bytes]]:
    data = bytes(8)
    about = digested(data, "x", "y", "../../x")

    def one(*given: Any, data: bytes = data) -> bytes:
        return sealed({"__metadata__": about, "x": entry(*given)}, data)

    yield "much is promised", one("F64", [1 << 40], 0, 1 << 43)
    yield "shape of more than there is", one("F64", [1 << 40], 0, 8)
    yield "shape that overflows", one("F64", [1 << 62, 1 << 62, 1 << 62], 0, 8)
    yield "shape that wraps to 8 bytes", one("U8", [(1 << 64) + 8], 0, 8)
    yield "negative shape", one("F64", [-1], 0, 8)
    yield "two negative sides", one("U8", [-2, -4], 0, 8)
    yield "endless shape", one("U8", [1] * 100 + [8], 0, 8)
    yield "side beyond memory, no elements", one("U8", [1 << 62, 1 << 62, 0], 0, 0, data=b"")
    yield "shape of floats", one("U8", [8.0], 0, 8)
    yield "shape of booleans", one("U8", [8, True], 0, 8)
    yield "shape of texts", one("U8", ["8"], 0, 8)
    yield "shape is a number", one("U8", 8, 0, 8)
    yield "negative offset", one("U8", [8], -8, 0)
    yield "offsets backwards", one("U8", [8], 8, 0)
    yield "wrapping offset", one("U8", [8], (1 << 64) - 8, 1 << 64)
    yield "gap before", one("U8", [4], 4, 8)
    yield "gap behind", one("U8", [4], 0, 4)
    yield "one offset", one("U8", [8], 8)
    yield "three offsets", one("U8", [8], 0, 4, 8)
    yield "NaN as offset", one("U8", [8], 0, float("nan"))
    yield "infinite shape", one("U8", [float("inf")], 0, 8)
    yield "object dtype", one("O", [1], 0, 8)
    yield "dtype of Python", one("object", [1], 0, 8)
    yield "BF16", one("BF16", [4], 0, 8)
    yield "dtype of no type", one(["U8"], [8], 0, 8)
    yield "not booleans", sealed({"__metadata__": digested(b"\2" * 8, "x"), "x": entry("BOOL", [8], 0, 8)}, b"\2" * 8)
    two = {"x": entry("U8", [8], 0, 8), "y": entry("U8", [8], 0, 8)}
    yield "overlapping", sealed({"__metadata__": about, **two}, data)
    yield "partly overlapping", sealed({"__metadata__": about, **two, "y": entry("U8", [4], 4, 8)}, data)
    yield "no digest of an array", sealed({"z": entry("U8", [8], 0, 8)}, data)
    yield "digest of no text", sealed({"__metadata__": {"digests": '{"x":0}'}, "x": entry("U8", [8], 0, 8)}, data)
    yield "another digest", sealed({"__metadata__": digested(b"", "x"), "x": entry("U8", [8], 0, 8)}, data)
    yield "entry of no dict", sealed({"x": [1, 2]}, data)
    yield "entry without parts", sealed({"x": {}}, data)
    yield "metadata of no texts", sealed({"__metadata__": {"text": ["a"]}})
    yield "newer format", sealed({"__metadata__": {"format": "sorix_dist 3"}})
    begin = b'{"__metadata__":{"digest":"' + b"0" * 64
    named = b'","format":"sorix_dist 2","text":"","digests":"{}"}'
    yield "no end", sealed(begin)
    yield "not UTF-8", sealed(begin + b'","format":"\xff\xfe"}}')
    yield "a name twice", sealed(begin + named + b',"x":1,"x":2}')
    yield "metadata twice", sealed(begin + named + b',"__metadata__":{}}')
    yield "deep JSON", sealed(begin + named + b',"x":' + b"[" * 500_000)
    yield "deep JSON of dicts", sealed(begin + named + b',"x":' + b'{"x":' * 300_000)
    yield "long number", sealed(begin + named + b',"x":' + b"9" * 100_000 + b"}")
    yield "many small values", sealed(begin + named + b',"x":[' + b"[]," * 3_000_000 + b"[]]}")
    yield "header of eight exabytes", struct.pack("<Q", 1 << 63) + begin
    yield "header that wraps", struct.pack("<Q", (1 << 64) - 8) + begin
    yield "header beyond the end", struct.pack("<Q", 1 << 30) + begin
    for content in (b"", b"x", b"text\n" * 50, bytes(500), b"\xff" * 500, b"PK\x03\x04" + bytes(400)):
        yield f"not ours {content[:4]!r}", content


@pytest.mark.parametrize("content", [pytest.param(content, id=name) for name, content in cases()])
def test_dishonest_files(content: bytes, path: Path) -> None:
    refused(path, content)
    tracemalloc.start()
    try:
        with pytest.raises(DamagedFile):
            tensorfile.read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(content) + 600_000  # the header as bytes and as text, and what 10,000 levels take to parse


def test_names_are_only_names(path: Path) -> None:
    """A name is never a path, whatever it looks like."""
    data = bytes(8)
    for name in ("../../etc/passwd", "/tmp/x", "", "a\0b", "__class__"):
        path.write_bytes(sealed({"__metadata__": digested(data, name), name: entry("U8", [8], 0, 8)}, data))
        assert list(tensorfile.read(path)[0]) == [name]
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_shrinks_while_it_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(written({"x": np.zeros(100_000), "y": np.zeros(100_000)}, ""))
    read = tensorfile._read_header

    def cut_then(file: Any, size: int) -> Any:
        result = read(file, size)
        path.open("r+b").truncate(900_000)
        return result

    monkeypatch.setattr(tensorfile, "_read_header", cut_then)
    with pytest.raises(DamagedFile, match="became shorter"):
        tensorfile.read(path)


def test_what_is_too_much_for_a_header(path: Path) -> None:
    with pytest.raises(ValueError, match="too many values outside of arrays"):
        tensorfile.write(path, {}, "[" + "1," * 2_000_000 + "1]")
    assert list(path.parent.iterdir()) == []


class Changing(Disk):
    """A disk that takes as long as another thread needs to change an array."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array

    def write(self, descriptor: int, part: memoryview, at: int) -> int:
        count = super().write(descriptor, part, at)
        self.array += 1
        return count


@pytest.mark.parametrize("size", [0, 1, PIECE // 8, 3 * PIECE // 8 + 5])
def test_arrays_that_change_while_they_are_written(size: int, path: Path) -> None:
    """What is in the file has the digest of what is in the file."""
    array = np.zeros(size)
    tensorfile.write(path, {"x": array, "y": np.ones(3, np.uint8)}, "text", Changing(array))
    arrays, _ = tensorfile.read(path)
    assert arrays["x"].shape == (size,)
    assert (arrays["y"] == 1).all()
    assert load_file(path).keys() == {"x", "y"}


def test_a_file_is_written_and_read_back_in_little_memory(path: Path) -> None:
    array = np.ones(8 * PIECE // 8)
    tracemalloc.start()
    try:
        tensorfile.write(path, {"x": array}, "text")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * PIECE


class Bad(Disk):
    """A disk that flips a bit of what is written at some place."""

    def __init__(self, place: int) -> None:
        self.place = place

    def write(self, descriptor: int, part: memoryview, at: int) -> int:
        damaged = bytearray(part)
        if at <= self.place < at + len(damaged):
            damaged[self.place - at] ^= 4
        return super().write(descriptor, memoryview(damaged), at)


def test_what_does_not_come_back_as_it_was_written(path: Path) -> None:
    """A file that was there stays."""
    whole = written(ARRAYS, "text")
    path.write_bytes(whole)
    for place in (0, 9, 100, len(whole) - 1):
        with pytest.raises(OSError, match="what was read back is not what was written: ") as caught:
            tensorfile.write(path, ARRAYS, "text", Bad(place))
        assert caught.value.filename == str(path)
        assert path.read_bytes() == whole
        assert list(path.parent.iterdir()) == [path]


ODD = st.one_of(
    st.integers(-(2**65), 2**65), st.floats(), st.text(max_size=5), st.none(), st.booleans(), st.lists(st.integers())
)
ENTRIES = st.dictionaries(
    st.sampled_from(["dtype", "shape", "data_offsets", "more"]),
    st.one_of(
        st.sampled_from(["F32", "U8", "BOOL", "O", "I64"]), st.lists(st.integers(0, 9), max_size=3), st.lists(ODD), ODD
    ),
)
HEADERS = st.dictionaries(st.sampled_from(["x", "y", "../z", "é"]), st.one_of(ENTRIES, ODD), max_size=3)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=300), st.builds(lambda header, data: sealed(header, data), HEADERS, st.binary(max_size=64))
    )
)
def test_anything_is_read_or_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        arrays, text = tensorfile.read(path)
    except DamagedFile:
        return
    assert written(arrays, text)
    assert sum(array.nbytes for array in arrays.values()) <= len(content)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8))
def test_changed_bytes_are_found(path: Path, changes: list[tuple[int, int]]) -> None:
    whole = written(ARRAYS, "text")
    damaged = bytearray(whole)
    for at, value in changes:
        damaged[at % len(whole)] = value
    if damaged != whole:
        refused(path, bytes(damaged))
