"""Gradients that travel while the backward goes on: whatever was sent before its end, the sum is that of the end."""

from __future__ import annotations

import sys
from contextlib import contextmanager

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn
from sorix_dist.comm import exchange, run_threads
from sorix_dist.nn import functional as F
from sorix_dist.parallel import coordinator, pair_reducer
from sorix_dist.parallel.comm_hooks import fp16_compress
from sorix_dist.utils.data import DataLoader, Dataset
from tests.support.parallel.exactness import TOLERANCE, assert_same, data, gradients, network

ROWS = 6  # of a batch
SENDERS = {coordinator.__file__, pair_reducer.__file__, exchange.__file__}
SENDING = {
    ("visit", "walk"),
    ("send_complete", "visit"),
    ("send", "send_complete"),
    ("_send", "send"),
}  # functions and who calls them


@pytest.fixture(autouse=True, params=[2, 64], ids=lambda most: f"{most} ahead")
def short_messages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a gradient takes several, some of which hold the end of one and the beginning of the next."""
    monkeypatch.setattr(exchange, "PIECE", 72)
    monkeypatch.setattr(exchange, "AHEAD", request.param)


def on_two_hosts(work):
    return run_threads(work, 2, hosts=2, timeout=60)


def batches():
    return list(DataLoader(Dataset(*data(4 * ROWS)), batch_size=ROWS))


def messages(model, seen=None):
    """A list that grows with every message of this rank's gradients."""
    (bucket,) = model._buckets
    exchange, sent = bucket.reducer.exchange, [] if seen is None else seen
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
    """And that parameter's gradient is not sent early again."""

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

    for rank, (first, *others) in enumerate(on_two_hosts(work)):
        assert len({*others}) == 1
        assert (first > others[0]) == (times[rank] > 1)


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
        assert len(sent) <= exchange.AHEAD
        step(model, batch)
        assert_same(gradients(model), mean_gradients(0, 1, 1))

    on_two_hosts(work)


class Interrupt(BaseException):
    """What the handler of a signal raises."""


@contextmanager
def interrupted(at):
    """Raises before the instruction number `at` of those that send gradients; yields a list of those that came."""
    came, before = [], sys.gettrace()

    def follow(frame, event, argument):
        name, caller = frame.f_code.co_name, frame.f_back.f_code.co_name
        if frame.f_code.co_filename not in SENDERS or (name, caller) not in SENDING:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            came.append(event)
            if len(came) == at:
                raise Interrupt
        return follow

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
