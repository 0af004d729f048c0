"""Threads that fetch ahead: order, errors, and their end."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist.comm import run_threads
from sorix_dist.utils.data import DataLoader, Dataset, IterableDataset
from sorix_dist.utils.data.fetch import ahead


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("sorix_dist data loader")]


def assert_threads_end() -> None:
    limit = time.monotonic() + 20
    while loader_threads() and time.monotonic() < limit:
        time.sleep(0.005)
    assert loader_threads() == []


class Uneven:
    """Samples that take different times to fetch."""

    def __init__(self, length: int = 40) -> None:
        self.length = length
        self.fetched: list[int] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        time.sleep(0.002 * (index % 5))
        self.fetched.append(index)
        return index


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        for i in range(40):
            time.sleep(0.001 * (i % 3))
            yield i


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("dataset", [Uneven(), Stream(), Dataset(np.arange(40))], ids=["own", "stream", "array"])
def test_the_order_is_that_without_threads(dataset: Any, workers: int) -> None:
    order = {} if isinstance(dataset, Stream) else {"shuffle": True, "seed": 2}
    alone, ahead_ = (DataLoader(dataset, 3, num_workers=n, **order) for n in (0, workers))
    for _ in range(2):
        assert [b.tolist() for b in ahead_] == [b.tolist() for b in alone]
    assert_threads_end()


def test_no_more_is_fetched_than_asked_for() -> None:
    data = Uneven()
    loader = DataLoader(data, 1, num_workers=2, prefetch_factor=3)
    batches = iter(loader)
    assert data.fetched == []
    next(batches)
    limit = time.monotonic() + 20
    while len(data.fetched) < 7 and time.monotonic() < limit:
        time.sleep(0.005)
    time.sleep(0.05)
    assert sorted(data.fetched) == list(range(7))  # the one that was taken, and 2 * 3 ahead
    del batches
    assert_threads_end()


def test_fetching_goes_on_while_the_loop_works() -> None:
    """While the loop holds the first batch, the second is being made by another thread."""
    inside = threading.Event()

    class Waiting:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> int:
            if index == 1:
                inside.set()
            return index

    batches = iter(DataLoader(Waiting(), 1, num_workers=1))
    assert next(batches).tolist() == [0]
    assert inside.wait(20)
    assert [b.tolist() for b in batches] == [[1], [2], [3]]


def leave_early(loader: DataLoader) -> None:
    for _ in loader:
        break


def raise_in_the_loop(loader: DataLoader) -> None:
    def loop() -> None:
        for _ in loader:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()


def forget_in_a_cycle(loader: DataLoader) -> None:
    holder: list[Any] = [iter(loader)]
    next(holder[0])
    holder.append(holder)
    del holder
    gc.collect()


def never_begin(loader: DataLoader) -> None:
    iter(loader)


@pytest.mark.parametrize("leave", [leave_early, raise_in_the_loop, forget_in_a_cycle, never_begin])
def test_threads_end_with_the_loop(leave: Any) -> None:
    leave(DataLoader(Uneven(), 2, num_workers=3))
    assert_threads_end()


class Broken(Uneven):
    def __getitem__(self, index: int) -> Any:
        if index == 17:
            raise KeyError("no such file")
        return super().__getitem__(index)


class BrokenStream(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        yield from range(17)
        raise OSError("the connection is lost")


def broken_transform(sample: Any) -> Any:
    if sample == 17:
        raise OverflowError("too large")
    return sample


def broken_collate(samples: list[Any]) -> Any:
    if 17 in samples:
        raise ArithmeticError("can't be added")
    return sx.tensor(samples)


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize(
    ("dataset", "collate_fn", "error", "notes"),
    [
        (Broken(), None, KeyError, ["sample 17", "batch 5 of epoch 0 of the data loader, whose samples are 15, 16"]),
        (BrokenStream(), None, OSError, ["sample number 17 of the stream, in epoch 0"]),
        (
            Dataset(np.arange(40), transform=broken_transform), None, OverflowError,
            ["the transform of sample 17 of the data set", "batch 5 of epoch 0"],
        ),
        (Uneven(), broken_collate, ArithmeticError, ["batch 5 of epoch 0", "samples are 15, 16, 17"]),
        (Stream(), broken_collate, ArithmeticError, ["batch 5 of epoch 0", "number 15 to 17 of the stream"]),
    ],
)  # fmt: skip
def test_an_error_comes_up_in_the_loop_in_its_turn(
    dataset: Any, collate_fn: Any, error: Any, notes: list[str], workers: int
) -> None:
    handed = []
    loader = DataLoader(dataset, 3, collate_fn=collate_fn, num_workers=workers)
    with pytest.raises(error) as caught:
        handed.extend(x for batch in loader for x in batch.tolist())
    assert handed == list(range(15))
    said = "\n".join(caught.value.__notes__)
    assert all(note in said for note in notes), said
    frames = "".join(traceback.format_exception(caught.value))
    assert "raise " + error.__name__ in frames  # the line of the user's code that failed
    del caught
    assert_threads_end()


def test_a_loader_works_again_after_an_error() -> None:
    data = Broken()
    loader = DataLoader(data, 3, num_workers=2)
    with pytest.raises(KeyError):
        list(loader)
    data.__class__ = Uneven
    assert len(list(loader)) == 14


def test_an_exit_in_a_thread_ends_the_loop_not_the_thread_alone() -> None:
    def leave(_: Any) -> Any:
        raise SystemExit(3)

    with pytest.raises(SystemExit) as caught:
        list(DataLoader(Dataset(np.arange(3), transform=leave), num_workers=1))
    assert caught.value.code == 3


def test_threads_know_the_rank_and_the_seed() -> None:
    def work() -> list[Any]:
        sx.manual_seed(4)
        data = Dataset(np.arange(12), transform=lambda x: x + 100 * sx.rank())
        return [int(x) for b in DataLoader(data, 5, shuffle=True, num_workers=2) for x in b.tolist()]

    ranks = run_threads(work, 3, timeout=60)
    assert sorted(x % 100 for part in ranks for x in part) == list(range(12))
    assert [{x // 100 for x in part} for part in ranks] == [{0}, {1}, {2}]


def test_a_script_ends_although_a_fetch_does_not(tmp_path: Any) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import threading\n"
        "from sorix_dist.utils.data import DataLoader\n"
        "class Stuck:\n"
        "    def __len__(self): return 9\n"
        "    def __getitem__(self, index):\n"
        "        if index == 2: threading.Event().wait()\n"
        "        return index\n"
        "for batch in DataLoader(Stuck(), 1, num_workers=2):\n"
        "    raise RuntimeError('the user failed')\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("RuntimeError: the user failed")


def test_bad_numbers() -> None:
    for workers in (-1, 1.5, True, None):
        with pytest.raises(ValueError, match=r"num_workers must be (an integer )?>= 0, got"):
            DataLoader(Uneven(), num_workers=workers)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prefetch_factor must be >= 1, got 0"):
        DataLoader(Uneven(), num_workers=1, prefetch_factor=0)


def test_without_tasks() -> None:
    assert list(ahead(str, iter(()), 2, 4)) == []
    assert list(ahead(str, iter(()), 0, 0)) == []
    assert_threads_end()


def ends(value: Any) -> Any:
    """What a mistake with `next` does: it raises StopIteration for what belongs to sample 5."""
    return next(iter(())) if np.any(np.asarray(value) == 5) else value


class Ending(Uneven):
    def __getitem__(self, index: int) -> Any:
        return ends(index)


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize(
    ("dataset", "options", "note"),
    [
        (Ending(8), {}, "raised by the data set for sample 5"),
        (Dataset(np.arange(8), transform=ends), {}, None),
        (Dataset(np.arange(8), np.arange(8), target_transform=ends), {}, None),
        (Uneven(8), {"collate_fn": ends, "one_row_per_sample": False}, "in batch 2 of epoch 0 of the data loader"),
        (Stream(), {"collate_fn": ends, "one_row_per_sample": False}, "in batch 2 of epoch 0 of the data loader"),
    ],
    ids=["data set", "transform", "target", "collate_fn", "stream"],
)
def test_no_sample_ends_an_epoch(dataset: Any, options: dict[str, Any], note: str | None, workers: int) -> None:
    seen: list[Any] = []
    with pytest.raises(RuntimeError, match="StopIteration") as caught:
        seen.extend(DataLoader(dataset, 2, num_workers=workers, **options))
    assert len(seen) == 2
    assert isinstance(caught.value.__cause__, StopIteration)
    assert note is None or note in caught.value.__notes__[0]
