"""The predicted times of steps on many hosts: formulas, their limits, and what was measured."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from sorix_dist.parallel.comm_hooks import Matrix, PowerSGD, matrices_in
from sorix_dist.train.cost_model import (
    METHODS,
    Border,
    Layout,
    Link,
    Machine,
    PerRows,
    Step,
    binomial_tree,
    exchange_of_slices,
    overlapped,
    pipelined_ring,
    predict,
    ring,
)

GIGABIT = Link(50e-6, 8e-9)
FREE = Machine(0, 0, 1e30, 1e30, 0, 0)
MACHINE = Machine(13e-6, 1.3e-10, 60e9, 75e9, 1.5e-3, 1.5e-3, wakeup=58e-6)
STEP = Step(
    rows=256,
    forward=PerRows(1e-4, 1.5e-5),
    backward=PerRows(1e-4, 2.5e-5),
    update=4e-4,
    rest=1e-4,
    borders=(Border(0.0, 0.0), Border(0.1, 0.1), Border(0.5, 0.6)),
    nbytes=2_678_824,
    matrices=(Matrix(0, 818, 818),),
)


def test_textbook_formulas():
    """Of 4 hosts and 1 MB: 6 messages of 250 kB, or 2 of 1 MB."""
    link = Link(1e-3, 1e-8)
    assert ring(1e6, 4, link) == pytest.approx(6 * (1e-3 + 2.5e-3))
    assert binomial_tree(1e6, 4, link) == pytest.approx(2 * (1e-3 + 1e-2))
    assert binomial_tree(1e6, 5, link) == pytest.approx(3 * (1e-3 + 1e-2))
    assert binomial_tree(1e6, 1, link) == ring(1e6, 1, link) == 0


@pytest.mark.parametrize("hosts", [2, 3, 4, 16, 64])
def test_a_ring_without_latency_is_as_fast_as_the_wire(hosts):
    found = pipelined_ring(1e8, hosts, Link(0, 1e-9), FREE)
    assert found.seconds == pytest.approx(ring(1e8, hosts, Link(0, 1e-9)))
    assert found.work == 0
    assert pipelined_ring(1e8, 1, GIGABIT, MACHINE) == (0, 0, 0)


def test_a_ring_is_limited_by_latency_or_by_a_rank_s_work():
    slow = pipelined_ring(19240, 64, Link(1e-3, 1e-9), FREE)
    assert slow.seconds == pytest.approx(126 * 1e-3, rel=0.01)  # one trip around, twice
    busy = pipelined_ring(1e8, 2, Link(0, 1e-12), replace(FREE, message_byte=1e-9))
    assert busy.seconds == busy.work == pytest.approx(0.1)
    assert pipelined_ring(1e8, 2, Link(0, 1e-12), replace(FREE, message_byte=1e-9, crowding=2)).work == 2 * busy.work


def test_what_passes_during_a_backward():
    complete_at_once, evenly = [Border(0.0, 1.0)], [Border(k / 4, k / 4) for k in range(4)]
    assert overlapped(3.0, 10.0, 2.0, complete_at_once) == 2.0  # as long as the backward
    assert overlapped(1.0, 10.0, 2.0, complete_at_once) == 1.0  # all
    assert overlapped(3.0, 0.5, 2.0, complete_at_once) == 0.5  # one burst, because there is only one border
    assert overlapped(3.0, 10.0, 2.0, [Border(0.0, 0.0)]) == 0  # nothing is complete before the end
    assert overlapped(1.0, 10.0, 4.0, evenly) == 0.75  # all that is complete by the last border
    assert overlapped(3.0, 0.5, 4.0, evenly) == 1.5  # a burst at each border but the first
    assert overlapped(3.0, 10.0, 4.0, []) == 0


def test_one_rank_is_a_step_alone():
    for method in METHODS:
        assert predict(STEP, Layout(1, 1), GIGABIT, MACHINE, method) == STEP.alone(256)
    with pytest.raises(ValueError, match="method must be one of exact, fp16, PowerSGD, LocalSGD, got 'zip'"):
        predict(STEP, Layout(2, 1), GIGABIT, MACHINE, "zip")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", [Layout(2, 1), Layout(4, 1), Layout(2, 4), Layout(1, 8), Layout(64, 32)])
def test_a_better_machine_or_network_is_never_slower(method, layout):
    def seconds(link=GIGABIT, machine=MACHINE, step=STEP):
        return predict(step, layout, link, machine, method)

    for better in (Link(20e-6, 8e-9), Link(50e-6, 8e-10)):
        assert seconds(better) <= seconds()
    for worse in ("message", "message_byte", "fp16", "powersgd", "crowding", "wakeup"):
        assert seconds(machine=replace(MACHINE, **{worse: 2 * getattr(MACHINE, worse)})) >= seconds()
    assert seconds(machine=replace(MACHINE, host_memory=90e9)) <= seconds()
    compute = STEP.forward.of(1) + STEP.backward.of(1)
    assert seconds() > compute
    assert seconds(step=replace(STEP, nbytes=2 * STEP.nbytes)) >= seconds()


def test_limits():
    """Where the wire is the limit, fp16 takes half of it; without sums, LocalSGD takes the compute alone."""
    layout, wire = Layout(4, 1), ring(STEP.nbytes, 4, Link(0, 8e-7))
    exact, half = (predict(STEP, layout, Link(0, 8e-7), FREE, method) for method in ("exact", "fp16"))
    assert exact == pytest.approx(wire, rel=0.01)
    assert half == pytest.approx(wire / 2, rel=0.01)
    rare = predict(STEP, layout, GIGABIT, FREE, "LocalSGD", every=10**9)
    assert rare == pytest.approx(STEP.alone(64))
    times = [predict(STEP, layout, GIGABIT, FREE, "LocalSGD", every=every) for every in (1, 4, 16)]
    assert all(more > less for more, less in pairwise(times))
    # 2 sums of 4 hops and a broadcast of 2, of the 13 kB of rank 4 each, and the agreement's 2 hops.
    assert predict(STEP, layout, GIGABIT, FREE, "PowerSGD") == pytest.approx(
        STEP.alone(64) + 12 * 50e-6 + 10 * 105e-6, rel=0.1
    )
    late = replace(FREE, wakeup=1e-3)
    assert predict(STEP, layout, GIGABIT, late, "PowerSGD") - predict(
        STEP, layout, GIGABIT, FREE, "PowerSGD"
    ) == pytest.approx(12e-3)


def test_sums_in_a_fixed_order_cross_the_link_once_for_each_rank_of_a_host():
    """And once more for the sums of all slices."""
    link, nbytes = Link(0, 1e-9), 1e8
    assert exchange_of_slices(nbytes, Layout(4, 1), link, FREE) == pytest.approx(1.5 * 0.1)
    assert exchange_of_slices(nbytes, Layout(4, 8), link, FREE) == pytest.approx((8 * 0.75 + 31 / 32) * 0.1)
    assert exchange_of_slices(nbytes, Layout(4, 8), Link(1e-3, 0), FREE) == pytest.approx(62e-3)
    assert exchange_of_slices(nbytes, Layout(1, 8), link, FREE) == pytest.approx(0)


def test_ranks_of_a_host_share_its_memory_and_its_link():
    def seconds(ranks, **changed):
        return predict(STEP, Layout(2, ranks), GIGABIT, replace(MACHINE, **changed), "exact")

    assert seconds(8) < seconds(2) < seconds(1)
    assert seconds(8, host_memory=300e9) < seconds(8)
    wire = ring(STEP.nbytes, 2, GIGABIT)
    assert seconds(32) > wire


def test_more_ranks_than_rows_gain_nothing():
    assert predict(STEP, Layout(1, 512), GIGABIT, FREE, "exact") >= predict(
        STEP, Layout(1, 256), GIGABIT, FREE, "exact"
    )


W1 = Step(
    rows=256,
    forward=PerRows(7.5e-4, 3.9e-6),
    backward=PerRows(2.1e-4, 1.1e-5),
    update=3.5e-4,
    rest=1.4e-4,
    borders=(Border(0.0, 0), Border(0.003, 0.008), Border(0.004, 0.008), Border(0.62, 0.4), Border(0.63, 0.4)),
    nbytes=2_678_824,
    matrices=(Matrix(0, 784, 512), Matrix(401_920, 512, 512), Matrix(664_576, 512, 10)),
)
"""The MLP 784-512-512-10, as `sorix-dist plan` has measured it on the machine of the measurements below."""


@pytest.mark.parametrize(
    ("hosts", "ranks", "method", "measured"),
    [
        (2, 1, "exact", 22.3),
        (2, 2, "exact", 23.9),
        (4, 1, "exact", 33.3),
        (2, 1, "fp16", 13.1),
        (2, 2, "fp16", 13.5),
        (4, 1, "fp16", 18.9),
        (2, 1, "PowerSGD", 6.1),
        (2, 2, "PowerSGD", 8.1),
        (4, 1, "PowerSGD", 10.5),
    ],
)
def test_measured_layouts(hosts, ranks, method, measured):
    """Steps of W1 over 1 Gbit/s, 10th percentiles in ms, to 20 %. The hosts were network
    namespaces of one machine with two cores, so each rank computed on its share of a core."""
    crowded = replace(MACHINE, crowding=hosts * ranks / 2)
    predicted = 1e3 * predict(W1, Layout(hosts, ranks), GIGABIT, crowded, method)
    assert predicted == pytest.approx(measured, rel=0.2)
    if method == "exact":  # neither the wire alone is such a prediction, nor the sum of wire and compute
        wire = 1e3 * ring(W1.nbytes, hosts, GIGABIT)
        assert wire < predicted < wire + 1e3 * W1.alone(256)


def test_what_powersgd_sends_of_each_weight():
    """P has rank numbers for each row, Q for each column; what is no weight, or too small a one, travels with P."""
    rows, columns, biases = 784 + 512 + 512, 512 + 512 + 10, 512 + 512 + 10
    assert PowerSGD(4).of_matrices(W1.matrices).sent(W1.nbytes // 4) == (4 * rows + biases, 4 * columns)
    assert PowerSGD(4).of_matrices([Matrix(0, 4, 4)]).sent(20) == (20, 0)
    assert matrices_in(W1.matrices, slice(512 + 1, 3 * 512 + 5)) == [Matrix(511, 1, 512)]  # whole rows only
    assert matrices_in(W1.matrices, slice(512, 512)) == []
