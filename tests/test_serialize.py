"""Files: everything comes back as it was; whatever is wrong with a file is said, and nothing in it is run."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sorix_dist as sx
from sorix_dist import Tensor, nn, optim
from sorix_dist.serialize import load, save
from sorix_dist.store import tensorfile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.sx"


def there_and_back(value: Any, path: Path) -> Any:
    save(value, path)
    return load(path)


# -- what comes back


@pytest.mark.parametrize(
    "value",
    [
        None, True, 3, -2.5, 10**30, float("inf"), "text", "ünïcödé 漢字 \n\0 \ud800", [], {}, (), [[], ()],
        {"a": 1, 2: "b", 2.5: None, None: [], True: False, "": {}}, [1, (2, [3, (4,)])], {"dict": {"tuple": [1]}},
    ],
)  # fmt: skip
def test_values(value: Any, path: Path) -> None:
    back = there_and_back(value, path)
    assert back == value
    assert repr(back) == repr(value)


def test_not_a_number(path: Path) -> None:
    assert np.isnan(there_and_back([float("nan")], path)[0])


@pytest.mark.parametrize(
    "dtype",
    ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64"],
)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (2, 3, 4)])
@pytest.mark.parametrize("kind", [np.asarray, Tensor])
def test_arrays_and_tensors(dtype: str, shape: tuple[int, ...], kind: Any, path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, shape).astype(dtype)
    back = there_and_back({"x": kind(array)}, path)["x"]
    assert type(back) is (Tensor if kind is Tensor else np.ndarray)
    values = np.asarray(back)
    assert values.dtype == dtype
    assert values.shape == shape
    assert np.array_equal(values, array)
    assert values.flags.writeable


def test_special_floats(path: Path) -> None:
    array = np.array([np.nan, -np.inf, -0.0, 5e-324, 1.7976931348623157e308])
    assert there_and_back(array, path).tobytes() == array.tobytes()


def test_arrays_in_another_order(path: Path) -> None:
    base = np.arange(24.0).reshape(4, 6)
    arrays = {"t": base.T, "step": base[::2, ::-3], "big": base.astype(">f8"), "all": np.broadcast_to(base[0], (3, 6))}
    back = there_and_back(arrays, path)
    for name, array in arrays.items():
        assert np.array_equal(back[name], array), name
        assert back[name].dtype == np.float64
        assert back[name].dtype.isnative


def test_numpy_numbers_become_python_numbers(path: Path) -> None:
    back = there_and_back([np.float32(0.1), np.int64(3), np.bool_(True), np.float64(0.1)], path)
    assert back == [float(np.float32(0.1)), 3, True, 0.1]
    assert [type(x) for x in back] == [float, int, bool, float]


def test_names_that_collide(path: Path) -> None:
    value = {
        "a": {"b": np.array(1)},
        "a.b": np.array(2),
        "": np.array(3),
        "__metadata__": np.array(4),
        1: [np.array(5)],
    }
    value |= {"1": {0: np.array(6)}, "\ud800": np.array(7), "value": np.array(8)}
    back = there_and_back(value, path)
    assert list(back) == list(value)
    assert back == value


def test_kinds_of_dicts(path: Path) -> None:
    back = there_and_back(OrderedDict(z=1, a=2), path)
    assert back == {"z": 1, "a": 2}
    assert list(back) == ["z", "a"]


def test_one_array_in_two_places_comes_back_as_two(path: Path) -> None:
    array = np.ones(3)
    one, two = there_and_back([array, array], path)
    one[0] = 5
    assert two[0] == 1


class _Own(nn.Module):
    """A model with a class that is not the package's."""

    def __init__(self) -> None:
        self.layers = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))


def test_a_model_with_a_class_of_its_own(path: Path) -> None:
    model, other = _Own(), _Own()
    with pytest.warns(RuntimeWarning, match=r"_Own has a class .* only its state_dict\(\) is saved, without its other"):
        back = there_and_back(model, path)
    assert list(back) == list(model.state_dict())
    other.load_state_dict(back)
    assert all(np.array_equal(p.data, q.data) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_ranks_say_once_what_is_not_saved(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        sx.run(lambda: sx.save(_Own(), tmp_path / f"{sx.rank()}.sx"), num_proc=3, backend="threads")
    assert sum("_Own has a class" in str(each.message) for each in said) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.sx", "1.sx", "2.sx"]


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (
            lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Dropout(0.2), nn.Linear(3, 2)),
            (6, 4),
        ),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding="same"), nn.MaxPool2d(2), nn.Flatten()), (6, 1, 4, 4)),
        (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, activation="gelu"), 2), (6, 5, 4)),
        (lambda: nn.LSTM(4, 3, num_layers=2, bidirectional=True), (6, 5, 4)),
        (lambda: nn.CrossEntropyLoss(weight=np.array([1.0, 2.0, 3.0, 4.0])), None),
    ],
)
def test_a_whole_model(path: Path, make: Any, shape: Any) -> None:
    """A model of the package's own layers comes back ready to use, in the mode it was in, and trains on."""
    model = make().eval()
    for parameter in model.parameters()[:1]:
        parameter.requires_grad = False
    back = there_and_back(model, path)
    assert type(back) is type(model)
    assert repr(back) == repr(model)
    assert not back.training
    assert [(n, p.requires_grad) for n, p in back.named_parameters()] == [
        (n, p.requires_grad) for n, p in model.named_parameters()
    ]
    assert back.state_dict().keys() == model.state_dict().keys()
    if shape is not None:
        generator = np.random.default_rng(0)
        for mode in (False, True):  # in training too: dropout goes on with the masks that come next
            x = sx.tensor(generator.standard_normal(shape).astype(np.float32))
            results = [m.train(mode)(x) for m in (model, back)]
            first, second = (r[0] if isinstance(r, tuple) else r for r in results)
            assert np.array_equal(first.numpy(), second.numpy())


def test_tied_parameters_stay_tied(path: Path) -> None:
    layer = nn.Linear(3, 3)
    back = there_and_back(nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(3, 1)), path)
    assert back[0].W is back[2].W
    assert len(back.parameters()) == 4


def test_a_wrapped_model_is_saved_as_the_bare_one(path: Path) -> None:
    model = sx.DistributedDataParallel(nn.Linear(2, 1))
    assert isinstance(there_and_back(model, path), nn.Linear)


def test_a_model_that_holds_another_is_not_a_wrapper(path: Path) -> None:
    """Only what DistributedDataParallel wraps stands for the whole."""

    class Average(nn.Module):
        def __init__(self) -> None:
            self.module, self.head, self.decay = nn.Linear(2, 1), nn.Linear(1, 1), 0.9

    with pytest.warns(RuntimeWarning, match="Average has a class"):
        back = there_and_back(sx.DistributedDataParallel(Average()), path)
    assert list(back) == ["module.W", "module.b", "head.W", "head.b"]
    model = nn.Sequential(nn.Linear(2, 1))
    model.module = nn.Linear(3, 1)
    model.note = "mine"
    back = there_and_back(model, path)
    assert vars(back).keys() == vars(model).keys()
    assert back.note == "mine"
    assert [name for name, _ in back.named_parameters()] == [name for name, _ in model.named_parameters()]


def test_attributes_of_a_whole_model(path: Path) -> None:
    """Whatever a layer holds comes back as what it was: values, arrays, buffers, and tensors that are trained."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model.classes, model[1].mean = ["a", "b"], np.ones(2)
    model[0].scale = sx.tensor([1.0, 2.0], requires_grad=True)
    model[1].gains = {"first": [sx.tensor([3.0], requires_grad=True), model[0].scale]}
    model[0].constant = sx.tensor([4.0])
    model[1].register_buffer("count", sx.tensor([5]), persistent=False)
    back = there_and_back(model, path)
    described = [[(n, p.numpy().tolist(), p.requires_grad) for n, p in m.named_parameters()] for m in (model, back)]
    assert described[0] == described[1]
    assert back[1].gains["first"][1] is back[0].scale
    assert not back[0].constant.requires_grad
    assert [name for name, _ in back.named_buffers()] == ["1.count"]
    assert back.state_dict().keys() == model.state_dict().keys()
    assert back.classes == ["a", "b"]
    assert (back[1].mean == 1).all()


@pytest.mark.parametrize("kind", [optim.SGDMomentum, optim.Adam])
def test_training_that_is_saved_and_goes_on(kind: Any, path: Path) -> None:
    def made() -> tuple[nn.Module, optim.Optimizer, Any]:
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        optimizer = kind(model.parameters(), lr=0.1)
        return model, optimizer, optim.lr_scheduler.CosineAnnealingLR(optimizer, 7)

    def train(model: nn.Module, optimizer: optim.Optimizer, scheduler: Any) -> None:
        for _ in range(4):
            optimizer.zero_grad()
            out = model(Tensor(np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)))
            (out * out).mean().backward()
            optimizer.step()
            scheduler.step()

    first, second = made(), made()
    train(*first)
    save({name: part.state_dict() for name, part in zip("mos", first, strict=True)}, path)
    train(*first)
    for name, part in zip("mos", second, strict=True):
        part.load_state_dict(load(path)[name])
    train(*second)
    for p, q in zip(first[0].parameters(), second[0].parameters(), strict=True):
        assert np.array_equal(p.data, q.data)
    assert first[2].state_dict() == second[2].state_dict()


def test_other_tools_read_the_arrays(path: Path) -> None:
    save({"model": nn.Linear(2, 1).state_dict(), "step": 3}, path)
    assert {name: array.shape for name, array in load_file(path).items()} == {"model.W": (2, 1), "model.b": (1, 1)}


# -- what is not saved


class Thing:
    pass


class Scaled(nn.Parameter):
    """A parameter with an attribute."""


class Metres(np.ndarray[Any, Any]):
    """An array with a unit."""


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1, {"f": print}]}, r"obj\['a'\]\[1\]\['f'\] must be .*, got builtin_function_or_method"),
        ([Thing()], r"obj\[0\] must be .*, got Thing"),
        ({1, 2}, "obj must be .*, got set"),
        (b"bytes", "obj must be .*, got bytes"),
        (2j, "obj must be .*, got complex"),
        ({"m": _Own()}, r"obj\['m'\] must be .*, got _Own; save its state_dict\(\)"),
        ({"a": {(1, 2): 3}}, r"a key of obj\['a'\] must be a string or number, got \(1, 2\)"),
        ({"x": np.array(["a"])}, r"obj\['x'\] must have one of the dtypes bool, .*, got <U1"),
        ({"x": np.array([None])}, r"obj\['x'\] must have one of the dtypes .*, got object"),
        (np.zeros(2, complex), "obj must have one of the dtypes .*, got complex128"),
        (np.zeros(2, "M8[s]"), "obj must have one of the dtypes .*, got datetime64"),
        (np.zeros(2, [("a", "f4")]), "obj must have one of the dtypes"),
        (
            [np.ma.array([1.0, 2.0], mask=[0, 1])],
            r"obj\[0\] must be a plain .* MaskedArray: save its data and its mask",
        ),
        (np.ma.array(3.0), "obj must be a plain array, got a MaskedArray"),
        (np.ones((2, 2)).view(np.matrix), "obj must be a plain array, got a matrix: save its numbers"),
        ({"d": np.ones(2).view(Metres)}, r"obj\['d'\] must be a plain array, got a Metres"),
        ([Scaled([1.0])], r"obj\[0\] is a Scaled, which would come back as a Parameter"),
    ],
)
def test_what_can_not_be_saved(value: Any, message: str, path: Path) -> None:
    save(1, path)
    with pytest.raises(TypeError, match=message):
        save(value, path)
    assert load(path) == 1
    assert os.listdir(path.parent) == [path.name]


def test_a_structure_without_end(path: Path) -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValueError, match="nested deeper than 100 levels, or contains itself"):
        save(endless, path)
    nested: Any = 0
    for _ in range(100):
        nested = {"a": nested}
    assert there_and_back(nested, path) == nested


def test_places_that_can_not_be_written(path: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such folder.*nowhere"):
        save(1, tmp_path / "nowhere" / "x")
    with pytest.raises(IsADirectoryError, match="path is a folder"):
        save(1, tmp_path)
    with pytest.raises(FileNotFoundError):
        load(path)
    with pytest.raises(IsADirectoryError):
        load(tmp_path)
    with pytest.raises(TypeError):
        save(1, None)  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


# -- whole or not at all


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_save_leaves_the_file(broken: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save({"x": np.zeros(3)}, path)

    def fail(*_: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(os, broken, fail)
        with pytest.raises(OSError, match="no space left"):
            save({"x": np.ones(3)}, path)
    assert not load(path)["x"].any()
    assert os.listdir(path.parent) == [path.name]


def test_a_link_is_followed(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "latest"
    link.symlink_to(path)
    save([1], link)
    assert link.is_symlink()
    assert load(path) == load(link) == [1]


def test_the_usual_permissions(path: Path) -> None:
    before = os.umask(0o027)
    try:
        save(1, str(path))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o666, 0o755])
def test_the_permissions_of_a_file_that_is_replaced(mode: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even while it is written can others read what they could not read before."""
    save(1, path)
    path.chmod(mode)
    seen: list[int] = []
    write = os.pwrite

    def looked_at(descriptor: int, *rest: Any) -> int:
        seen.append(os.fstat(descriptor).st_mode & 0o777)
        return write(descriptor, *rest)

    monkeypatch.setattr(os, "pwrite", looked_at)
    before = os.umask(0o022)
    try:
        save({"x": np.ones(3)}, path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode
    assert {each & ~mode for each in seen} == {0}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_the_owner_of_a_file_that_is_replaced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(1, path)
    os.chown(path, 12345, 54321)
    path.chmod(0o660)
    save(2, path)
    about = path.stat()
    assert (about.st_uid, about.st_gid, about.st_mode & 0o777) == (12345, 54321, 0o660)

    def refuse(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "fchown", refuse)  # as for who is not root: the own group is not that of the file
    save(3, path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load(path) == 3


def test_pipes_are_neither_replaced_nor_waited_for(path: Path, tmp_path: Path) -> None:
    os.mkfifo(path)
    link = tmp_path / "link"
    link.symlink_to(path)
    for each in (path, link):
        with pytest.raises(FileExistsError, match="path is a pipe or a device"):
            save(1, each)
        assert "it is not a regular file, but a pipe or device" in refused(each)
    assert path.is_fifo()
    assert "it is not a regular file" in refused(Path("/dev/zero"))


def test_a_killed_save_leaves_a_whole_file(path: Path) -> None:
    script = (
        "import sys, numpy as np\n"
        "from sorix_dist.serialize import save\n"
        "for i in range(10**9):\n"
        "    save({'i': i, 'x': np.full(300_000, i)}, sys.argv[1])\n"
        "    print(i, flush=True)\n"
    )
    numbers = random.Random(0)
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"0\n"
            time.sleep(numbers.uniform(0, 0.02))
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=60)
        state = load(path)
        assert (state["x"] == state["i"]).all()


def test_arrays_that_change_while_they_are_saved(path: Path) -> None:
    array, ended = np.zeros(1_000_000), threading.Event()

    def change() -> None:
        while not ended.is_set():
            array.__iadd__(1)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(10):
            assert there_and_back({"replay": array}, path)["replay"].shape == array.shape
    finally:
        ended.set()
        thread.join()


# -- files that are not whole, not ours, or not honest


def some_state() -> dict[str, Any]:
    return {"model": nn.Linear(4, 3).state_dict(), "lr": 0.125, "steps": [1, 2, 3], "note": "fine"}


def refused(path: Path) -> str:
    with pytest.raises(ValueError, match="is damaged or was not written by save: ") as caught:
        load(path)
    assert repr(str(path)) in str(caught.value)
    return str(caught.value)


def test_every_truncation_is_found(path: Path) -> None:
    save(some_state(), path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refused(path)
    path.write_bytes(whole + b"\0")
    refused(path)


def test_every_flipped_bit_is_found(path: Path) -> None:
    save(some_state(), path)
    whole = path.read_bytes()
    numbers = random.Random(1)
    for _ in range(1500):
        damaged = bytearray(whole)
        damaged[numbers.randrange(len(whole))] ^= 1 << numbers.randrange(8)
        path.write_bytes(damaged)
        refused(path)


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, (str(BOMB),)


BOMB = Path("exploded")


def test_a_pickle_is_not_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    for protocol in (0, 2, pickle.HIGHEST_PROTOCOL):
        path.write_bytes(pickle.dumps({"W": Bomb(), "pad": "x" * 1000}, protocol))
        message = refused(path)
        assert protocol == 0 or "it looks like a pickle, which could run code" in message
    assert not BOMB.exists()


def test_files_of_others(path: Path) -> None:
    for content in (b"", b"x", b"text\n" * 50, b"\0" * 500, b"\xff" * 500, b"PK\x03\x04" + b"\0" * 400):
        path.write_bytes(content)
        refused(path)
    for content in (b"PK\x03\x04" + b"\0" * 400, pickle.dumps({"x": 1}, 2) + b"\0" * 99):
        path.write_bytes(content)
        assert "torch.save_file(state_dict, path)" in refused(path)


ARRAYS = {
    "fc.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(3), "flags": np.array([True, False]),
    "empty": np.zeros((0, 4)),
}  # fmt: skip


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_safetensors_files_of_others(metadata: dict[str, str] | None, path: Path) -> None:
    save_file(ARRAYS, path, metadata)
    whole = path.read_bytes()
    for loaded in (load(path), load(str(path), map_location="cpu"), load(io.BytesIO(whole))):
        assert loaded.keys() == ARRAYS.keys()
        for name, array in ARRAYS.items():
            assert isinstance(loaded[name], sx.Tensor)
            assert loaded[name].array.dtype == array.dtype
            assert np.array_equal(loaded[name].array, array)
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        refused(path)
    with pytest.raises(RuntimeError, match="device cuda is not available"):
        load(io.BytesIO(whole), map_location="cuda")
    save_file({}, path)
    assert load(path) == {}


def test_damaged_files_of_others_raise_nothing_else(path: Path) -> None:
    """Without digests not every damage can be found; what is found is a ValueError."""
    save_file(ARRAYS, path, {"format": "pt"})
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    numbers = random.Random(2)
    found = 0
    for _ in range(1500):
        damaged = bytearray(whole)
        for _ in range(numbers.randrange(1, 4)):
            damaged[numbers.randrange(header)] = numbers.randrange(256)
        try:
            assert isinstance(load(io.BytesIO(damaged)), dict)
        except ValueError:
            found += 1
    assert found > 1000


def foreign(kind: str, content: bytes, *others: Any, **options: Any) -> bytes:
    """A safetensors file of four numbers, as other programs write it. options: what else its entry says."""
    entry = {"dtype": kind, "shape": [4], "data_offsets": [0, len(content)], **options}
    header = json.dumps({"x": entry, **{f"y{i}": other for i, other in enumerate(others)}}).encode()
    return len(header).to_bytes(8, "little") + header + content


MALFORMED: dict[str, bytes] = {
    "the array 'x' must have a dtype, a shape and two data_offsets, got": foreign("U8", bytes(4), data_offsets=[4]),
    "the array 'y0' must have a dtype, a shape and two data_offsets, got None": foreign("U8", bytes(4), None),
    "the array 'y0' must have a dtype, a shape and two data_offsets, got {}": foreign("U8", bytes(4), {}),
    "the array 'x' has an unknown dtype, \"['U8']\": convert it to one of": foreign(["U8"], bytes(4)),  # type: ignore[arg-type]
    "the array 'x' has an impossible shape or place: [-4, 0, 4]": foreign("U8", bytes(4), shape=[-4]),
    "the array 'x' has an impossible shape or place: [True, 0, 4]": foreign("U8", bytes(4), shape=[True]),
    "the array 'x' has -4 bytes": foreign("U8", bytes(4), data_offsets=[4, 0]),
    "the array 'x' has 4611686018427387904 bytes": foreign("U8", bytes(4), data_offsets=[0, 2**62]),
    "the array 'x' has an impossible shape: ": foreign("U8", b"", shape=[0, 2**62, 2**62]),
    "the array 'x' begins at 2, but the one before ends at 0": foreign("U8", bytes(6), data_offsets=[2, 6]),
    "the array 'y0' begins at 2, but the one before ends at 4": foreign(
        "U8", bytes(4), {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]}
    ),
}


@pytest.mark.parametrize("message", MALFORMED)
def test_a_malformed_entry_is_named(message: str, path: Path) -> None:
    path.write_bytes(MALFORMED[message])
    assert message in refused(path)


def test_bfloat16_and_what_is_unknown(path: Path) -> None:
    words = np.array([1.5, -2.0, np.inf, 3e38], np.float32).view("<u4") >> 16
    path.write_bytes(foreign("BF16", words.astype("<u2").tobytes()))
    assert load(path)["x"].array.dtype == np.float32
    assert load(path)["x"].tolist() == (words << 16).view(np.float32).tolist()
    path.write_bytes(foreign("F8_E4M3", bytes(4)))
    assert "the array 'x' has an unknown dtype, 'F8_E4M3'" in refused(path)


def test_file_objects(path: Path) -> None:
    state = some_state()
    with path.open("wb") as file:
        save(state, file)
    memory = io.BytesIO()
    save(state, memory)
    assert memory.getvalue() == path.read_bytes()
    save(state, path)
    assert memory.getvalue() == path.read_bytes()
    with path.open("rb") as file:
        assert repr(load(file)) == repr(load(path))
    damaged = bytearray(memory.getvalue())
    damaged[-1] ^= 1
    with pytest.raises(ValueError, match="is damaged or was not written by save"):
        load(io.BytesIO(damaged))


def forged(path: Path, structure: Any, arrays: dict[str, Any] | None = None) -> None:
    """A file that is whole, with a structure that `save` would not write."""
    text = structure if isinstance(structure, str) else json.dumps(structure)
    tensorfile.write(path, arrays or {}, text)


@pytest.mark.parametrize(
    "structure",
    [
        "{", "[" * 100_000, '{"dict":' * 50_000, "9" * 100_000, {}, {"a": 1, "b": 2}, {"code": "import os"},
        {"dict": 3}, {"dict": [[1]]}, {"dict": [[[], 1]]}, {"tuple": None}, {"array": 3}, {"array": "y"},
        {"parameter": ["i", True]}, {"module": ["Linear", {"dict": [["W", {"parameter": ["i", True]}]]}]},
        {"array": ["x"]}, {"array": None}, {"tensor": ["x", None]}, {"same": "x"}, {"draws": ["x", 1]}, 3,
    ],
    ids=lambda s: str(s)[:20],
)  # fmt: skip
def test_structures_that_are_not_honest(structure: Any, path: Path) -> None:
    forged(path, structure, {"x": np.ones(3), "i": np.arange(3)})
    refused(path)


@pytest.mark.parametrize("kind", ["Module", "functional", "Parameter", "__builtins__", "system", 3, None])
def test_only_layers_are_made(kind: Any, path: Path) -> None:
    forged(path, {"module": [kind, {"dict": []}]})
    if kind == "Module":
        assert type(load(path)) is nn.Module  # which does nothing
    else:
        assert "damaged" in refused(path)


def test_a_small_file_does_not_become_large_in_memory(path: Path) -> None:
    """One array that is named a thousand times."""
    forged(path, [{"array": "x"}] * 1000, {"x": np.zeros(100_000)})
    tracemalloc.start()
    assert "names the array 'x' twice" in refused(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
