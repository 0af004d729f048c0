"""Sums of gradients over two hosts with one rank each, which begin to travel while the backward goes on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sorix_dist.comm import Comm, Exchange
from sorix_dist.core.flat import Flat
from sorix_dist.core.graph import Accumulator
from sorix_dist.core.home import PRIVATE
from sorix_dist.core.tensor import Array
from sorix_dist.parallel.reduce import Apart, Slot, used_on_any_rank


class Telling(Accumulator):
    """An accumulator that calls `tell` when it is written."""

    __slots__ = ("_written", "tell")

    def __init__(self, array: Array, tell: Callable[[], None]) -> None:
        self.tell = tell
        super().__init__(array)

    @property
    def written(self) -> bool:
        return self._written

    @written.setter
    def written(self, value: bool) -> None:
        self._written = value
        if value:
            self.tell()


class ByExchange(Apart):
    """Each rank sends its gradients to the other one and adds those that come: the last parameters' first, whose
    gradients a backward computes first.

    A gradient is sent when it is written, as if nothing more came to it. If something does, what was sent is withdrawn,
    and from then on that parameter's gradient waits for the end.
    """

    def __init__(self, flat: Flat, comm: Comm, exchange: Exchange) -> None:
        super().__init__(flat)
        self.comm, self.exchange = comm, exchange
        self.own = PRIVATE.zeros(flat.size, flat.dtype)
        self.flags = np.zeros(len(flat.parameters), np.uint8)
        slot = Slot(flat, self.leaves, self.own, self.flags.data)
        self.places = [Telling(view, self._send_written) for view in slot.views]
        slot.places = [*self.places]
        slot.select()
        self.slots = [slot]
        self.beside: Array | None = None
        self.after = [Accumulator() for _ in self.leaves]  # where that comes which comes to a gradient that is sent
        self.waiting: set[int] = set()  # the parameters to which something came
        self.early = False
        self.first_sent = len(self.leaves)

    def begin(self, last: bool) -> None:
        self._settle()  # where an interrupt has kept it from that
        self.exchange.withdraw()  # what a backward has sent that came to no sum
        super().begin(last)
        self.early = last

    def _send_written(self) -> None:
        """Sends the gradients that are there, up to one that is not.

        The last one waits until the ranks have met, which they can't before all that was sent has arrived: while it
        travels, what has come is added.
        """
        first = self.first_sent
        while first and self.places[first - 1].written and first - 1 not in self.waiting:
            first -= 1
        if self.early and 0 < first < self.first_sent:
            new = range(first, self.first_sent)
            self.first_sent = first  # before anything else, for whatever is interrupted then is settled
            for i in new:
                self.leaves[i].local = self.after[i]
            self.exchange.send(self.own, self.flat.starts[first])

    def prepare(self) -> bool:
        self._settle()
        return super().prepare()

    def failed(self) -> None:
        self._settle()
        super().failed()

    def _settle(self) -> None:
        """Adds what came to a gradient after it was sent, which is withdrawn then."""
        self.early = False
        sent = range(self.first_sent, len(self.leaves))
        for i in sent:
            self.leaves[i].local = self.places[i]
        changed = [i for i in sent if self.after[i].written]
        if changed:
            self.exchange.withdraw()
        for i in changed:
            self.waiting.add(i)
            self.leaves[i].deposit(self.after[i].place(self.leaves[i]))
            self.after[i].written = False
        self.first_sent = len(self.leaves)

    def sum(self, plain: bool) -> None:
        self.used = used_on_any_rank(self.comm, self.flags.data)
        if plain:
            self.total = self.flat.grad
        else:
            if self.beside is None:
                self.beside = PRIVATE.zeros(self.flat.size, self.flat.dtype)
            self.total = self.beside
        self.exchange.sum(self.own, self.total)
