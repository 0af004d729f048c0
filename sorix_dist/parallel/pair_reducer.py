"""The reducer of two hosts with one rank each: gradients begin to travel while the backward goes on."""

from __future__ import annotations

from zlib import crc32

import numpy as np

from sorix_dist.comm import Comm, Exchange
from sorix_dist.core.flat import Flat
from sorix_dist.core.graph import Accumulator
from sorix_dist.core.memory import PRIVATE
from sorix_dist.core.tensor import Array
from sorix_dist.parallel.reducers import GradientBuffer, Reducer, used_on_any_rank


class PairReducer(Reducer):
    """Each rank sends its gradients to the other one and adds those that come: the last parameters' first, whose
    gradients a backward computes first.

    A gradient counts as complete when it is written. If more comes to it after it was sent, what was sent is withdrawn,
    and from then on that parameter's gradient waits for the end.
    """

    overlaps = True

    def __init__(self, flat: Flat, comm: Comm, exchange: Exchange) -> None:
        super().__init__(flat)
        self.comm, self.exchange = comm, exchange
        self.own = PRIVATE.zeros(flat.size, flat.dtype)
        self.flags = np.zeros(len(flat.parameters), np.uint8)
        self.buffers = [GradientBuffer(flat, self.leaves, self.own, self.flags.data)]
        self.buffers[0].select()
        self._written = self.buffers[0].accumulators
        self._beside: Array | None = None
        self._late = [Accumulator() for _ in self.leaves]  # for what comes to a gradient after it was sent
        self._waiting: set[int] = set()  # the parameters to which something came late
        self._early = False
        self._first_sent = len(self.leaves)

    def begin_backward(self, last: bool) -> None:
        self._settle()  # where an interrupt has kept it from that
        self.exchange.withdraw()  # what a backward has sent that came to no sum
        super().begin_backward(last)
        self._early = last

    def send_complete(self) -> None:
        """Starts to send the gradients that are written, up to one that is not.

        The first parameter's waits until the ranks have agreed, which they can't before all that was sent has arrived:
        while it travels, what has come is added.
        """
        first = self._first_sent
        while first and self._written[first - 1].written and first - 1 not in self._waiting:
            first -= 1
        if self._early and 0 < first < self._first_sent:
            new = range(first, self._first_sent)
            self._first_sent = first  # before anything else, for whatever is interrupted then is settled
            for i in new:
                self.leaves[i].local = self._late[i]
            self.exchange.send(self.own, self.flat.starts[first])

    def end_backward(self) -> bool:
        self._settle()
        return super().end_backward()

    def used_digest(self) -> int:
        return crc32(self.flags.data)

    def reset(self) -> None:
        self._settle()
        super().reset()

    def _settle(self) -> None:
        """Adds what came to a gradient after it was sent, which is withdrawn then."""
        self._early = False
        sent = range(self._first_sent, len(self.leaves))
        for i in sent:
            self.leaves[i].local = self._written[i]
        late = [i for i in sent if self._late[i].written]
        if late:
            self.exchange.withdraw()
        for i in late:
            self._waiting.add(i)
            self.leaves[i].deposit(self._late[i].place(self.leaves[i]))
            self._late[i].written = False
        self._first_sent = len(self.leaves)

    def reduce(self, overwrite: bool, same_used: bool) -> None:
        self.used = used_on_any_rank(self.comm, self.flags.data, same_used)
        if overwrite:
            self.total = self.flat.grad
        else:
            if self._beside is None:
                self._beside = PRIVATE.zeros(self.flat.size, self.flat.dtype)
            self.total = self._beside
        self.exchange.sum(self.own, self.total)
