"""What every communicator must do: one body of checks, run on one process, on threads and under MPI.

Each check is called by every rank of `comm` together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sorix_dist.comm import Comm

DTYPES = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]
SHAPES = [(), (0,), (3, 0, 2), (1,), (7,), (2, 3, 5), (1 << 18,), (700_001,)]  # up to three pieces of 2 MB
EXPECTED: dict[str, Callable[..., Any]] = {"sum": np.sum, "max": np.max, "min": np.min}


def numbers(dtype: str, shape: tuple[int, ...], rank: int) -> np.ndarray:
    """Small whole numbers that differ from rank to rank: their sums are exact in every dtype and order."""
    count = int(np.prod(shape))
    return ((np.arange(count) * 7 + rank * 5) % 11 % (2 if dtype == "?" else 11)).astype(dtype).reshape(shape)


def all_reduce_every_dtype(comm: Comm) -> None:
    for dtype in DTYPES:
        for op, expected in EXPECTED.items():
            given = numbers(dtype, (4, 9), comm.rank)
            comm.all_reduce(given, op)  # type: ignore[arg-type]
            stack = np.stack([numbers(dtype, (4, 9), rank) for rank in range(comm.size)])
            np.testing.assert_array_equal(given, expected(stack, axis=0).astype(dtype), err_msg=f"{dtype} {op}")


def all_reduce_every_size(comm: Comm) -> None:
    for shape in SHAPES:
        for dtype in ("f2", "f4", "i8"):
            given = numbers(dtype, shape, comm.rank)
            comm.all_reduce(given)
            total = sum(numbers(dtype, shape, rank).astype("f8") for rank in range(comm.size))
            np.testing.assert_array_equal(given, np.asarray(total).astype(dtype), err_msg=f"{dtype} {shape}")


def all_reduce_is_the_same_on_every_rank(comm: Comm) -> None:
    given = np.random.default_rng(comm.rank).standard_normal(100_003).astype("f4")
    comm.all_reduce(given)
    mine = given.tobytes()
    assert all(other == mine for other in comm.gather_objects(mine))


def float16_sums_are_rounded_once(comm: Comm) -> None:
    given = np.array([2048.0 if comm.rank == 0 else 0.5], "f2")
    comm.all_reduce(given)
    assert given[0] == np.float16(2048 + 0.5 * (comm.size - 1))
    large = np.array([60000.0], "f2")
    comm.all_reduce(large)
    assert large[0] == (60000.0 if comm.size == 1 else np.inf)


def all_gather_stacks_in_rank_order(comm: Comm) -> None:
    for dtype in DTYPES:
        for shape in SHAPES if dtype in ("?", "f8") else [(3, 2)]:
            given = numbers(dtype, shape, comm.rank)
            kept = given.copy()
            given.flags.writeable = False
            got = comm.all_gather(given)
            assert got.shape == (comm.size, *shape)
            assert got.dtype == np.dtype(dtype)
            assert got.flags.writeable
            for rank in range(comm.size):
                np.testing.assert_array_equal(got[rank], numbers(dtype, shape, rank))
            got[...] = 0
            np.testing.assert_array_equal(given, kept)


def all_to_all_exchanges_entries(comm: Comm) -> None:
    for dtype in DTYPES:
        for shape in SHAPES if dtype == "f4" else [(3, 2)]:
            given = np.stack([numbers(dtype, shape, 3 * comm.rank + rank) for rank in range(comm.size)])
            kept = given.copy()
            got = comm.all_to_all(given)
            assert got.shape == given.shape
            for rank in range(comm.size):
                np.testing.assert_array_equal(got[rank], numbers(dtype, shape, 3 * rank + comm.rank))
            got[...] = 0
            np.testing.assert_array_equal(given, kept)
    with pytest.raises(ValueError, match=f"one entry for each of {comm.size} ranks, got shape \\({comm.size + 1}, 2"):
        comm.all_to_all(np.zeros((comm.size + 1, 2)))


class Rotated:
    """Pieces of several lengths: a rank sends each other one numbers, and combines what it gets by a weighted sum."""

    count = 40

    def __init__(self, comm: Comm, dtype: str) -> None:
        self.comm, self.dtype, self.received = comm, dtype, 0

    def sent(self, piece: int, rank: int) -> np.ndarray:
        """What a rank sends in a piece: an entry for each rank."""
        return np.stack(
            [numbers(self.dtype, (2, 500 * (piece % 4)), 7 * piece + 3 * rank + r) for r in range(self.comm.size)]
        )

    def total(self, received: np.ndarray) -> np.ndarray:
        weights = np.arange(1, self.comm.size + 1, dtype=self.dtype)
        return np.einsum("r,rij->j", weights, received)

    def send(self, piece: int) -> np.ndarray:
        return self.sent(piece, self.comm.rank)

    def combine(self, piece: int, received: np.ndarray) -> np.ndarray:
        return self.total(received)

    def receive(self, piece: int, combined: np.ndarray) -> None:
        assert piece == self.received
        self.received += 1
        everything = [self.sent(piece, rank) for rank in range(self.comm.size)]
        wanted = [self.total(np.stack([each[r] for each in everything])) for r in range(self.comm.size)]
        np.testing.assert_array_equal(combined, wanted)


def pieces_are_combined_in_order(comm: Comm) -> None:
    for dtype in ("f4", "f8"):
        pieces = Rotated(comm, dtype)
        started = comm.start_pieces(pieces)
        started.advance()
        other = Rotated(comm, dtype)  # other calls may come before the end
        comm.all_gather(np.zeros(40_000))
        comm.start_pieces(other).finish()
        comm.barrier()
        started.advance()
        started.finish()
        assert pieces.received == other.received == pieces.count


def broadcast_from_every_root(comm: Comm) -> None:
    for root in range(comm.size):
        for dtype in DTYPES:
            for shape in SHAPES if dtype == "f8" else [(3, 2)]:
                given = numbers(dtype, shape, comm.rank)
                comm.broadcast(given, root)
                np.testing.assert_array_equal(given, numbers(dtype, shape, root))


def objects_travel(comm: Comm) -> None:
    for root in range(comm.size):
        value = {"rank": comm.rank, "list": [1, "two", None], "array": np.arange(3) + comm.rank}
        got = comm.broadcast_object(value, root)
        assert got["rank"] == root
        assert got["list"] == [1, "two", None]
        np.testing.assert_array_equal(got["array"], np.arange(3) + root)
        got["list"].append(comm.rank)  # a copy of this rank's own
        comm.barrier()
        assert got["list"] == [1, "two", None, comm.rank]
    gathered = comm.gather_objects(("rank", comm.rank, "x" * comm.rank))
    assert gathered == [("rank", rank, "x" * rank) for rank in range(comm.size)]


def places_fit_together(comm: Comm) -> None:
    places = comm.gather_objects((comm.rank, comm.host, comm.local_rank, comm.local_size, comm.hosts, comm.size))
    assert [place[0] for place in places] == list(range(comm.size))
    for host in range(comm.hosts):
        here = [place for place in places if place[1] == host]
        assert [place[2] for place in here] == list(range(len(here)))
        assert {place[3] for place in here} == {len(here)}
    assert {place[4:] for place in places} == {(comm.hosts, comm.size)}
    first = [min(place[0] for place in places if place[1] == host) for host in range(comm.hosts)]
    assert first == sorted(first)


def split_makes_groups(comm: Comm) -> None:
    half = comm.split(comm.rank % 2)
    members = list(range(comm.rank % 2, comm.size, 2))
    assert half.gather_objects(comm.rank) == members
    assert (half.rank, half.size) == (members.index(comm.rank), len(members))
    given = np.array([comm.rank], "i8")
    half.all_reduce(given)
    assert given[0] == sum(members)

    backwards = comm.split(0, key=-comm.rank)
    assert backwards.gather_objects(comm.rank) == list(range(comm.size))[::-1]
    alone = comm.split(comm.rank)
    assert (alone.rank, alone.size, alone.local_size, alone.hosts) == (0, 1, 1, 1)
    again = half.split(0).split(half.rank)
    assert again.gather_objects(comm.rank) == [comm.rank]
    places_fit_together(half)
    places_fit_together(backwards)
    comm.barrier()


def split_by_host_gives_the_ranks_of_a_host(comm: Comm) -> None:
    node = comm.split(comm.host)
    assert (node.rank, node.size, node.hosts) == (comm.local_rank, comm.local_size, 1)


def windows_are_seen_by_the_host(comm: Comm) -> None:
    for nbytes in (64, 0, 1, 4096, 100_000 + 1000 * comm.rank, 8 * comm.local_rank):
        window = comm.window(nbytes)
        node = comm.split(comm.host)
        sizes = node.gather_objects(nbytes)
        assert window.local_rank == comm.local_rank
        assert [part.nbytes for part in window.parts] == sizes
        for part in window.parts:
            assert part.dtype == np.uint8
            assert part.ndim == 1
            assert part.flags.writeable
            assert not part.any()
            assert part.nbytes == 0 or part.ctypes.data % 64 == 0
        window.barrier()
        window.parts[window.local_rank][...] = comm.local_rank + 1
        window.barrier()
        for local_rank, part in enumerate(window.parts):
            assert (part == local_rank + 1).all()
        window.barrier()
        for part in window.parts:  # everybody writes into everybody's part
            part[comm.local_rank :: comm.local_size] = 100 + comm.local_rank
        window.barrier()
        for part in window.parts:
            np.testing.assert_array_equal(part, 100 + np.arange(part.nbytes) % comm.local_size)
        window.barrier()
        window.close()
        window.close()
        assert window.parts == []
        with pytest.raises(ValueError, match="closed"):
            window.barrier()


def window_barrier_orders_writes(comm: Comm) -> None:
    window = comm.window(8)
    counters = [part.view(np.int64) for part in window.parts]
    for turn in range(200):
        counters[window.local_rank][0] = turn
        window.barrier()
        assert [int(counter[0]) for counter in counters] == [turn] * comm.local_size
        window.barrier()
    window.close()


def several_windows_at_once(comm: Comm) -> None:
    one, two = comm.window(16), comm.window(32)
    one.parts[one.local_rank][...] = 1
    two.parts[two.local_rank][...] = 2
    two.barrier()
    assert all((part == 1).all() for part in one.parts)
    assert all((part == 2).all() for part in two.parts)
    two.barrier()
    one.close()
    assert all((part == 2).all() for part in two.parts)
    two.barrier()
    two.close()


def exchange_sums_over_hosts(comm: Comm) -> None:
    """Also of long arrays, in place, and whatever a rank has sent ahead, in vain or not."""
    exchange = comm.exchange()
    if not comm.size == comm.hosts > 1:
        assert exchange is None
        return
    assert exchange is not None
    for turn, size in enumerate((1, 0, 700_001, 100_003)):
        for dtype in ("f2", "f4", "i8"):
            given, total = numbers(dtype, (size,), comm.rank), np.empty(size, dtype)
            in_vain = turn > 1
            if in_vain and comm.rank != 1:
                exchange.send(np.full(size, 9, dtype), size // 2)
                exchange.send(np.full(size, 8, dtype), size // 3 * comm.rank)
            if not in_vain:
                exchange.send(given, size // (2 + comm.rank))
                exchange.send(given, size // 8 * comm.rank)
            out = given if turn % 2 else total
            exchange.sum(given, out, start_over=in_vain, agreed=in_vain)
            wanted = sum(numbers(dtype, (size,), rank).astype("f8") for rank in range(comm.size))
            np.testing.assert_array_equal(out, np.asarray(wanted).astype(dtype), err_msg=f"{dtype} {size}")


def bad_arguments_are_named(comm: Comm) -> None:
    """Every error comes before a message: the ranks are in step afterwards."""
    matrix = np.ones((4, 6))
    frozen = np.ones(3)
    frozen.flags.writeable = False
    swapped = np.ones(3, ">f8" if np.little_endian else "<f8")
    calls: list[tuple[type[Exception], str, Callable[[], object]]] = []
    for call in (comm.all_reduce, comm.broadcast, comm.all_gather):
        bad: list[tuple[type[Exception], str, Any]] = [
            (ValueError, "array must be C-contiguous.*strides", matrix.T),
            (ValueError, "array must be C-contiguous", matrix[:, ::2]),
            (TypeError, "array must be a numpy.ndarray, got list", [1.0, 2.0]),
            (TypeError, "array must be a numpy.ndarray, got float64", np.float64(1)),
            (TypeError, "dtype '<c16'", np.ones(2, complex)),
            (TypeError, "dtype '|O'", np.array([None])),
            (TypeError, "dtype '<U1'", np.array(["a"])),
            (TypeError, "byte order", swapped),
        ]
        if call != comm.all_gather:
            bad.append((ValueError, "array is overwritten.*read-only", frozen))
        calls += [(kind, rf"{call.__name__}: .*{match}", lambda c=call, a=a: c(a)) for kind, match, a in bad]
    good = np.ones(3)
    calls += [
        (
            ValueError,
            "all_reduce: op must be one of 'sum', 'max', 'min', got 'mean'",
            lambda: comm.all_reduce(good, "mean"),
        ),  # type: ignore[arg-type]
        (ValueError, "all_reduce: op .*None", lambda: comm.all_reduce(good, None)),  # type: ignore[arg-type]
        (
            ValueError,
            f"broadcast: root must be a rank from 0 to {comm.size - 1}, got {comm.size}",
            lambda: comm.broadcast(good, comm.size),
        ),
        (ValueError, "broadcast_object: root .*-1", lambda: comm.broadcast_object(1, -1)),
        (TypeError, "broadcast_object: root must be an int, got str", lambda: comm.broadcast_object(1, "0")),  # type: ignore[arg-type]
        (TypeError, "broadcast: root must be an int, got bool", lambda: comm.broadcast(good, True)),
        (ValueError, "split: color .*-1", lambda: comm.split(-1)),
        (TypeError, "split: color must be an int, got NoneType", lambda: comm.split(None)),  # type: ignore[arg-type]
        (TypeError, "split: key must be an int, got float", lambda: comm.split(0, 0.5)),  # type: ignore[arg-type]
        (ValueError, "window: nbytes .*-8", lambda: comm.window(-8)),
        (TypeError, "window: nbytes must be an int, got float", lambda: comm.window(8.0)),  # type: ignore[arg-type]
    ]
    for kind, match, call in calls:
        with pytest.raises(kind, match=match):
            call()
    comm.all_reduce(good)
    assert (good == comm.size).all()


CHECKS: list[Callable[[Comm], None]] = [
    all_reduce_every_dtype,
    all_reduce_every_size,
    all_reduce_is_the_same_on_every_rank,
    float16_sums_are_rounded_once,
    all_gather_stacks_in_rank_order,
    all_to_all_exchanges_entries,
    pieces_are_combined_in_order,
    broadcast_from_every_root,
    objects_travel,
    places_fit_together,
    split_makes_groups,
    split_by_host_gives_the_ranks_of_a_host,
    windows_are_seen_by_the_host,
    window_barrier_orders_writes,
    several_windows_at_once,
    exchange_sums_over_hosts,
    bad_arguments_are_named,
]
