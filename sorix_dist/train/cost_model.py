"""How long a training step takes on many hosts: formulas without side effects, which `sorix-dist plan` uses.

A message of n bytes takes alpha + n beta: the link's latency, and its seconds per byte (Hockney 1994, The communication
challenge for MPP). The sums of p hosts follow from that (Thakur, Rabenseifner and Gropp 2005, Optimization of
collective communication operations in MPICH, section 4). The package's own ring and its overlap with the backward
follow from `comm.ring`, by the same two numbers and by what a message costs a rank.

All hosts are alike, each with a link of its own through a switch that does not slow them down. All times are seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from sorix_dist.comm.ring import UNDER_WAY, piece_size
from sorix_dist.parallel.comm_hooks import Matrix, PowerSGD, matrices_in

RANK = 4  # the rank of PowerSGD's factors
METHODS = "exact", "fp16", "PowerSGD", "LocalSGD"
SHORT = 64 << 10  # bytes up to which MPI's own all-reduce sums between hosts
AGREEMENT = 128  # bytes by which a rank agrees with the others


class Link(NamedTuple):
    """A host's link. latency: of a message; byte: seconds of a byte, in each direction at the same time."""

    latency: float
    byte: float


class Layout(NamedTuple):
    """hosts, and ranks on each of them."""

    hosts: int
    ranks_per_host: int

    @property
    def ranks(self) -> int:
        return self.hosts * self.ranks_per_host


class Border(NamedTuple):
    """A moment of the backward at which a rank can send and receive: between two operations.

    time, complete: the share of the backward that is over, and the share of the gradients that is complete.
    """

    time: float
    complete: float


class PerRows(NamedTuple):
    """Seconds of something by its rows: `fixed + rows * each`."""

    fixed: float
    each: float

    def of(self, rows: int) -> float:
        return self.fixed + rows * self.each


@dataclass(frozen=True)
class Step:
    """A step of one rank alone.

    rows: of the global batch; update: by the optimizer, of all parameters; rest: everything else, such as the loader;
    borders: of the backward, from 0 on; nbytes: of the gradients; itemsize: of one of them; matrices: the weights of
    several dimensions among the gradients, as PowerSGD takes them.
    """

    rows: int
    forward: PerRows
    backward: PerRows
    update: float
    rest: float
    borders: tuple[Border, ...]
    nbytes: int
    itemsize: int = 4
    matrices: tuple[Matrix, ...] = ()

    def alone(self, rows: int) -> float:
        """Seconds of a step without other ranks."""
        return self.forward.of(rows) + self.backward.of(rows) + self.update + self.rest


@dataclass(frozen=True)
class Machine:
    """What a rank's work on messages costs.

    message, message_byte: seconds that a rank works for a message between hosts, and for a byte of it; core_memory,
    host_memory: bytes per second that one rank, and all ranks of a host together, read and write when they add arrays;
    fp16, powersgd: seconds in which one rank encodes and decodes all gradients; crowding: ranks that share a core;
    wakeup: seconds after which a rank that waits for a message notices it.
    """

    message: float
    message_byte: float
    core_memory: float
    host_memory: float
    fp16: float
    powersgd: float
    crowding: float = 1.0
    wakeup: float = 0.0


def binomial_tree(nbytes: float, hosts: int, link: Link) -> float:
    """Seconds of a broadcast of a short array, or of its sum at one rank: log2(p) (alpha + n beta), Thakur et al. 2005.

    An all-reduce takes both: so do Open MPI's, which need not wait inside of MPI.
    """
    return math.ceil(math.log2(hosts)) * (link.latency + nbytes * link.byte)


def ring(nbytes: float, hosts: int, link: Link) -> float:
    """Seconds of an all-reduce of a long array in a plain ring: 2 (p - 1) alpha + 2 (p - 1) / p n beta, Thakur et al.
    2005 (reduce-scatter and all-gather)."""
    return 2 * (hosts - 1) * (link.latency + nbytes / hosts * link.byte)


def exchange_of_slices(nbytes: float, layout: Layout, link: Link, machine: Machine) -> float:
    """Seconds of an all-reduce in a fixed order, as reproducible mode and LocalSGD make it.

    Each rank receives its slice from all others, by pairwise exchange, (p - 1) alpha + n beta. A ring collects the sums
    of the slices, (p - 1) alpha + (p - 1) / p n beta (Thakur et al. 2005). The ranks of a host share its link.
    """
    hosts, ranks = layout.hosts, layout.ranks
    work = 2 * nbytes * machine.message_byte * machine.crowding + nbytes / machine.core_memory
    if hosts == 1:
        return work
    to_others = 1 - 1 / hosts
    on_link = nbytes * link.byte * (layout.ranks_per_host * to_others + (ranks - 1) / ranks)
    return 2 * (ranks - 1) * link.latency + on_link + work


class Ring(NamedTuple):
    """The package's ring: pieces that travel 2 (p - 1) links independently of each other, several at a time.

    seconds: of the sum; work: the part in which a rank works on its messages; burst: seconds of sending that a rank
    prepares in advance, after which it must take part again.
    """

    seconds: float
    work: float
    burst: float


def pipelined_ring(nbytes: float, hosts: int, link: Link, machine: Machine, coding: float = 0.0) -> Ring:
    """The longest of three times: of the bytes on a link, of a rank's work on all messages, and of the trips. A rank
    has w pieces under way at most, so m pieces that start at a rank take ceil(m / w) trips one after the other.

    coding: seconds in which a rank encodes and decodes everything, a piece at a time.
    """
    if hosts == 1:
        return Ring(0.0, 0.0, 0.0)
    piece = min(piece_size(nbytes, hosts), nbytes)
    per_rank = nbytes / piece / hosts
    window = max(2, UNDER_WAY // hosts)
    share = 2 * (hosts - 1) / hosts
    on_link = share * nbytes * link.byte
    work = (share * nbytes * (machine.message / piece + machine.message_byte) + coding) * machine.crowding
    hop = link.latency + piece * (link.byte + machine.message_byte + coding / nbytes) + machine.message
    trips = math.ceil(per_rank / window) * 2 * (hosts - 1) * hop
    return Ring(max(on_link, work, trips), work, min(window, max(per_rank, 1)) * piece * link.byte)


def overlapped(total: float, burst: float, backward: float, borders: Sequence[Border]) -> float:
    """Seconds of a ring's `total` that pass during the backward.

    The ring advances at borders only: then a rank sends a burst at most, of gradients that are complete.
    """
    done = 0.0
    for here, after in pairwise([*borders, Border(1.0, 1.0)]):
        done += max(0.0, min((after.time - here.time) * backward, here.complete * total - done, burst))
    return done


def predict(step: Step, layout: Layout, link: Link, machine: Machine, method: str, every: int = 16) -> float:
    """Seconds of a step of the slowest rank, which has the most rows of the global batch. On one host, gradients are
    not compressed.

    every: steps between the sums of LocalSGD. ValueError for a method that is not one of `METHODS`.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    hosts, local = layout
    if layout.ranks == 1:
        return step.alone(step.rows)
    rows = math.ceil(step.rows / layout.ranks)
    link = link._replace(latency=link.latency + machine.wakeup)
    crowding, nbytes = machine.crowding, step.nbytes
    forward, backward = (times.of(rows) * crowding for times in (step.forward, step.backward))
    compute = forward + backward + step.rest * crowding
    together = min(local, machine.host_memory / machine.core_memory)  # ranks that use a host's memory at full speed
    update = step.update * crowding / together  # each rank updates a slice
    host_sum = (local + 1) * nbytes / (together * machine.core_memory) if local > 1 else 0.0
    if method == "LocalSGD":  # each rank updates all of its own parameters
        return compute + update * local + exchange_of_slices(nbytes, layout, link, machine) / every
    depth = math.ceil(math.log2(hosts))
    agreement = depth * (link.latency + AGREEMENT * link.byte + machine.message * crowding)
    seconds = compute + host_sum + update + agreement
    if hosts == 1:
        return seconds
    if method == "exact":
        return seconds + _exposed(nbytes, step, hosts, link, machine, backward)
    if method == "fp16":
        return seconds + _exposed(nbytes / 2, step, hosts, link, machine, backward, machine.fp16 / local)
    return seconds + machine.powersgd * crowding / local + _powersgd_sums(step, layout, link, machine)


def _exposed(
    nbytes: float, step: Step, hosts: int, link: Link, machine: Machine, backward: float, coding: float = 0.0
) -> float:
    """Seconds that the ring adds to a step: what does not pass during the backward, and a rank's work for the rest."""
    found = pipelined_ring(nbytes, hosts, link, machine, coding)
    if not found.seconds:
        return 0.0
    hidden = overlapped(found.seconds, found.burst, backward, step.borders)
    return found.seconds - hidden + found.work * hidden / found.seconds


def _powersgd_sums(step: Step, layout: Layout, link: Link, machine: Machine) -> float:
    """Seconds of the messages of PowerSGD: sums of P and Q, and between them a broadcast of P, which the ranks of a
    host make at the same time, each for its slice. The largest slice counts."""
    hosts, local = layout
    count, hook = step.nbytes // step.itemsize, PowerSGD(RANK)
    ends = [count * i // local for i in range(local + 1)]
    slices = [slice(start, stop) for start, stop in pairwise(ends)]
    sent = [hook.of_matrices(matrices_in(step.matrices, own)).sent(own.stop - own.start) for own in slices]
    left, right = (step.itemsize * numbers for numbers in max(sent, key=sum))
    shared = link._replace(byte=link.byte * local)
    seconds = sum(_summed(nbytes, hosts, shared, machine) for nbytes in (left, right) if nbytes)
    if right:  # a long array is broadcast in pieces
        broadcast = min(binomial_tree(left, hosts, shared), ring(left, hosts, shared))
        seconds += broadcast + _work(left, hosts, machine)
    return seconds


def _summed(nbytes: int, hosts: int, link: Link, machine: Machine) -> float:
    """Seconds of an all-reduce after the backward."""
    if nbytes > SHORT:
        return pipelined_ring(nbytes, hosts, link, machine).seconds
    return 2 * (binomial_tree(nbytes, hosts, link) + _work(nbytes, hosts, machine))


def _work(nbytes: int, hosts: int, machine: Machine) -> float:
    """Seconds that a rank works on the messages of a binomial tree."""
    return math.ceil(math.log2(hosts)) * (machine.message + nbytes * machine.message_byte) * machine.crowding
