"""Gradients that travel while the backward goes on: whatever was sent before its end, the sum is that of the end."""

from __future__ import annotations

import sys
from contextlib import contextmanager

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn
from sorix_dist.comm import ring, run_threads
from sorix_dist.nn import functional as F
from sorix_dist.parallel import coordinator, hosts
from sorix_dist.parallel.comm_hooks import fp16_compress
from sorix_dist.utils.data import DataLoader, Dataset
from tests.support.parallel.exactness import TOLERANCE, assert_same, data, gradients, network

ROWS = 6  # of a batch
SENDERS = {coordinator.__file__, hosts.__file__, ring.__file__}
SENDING = {"<lambda>", "send_complete", "_announce", "_send"}
SENDING |= {"send", "_advance", "_start_pieces", "_pass_on", "_take", "_add"}


@pytest.fixture(autouse=True, params=[2, 64], ids=lambda most: f"{most} under way")
def short_messages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a gradient takes several, some of which hold the end of one and the beginning of the next."""
    monkeypatch.setattr(ring, "PIECE", 72)
    monkeypatch.setattr(ring, "SHORTEST", 72)
    monkeypatch.setattr(ring, "SHORT", 72)
    monkeypatch.setattr(ring, "UNDER_WAY", request.param)


def on_two_hosts(work):
    return run_threads(work, 2, hosts=2, timeout=60)


def on_hosts(work, size, hosts):
    return run_threads(work, size, hosts=hosts, timeout=60)


def batches():
    return list(DataLoader(Dataset(*data(4 * ROWS)), batch_size=ROWS))


def messages(model, seen=None):
    """A list that grows with every message of this rank's gradients."""
    (bucket,) = model._buckets
    exchange, sent = bucket.reducer.exchange, [] if seen is None else seen
    if exchange is None:
        return sent
    exchange._transmit = lambda message, send=exchange._transmit: sent.append("message") or send(message)
    return sent


class Chain(nn.Module):
    """The network whose last layer, and the activation before it, come `times` times."""

    def __init__(self, times=1, at_first=None):
        self.body, self._times, self.at_first = network(5, 6), times, at_first

    def forward(self, x):
        first, activation, last = self.body
        x = first(x)
        if self.at_first is not None:
            x.register_hook(self.at_first)
        for _ in range(self._times):
            x = last(activation(x))
        return x


def step(model, batch):
    F.cross_entropy(model(batch[0]), batch[1]).backward()


def mean_gradients(number, *times):
    """The mean of the gradients of two ranks that use the last layer so many times, on their halves of a batch."""
    x, y = data(4 * ROWS)
    half, found = ROWS // 2, []
    for rank in range(2):
        model, start = Chain(times[rank]), number * ROWS + rank * half
        step(model, (sx.tensor(x[start : start + half]), y[start : start + half]))
        found.append(gradients(model))
    return {name: (gradient + found[1][name]) / 2 for name, gradient in found[0].items()}


def test_gradients_are_sent_before_the_backward_ends():
    def work():
        seen = []
        model = sx.DistributedDataParallel(Chain(1, lambda gradient: seen.append("first layer")))
        messages(model, seen)
        step(model, batches()[0])
        assert_same(gradients(model), mean_gradients(0, 1, 1))
        assert seen[0] == "message"
        assert seen[-1] == "message"
        assert seen.count("first layer") == 1

    on_two_hosts(work)


@pytest.mark.parametrize("times", [(2, 2), (1, 2), (2, 1), (3, 2)])
def test_what_comes_after_a_gradient_was_sent_counts(times):
    """The ranks start over, and that parameter's gradient is not sent early again."""

    def work():
        model = sx.DistributedDataParallel(Chain(times[sx.rank()]))
        sent, counts = messages(model), []
        for number, batch in enumerate(batches()):
            model.zero_grad()
            step(model, batch)
            assert_same(gradients(model), mean_gradients(number, *times))
            counts.append(len(sent))
            sent.clear()
        return counts

    for first, *others in on_two_hosts(work):
        assert len({*others}) == 1
        assert (first > others[0]) == (max(times) > 1)


@pytest.mark.parametrize("late", [0, 1, 2, None])
@pytest.mark.parametrize(("size", "hosts"), [(4, 2), (3, 3), (3, 2), (5, 2), (7, 3)])
def test_hosts_with_several_ranks_and_different_numbers_of_them(size, hosts, late):
    """Whichever rank uses a layer twice, or fails first."""

    def work():
        times = 1 + (sx.rank() == late)
        failures = iter([sx.rank() == 1, *[False] * 4])

        def fail(gradient):
            if next(failures):
                raise ValueError("on the way")

        model = sx.DistributedDataParallel(Chain(times, fail))
        for number, batch in enumerate(batches()):
            alone = Chain(times)
            step(alone, [sx.tensor(part.numpy().copy()) for part in batch])  # without the rows' numbers
            own = {name: gradient * len(batch[0]) / ROWS for name, gradient in gradients(alone).items()}
            model.zero_grad()
            if sx.rank() == 1 and number == 0:
                with pytest.raises(ValueError, match="on the way"):
                    step(model, batch)
            step(model, batch)
            everywhere = model.comm.gather_objects((own, gradients(model)))
            assert_same(gradients(model), {name: sum(each[name] for each, _ in everywhere) for name in own})
            for _, got in everywhere:
                assert all((got[name] == gradient).all() for name, gradient in gradients(model).items())

    on_hosts(work, size, hosts)


def test_a_backward_that_failed_on_one_rank_and_was_made_again():
    def work():
        failures = iter([True, True, False] if sx.rank() == 1 else [False])

        def fail(gradient):
            if next(failures):
                raise ValueError("on the way")

        model = sx.DistributedDataParallel(Chain(1, fail))
        batch = batches()[1]
        if sx.rank() == 1:
            for _ in range(2):
                with pytest.raises(ValueError, match="on the way"):
                    step(model, batch)
        step(model, batch)
        assert_same(gradients(model), mean_gradients(1, 1, 1))

    on_two_hosts(work)


def test_no_more_is_sent_in_vain_than_the_other_rank_may_have_to_keep():
    def work():
        failures = 50 * sx.rank()
        fails = iter([True] * failures + [False])

        def fail(gradient):
            if next(fails):
                raise ValueError("on the way")

        model = sx.DistributedDataParallel(Chain(1, fail))
        sent, batch = messages(model), batches()[0]
        for _ in range(failures):
            with pytest.raises(ValueError, match="on the way"):
                step(model, batch)
        assert len(sent) <= 2 * max(2, ring.UNDER_WAY // 2)
        step(model, batch)
        assert_same(gradients(model), mean_gradients(0, 1, 1))

    on_two_hosts(work)


class Interrupt(BaseException):
    """What the handler of a signal raises."""


def in_walk(frame):
    """Whether the backward, and not the sum after it, has called the function of a frame."""
    while frame.f_code.co_filename in SENDERS:
        frame = frame.f_back
    return frame.f_code.co_name == "walk"


@contextmanager
def interrupted(at):
    """Raises before the instruction number `at` of those that send gradients; yields a list of those that came."""
    came, before = [], sys.gettrace()

    def follow(frame, event, argument):
        if frame.f_code.co_filename not in SENDERS or frame.f_code.co_name not in SENDING or not in_walk(frame):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            came.append(event)
            if len(came) == at:
                raise Interrupt
        return follow

    sys._getframe().f_trace_opcodes = True  # Python 3.12 reports instructions only if a frame asked before settrace
    sys.settrace(follow)
    try:
        yield came
    finally:
        sys.settrace(before)


def test_an_interrupt_anywhere_between_messages():
    """It neither makes the other rank take a message for another one, nor loses gradients."""

    def work():
        model = sx.DistributedDataParallel(Chain())
        batch, wanted = batches()[0], mean_gradients(0, 1, 1)
        at, ended = 1, False
        while not ended:
            model.zero_grad()
            loss = F.cross_entropy(model(batch[0]), batch[1])
            if sx.rank() == 1:
                try:
                    with interrupted(at) as came:
                        loss.backward(retain_graph=True)
                    ended = len(came) < at
                except Interrupt:
                    loss.backward()
            else:
                loss.backward()
            assert_same(gradients(model), wanted)
            ended, at = model.comm.broadcast_object(ended, root=1), at + 1
        assert at > 100

    on_two_hosts(work)


def test_ranks_that_were_out_of_step_several_times():
    def work():
        model = sx.DistributedDataParallel(Chain())
        given = batches()
        for number in range(3):
            with pytest.raises(RuntimeError, match="not at the same place"):
                step(model, given[number + sx.rank()])
        for number in (2, 3):
            model.zero_grad()
            step(model, given[number])
            assert_same(gradients(model), mean_gradients(number, 1, 1))

    on_two_hosts(work)


def test_backwards_that_are_kept_for_later_send_nothing():
    def work():
        x, y = data(4 * ROWS)
        model, alone = sx.DistributedDataParallel(Chain()), Chain()
        first, second, *_ = batches()
        sent = messages(model)
        with model.no_sync():
            step(model, first)
        assert not sent
        step(model, second)
        count = len(sent)
        step(model, second)
        assert len(sent) == 2 * count
        model.zero_grad()
        for xb, yb in model.accumulate([first, second]):
            assert len(sent) == 2 * count
            step(model, (xb, yb))
        assert len(sent) == 3 * count
        for start in (0, ROWS):
            step(alone, (sx.tensor(x[start : start + ROWS]), y[start : start + ROWS]))
        assert_same(gradients(model), {name: value / 2 for name, value in gradients(alone).items()})

    on_two_hosts(work)


def test_a_gradient_that_adds_to_one_and_has_a_hook():
    def work():
        model = sx.DistributedDataParallel(Chain())
        seen = []
        model.module.body[2].W.register_hook(lambda gradient: seen.append(gradient.numpy().copy()))
        step(model, batches()[0])
        step(model, batches()[1])
        wanted = [mean_gradients(number, 1, 1) for number in (0, 1)]
        assert_same(gradients(model), {name: value + wanted[1][name] for name, value in wanted[0].items()})
        for got, right in zip(seen, wanted, strict=True):
            assert np.abs(got - right["body.2.W"]).max() < TOLERANCE

    on_two_hosts(work)


def test_two_models_and_parameters_that_one_rank_does_not_reach():
    def work():
        one, two = sx.DistributedDataParallel(Chain()), sx.DistributedDataParallel(Chain())
        batch = batches()[0]
        loss = F.cross_entropy(one(batch[0]), batch[1])
        scores = two(batch[0])
        if sx.rank() == 0:
            loss = loss + F.cross_entropy(scores, batch[1])
        loss.backward()
        assert_same(gradients(one), mean_gradients(0, 1, 1))
        first, second = gradients(two), one.comm.gather_objects(gradients(two))[1]
        assert_same(first, second)
        assert all(np.abs(gradient).max() > 0 for gradient in first.values())

    on_two_hosts(work)


@pytest.mark.parametrize("times", [(1, 1), (1, 2)])
def test_in_half_the_bytes(times):
    def work():
        model = sx.DistributedDataParallel(Chain(times[sx.rank()]))
        model.register_comm_hook(fp16_compress)
        for number, batch in enumerate(batches()):
            model.zero_grad()
            step(model, batch)
            got = gradients(model)
            for name, wanted in mean_gradients(number, *times).items():
                assert 0 < np.abs(got[name] - wanted).max() < 1e-3 * np.abs(wanted).max()
        return {name: gradient.tobytes() for name, gradient in gradients(model).items()}

    first, second = on_two_hosts(work)
    assert first == second
