"""`sx.profile`: spans that nest, sum to the whole, and name the rank that the others wait for. Never how fast."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.comm import run_threads
from sorix_dist.train import instrument, timeline
from sorix_dist.train.profile import RankClock, _add_waits, _compared, table_of_file
from sorix_dist.train.timeline import RankTimes
from sorix_dist.utils.data import DataLoader, Dataset
from sorix_dist.watchdog.watch import UNKNOWN

X = np.linspace(-1, 1, 64 * 8, dtype=np.float32).reshape(64, 8)
Y = (X[:, 0] > 0).astype(np.int64)


def trained(compiled: bool = False, batches: int = 4, pause: float = 0.0, **options: Any) -> tuple[Any, Any]:
    """A model and the profile of its steps."""
    sx.manual_seed(0)
    model = sx.DistributedDataParallel(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)))
    optimizer, criterion = optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss()

    def step(xb: Any, yb: Any) -> Any:
        optimizer.zero_grad()
        loss = criterion(model(xb), yb)
        loss.backward()
        optimizer.step()
        return loss

    run = sx.compile(step) if compiled else step
    with sx.profile(model, **options) as p:
        for xb, yb in DataLoader(Dataset(X, Y), batch_size=64 // batches):
            run(xb, yb)
            time.sleep(pause)
    return model, p


def test_kinds_sum_to_the_wall_and_every_layer_is_there() -> None:
    _, p = trained()
    (times,) = p.ranks
    assert times.steps == 4
    assert sum(times.kinds.values()) == pytest.approx(times.wall, rel=1e-9)
    kinds = {"loader", "forward", "backward", "agreement", "reduce", "update", "zero_grad", "all else"}
    assert set(times.kinds) == kinds
    assert all(seconds >= 0 for seconds in times.kinds.values())
    layers = {name: calls for name, (_, _, calls) in times.layers.items()}
    assert layers == {
        "DistributedDataParallel": 4, "Sequential": 4, "0 Linear": 4, "1 ReLU": 4, "2 Linear": 4, "CrossEntropyLoss": 4
    }  # fmt: skip
    for name in ("0 Linear", "1 ReLU", "2 Linear", "CrossEntropyLoss"):
        forward, backward, _ = times.layers[name]
        assert forward > 0, name
        assert backward > 0, name
    assert 0 < times.products < times.wall
    assert p.table().startswith("4 steps of 1 rank: ")


def test_the_trace_nests_and_covers_the_wall(tmp_path: Path) -> None:
    _, p = trained(path=tmp_path / "trace.json", warmup=1, steps=2)
    trace = json.loads((tmp_path / "trace.json").read_text())
    *about, whole = trace["traceEvents"][:4]
    spans = trace["traceEvents"][4:]
    assert [each["args"] for each in about] == [{"name": "rank 0"}, {"sort_index": 0}, {"name": "training"}]
    assert whole["dur"] == pytest.approx(p.ranks[0].wall * 1e6)
    around = [whole]
    for span in spans:
        assert (span["ph"], span["pid"], span["tid"]) == ("X", 0, 0)
        start, end = span["ts"], span["ts"] + span["dur"]
        while around and around[-1]["ts"] + around[-1]["dur"] < end - 1e-2:
            around.pop()
        assert around, "it lies in no other span"
        assert around[-1]["ts"] <= start + 1e-2
        around.append(span)
    names = [span["name"] for span in spans]
    assert [names.count(name) for name in ("update: step", "backward", "loader: next")] == [2, 2, 2]
    assert [(s["cat"], s["name"]) for s in spans].count(("forward", "0 Linear")) == 2
    assert table_of_file(tmp_path / "trace.json") == p.table()


def test_the_slow_rank_is_named() -> None:
    def work() -> tuple[Any, str]:
        _, p = trained(pause=0.02 * (sx.rank() == 2), path=None)
        return p.ranks, p.table()

    ranks, text = run_threads(work, 3)[1]
    assert [rank.steps for rank in ranks] == [4, 4, 4]
    for rank in (0, 1):
        assert max(ranks[rank].waited_for, key=ranks[rank].waited_for.get) == 2
        assert ranks[rank].waited_for[2] > 0.03  # three pauses of 20 ms, more or less
        assert ranks[rank].kinds["waiting"] >= ranks[rank].waited_for[2]
    assert "\nrank 2: " in text
    assert " waiting, the others " in text
    for rank in ranks:
        assert sum(rank.kinds.values()) == pytest.approx(rank.wall, rel=1e-9)


def test_in_messages_they_wait_until_the_last_has_come() -> None:
    """Rank 1's clock is 1000 ns ahead; it comes 300 ns after rank 0, and the message takes 100 ns more."""
    waits = [[(0, 100, 500, UNKNOWN)], [(0, 1400, 1500, UNKNOWN), (1, 1700, 1750, UNKNOWN)]]
    first, second = [RankTimes(1e-6, 1, 0.0, {"waiting": (w[0][2] - w[0][1]) / 1e9}, {}, {}) for w in waits]
    _add_waits([first, second], waits, [RankClock((0, 0)), RankClock((0, 1000))])
    assert (first.waited_for, second.waited_for) == ({1: pytest.approx(3e-7)}, {})
    assert first.kinds == {"waiting": pytest.approx(3e-7), "messages": pytest.approx(1e-7)}
    assert second.kinds == {"waiting": 0, "messages": pytest.approx(1e-7)}


def test_nothing_is_left_behind_and_the_numbers_are_the_same() -> None:
    before = [vars(owner)[name] for owner, name, _ in [*instrument.STEPS, *instrument.SPANS]]
    model, _ = trained()
    with sx.profile(model):
        during = [vars(owner)[name] for owner, name, _ in [*instrument.STEPS, *instrument.SPANS]]
    assert not any(a is b for a, b in zip(before, during))
    with pytest.raises(ZeroDivisionError), sx.profile(model) as p:
        print(1 / 0)
    assert [vars(owner)[name] for owner, name, _ in [*instrument.STEPS, *instrument.SPANS]] == before
    assert p.table().startswith("profile: no step was measured")
    other, _ = trained(warmup=100)
    for a, b in zip(model.parameters(), other.parameters()):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_captured_steps_count() -> None:
    model, _ = trained(batches=16)
    captured, p = trained(compiled=True, batches=16)
    assert p.ranks[0].steps == 16
    assert p.ranks[0].kinds["captured step"] > 0
    for a, b in zip(model.parameters(), captured.parameters()):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.filterwarnings("error::RuntimeWarning")  # a step that can't be captured
def test_captured_steps_are_audited_before_and_in_a_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was captured in a profile is the same outside of it, and the other way round."""
    monkeypatch.setenv("SORIX_DIST_COMPILE", "audit")
    for before in (0, 6):
        model = sx.DistributedDataParallel(nn.Linear(8, 2))
        optimizer = optim.SGD(model.parameters(), lr=0.1)

        @sx.compile
        def step(x: Any, y: Any, model: Any = model, optimizer: Any = optimizer) -> None:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()

        batches = DataLoader(Dataset(X, Y), batch_size=64 // 6)
        for x, y in list(batches)[:before]:
            step(x, y)
        with sx.profile(model) as p:
            for x, y in list(batches)[:6]:
                step(x, y)
        for x, y in list(batches)[:6]:
            step(x, y)
        assert p.ranks[0].steps == 6


def test_it_ends_after_many_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "MOST", 30)
    _, p = trained(batches=16)
    assert 1 <= p.ranks[0].steps < 16


def test_two_models_have_names_of_their_own() -> None:
    models = [nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))]
    weight = sx.ones(1, requires_grad=True)
    optimizer = optim.SGD([weight], lr=0.1)
    with sx.profile() as p, sx.no_grad():
        for model in models:
            model(sx.ones(1, 2))
        optimizer.step()
    assert {"0 Linear", "Sequential.0 Linear"} < set(p.ranks[0].layers)
    assert p.ranks[0].kinds["evaluation"] > 0


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"profile: model must be a Module or None, got list"):
        sx.profile([])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"profile: steps must be .*1, got 0"):
        sx.profile(steps=0)
    with pytest.raises(ValueError, match=r"profile: path must be a file in a folder that exists"):
        sx.profile(path=tmp_path / "none" / "trace.json")
    with sx.profile() as p:
        with pytest.raises(RuntimeError, match="being profiled already"), sx.profile():
            pass
        with pytest.raises(RuntimeError, match="call table"):
            p.table()
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="is no trace that"):
        table_of_file(tmp_path / "other.json")


def test_small_steps_are_taken_in_bursts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever a rank measures, the steps that it takes begin and end at the same numbers."""
    monkeypatch.setattr(timeline, "BURST", 4)
    monkeypatch.setattr(timeline, "SPAN_COST", 10**9)
    monkeypatch.setattr(timeline, "MOST_BURSTS", 8)
    _, p = trained(batches=64, path=tmp_path / "trace.json")
    (times,) = p.ranks
    assert (times.steps, times.passed) == (8, 56)  # 0 to 3 and 32 to 35
    assert sum(times.kinds.values()) == pytest.approx(times.wall, rel=1e-9)
    assert times.layers["0 Linear"][2] == 8
    assert p.table().startswith("8 of 64 steps, 1 rank: ")
    assert table_of_file(tmp_path / "trace.json") == p.table()
    spans = [span for span in json.loads((tmp_path / "trace.json").read_text())["traceEvents"] if span["ph"] == "X"]
    pauses = [span for span in spans if span["cat"] == "not measured"]
    assert [span["name"] for span in pauses] == ["28 steps", "28 steps"]
    whole = spans[0]["dur"]
    assert whole - sum(span["dur"] for span in pauses) == pytest.approx(times.wall * 1e6)
    _, p = trained(batches=64, steps=20)
    assert (p.ranks[0].steps, p.ranks[0].passed) == (20, 0)  # so many were asked for
    _, p = trained(compiled=True, batches=64)
    assert (p.ranks[0].steps, p.ranks[0].passed) == (8, 56)


def test_ranks_that_pause_for_longer_are_compared_by_the_steps_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "BURST", 2)
    cost = timeline.SPAN_COST

    def work() -> Any:
        line = timeline.Timeline._end_burst

        def end_burst(self: timeline.Timeline) -> None:
            timeline.SPAN_COST = 10**9 if sx.rank() else cost  # rank 1 pauses for as long as it may
            line(self)

        monkeypatch.setattr(timeline.Timeline, "_end_burst", end_burst)
        return trained(batches=16, pause=0.01 * sx.rank())[1].ranks

    monkeypatch.setattr(timeline, "MOST_BURSTS", 4)
    first, second = run_threads(work, 2)[0]
    assert first.steps >= second.steps == 4
    assert first.waited_for.get(1, 0) > 0


COMMON: dict[str, Any] = {"ph": str, "pid": int, "tid": int, "name": str}
TIMED = {**COMMON, "cat": str, "ts": (int, float)}
OF_PHASE = {
    "X": {**TIMED, "dur": (int, float)},
    "M": {**COMMON, "args": dict},
    "s": {**TIMED, "id": str},
    "f": {**TIMED, "id": str, "bp": str},
}
METADATA = {"process_name": {"name": str}, "thread_name": {"name": str}, "process_sort_index": {"sort_index": int}}


class Trace:
    """A file in the Trace Event Format: what its description asks of the phases that we write."""

    def __init__(self, text: str) -> None:
        found = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
        assert set(found) <= {"traceEvents", "displayTimeUnit", "otherData", "metadata", "systemTraceEvents"}
        assert found["displayTimeUnit"] in ("ms", "ns")
        self.events = found["traceEvents"]

    def check(self, ranks: int) -> None:
        for event in self.events:
            kinds = OF_PHASE[event["ph"]]
            assert event.keys() == kinds.keys(), event
            assert all(isinstance(event[key], kind) for key, kind in kinds.items()), event
            if event["ph"] == "M":
                (about,) = event["args"].items()
                assert {about[0]: type(about[1])} == METADATA[event["name"]]
            else:
                assert event["name"]
                assert event.get("dur", 0) >= 0
        named = {(event["name"], event["pid"]) for event in self.events if event["ph"] == "M"}
        assert named == {(name, rank) for name in METADATA for rank in range(ranks)}
        for rank in range(ranks):
            self.check_thread([event for event in self.events if event["ph"] == "X" and event["pid"] == rank])

    def check_flows(self) -> int:
        """Each flow begins on one rank and ends on another that waits; returns their number."""
        begins, ends = ({event["id"]: event for event in self.events if event["ph"] == phase} for phase in "sf")
        assert begins.keys() == ends.keys()
        for name, end in ends.items():
            begin = begins[name]
            assert (begin["name"], begin["cat"], end["bp"]) == (end["name"], end["cat"], "e")
            assert begin["ts"] <= end["ts"]
            assert begin["pid"] != end["pid"]
            assert self.slices(begin)
            assert any(span["name"] == f"for rank {begin['pid']}" for span in self.slices(end))
        return len(ends)

    def slices(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        """The slices of a thread that are open when an event of it comes."""
        return [
            span
            for span in self.events
            if span["ph"] == "X" and span["pid"] == event["pid"]
            if span["ts"] <= event["ts"] <= span["ts"] + span["dur"]
        ]

    def check_thread(self, spans: list[dict[str, Any]]) -> None:
        """The slices of a thread are in the order of their begins, and each lies in those that are open."""
        around: list[float] = []
        before = -np.inf
        for span in spans:
            start, end = span["ts"], span["ts"] + span["dur"]
            assert start >= before
            before = start
            while around and around[-1] <= start + 1e-2:
                around.pop()
            assert not around or end <= around[-1] + 1e-2, span
            around.append(end)


def test_the_trace_keeps_to_the_format(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"

    def work() -> Any:
        trained(path=path, batches=8, pause=0.005 * (sx.rank() == 1))

    run_threads(work, 3)
    trace = Trace(path.read_text())
    trace.check(3)
    assert trace.check_flows() >= 8


@pytest.mark.parametrize("hosts", [2, 3])
def test_clocks_of_hosts_are_compared(monkeypatch: pytest.MonkeyPatch, hosts: int) -> None:
    """Each rank's clock is ahead of the others' and runs 50 parts in a million faster."""
    ahead = [0, 7_000_000_000, -3_000_000_000]

    def skewed() -> int:
        now, rank = time.perf_counter_ns(), sx.comm.current().rank
        return now + ahead[rank] + round(rank * 5e-5 * (now - began))

    began = time.perf_counter_ns()
    monkeypatch.setattr("sorix_dist.train.profile.clock", skewed)

    def work() -> Any:
        comm = sx.comm.current()
        first = _compared(comm)
        time.sleep(0.2)
        shared = RankClock(first, _compared(comm))
        comm.barrier()
        now = time.perf_counter_ns()
        own = now + ahead[comm.rank] + round(comm.rank * 5e-5 * (now - began))
        return abs(shared(own) - now)

    assert max(run_threads(work, hosts, hosts=hosts, timeout=60)) < 2_000_000  # on a busy machine; 10 us on an idle one
