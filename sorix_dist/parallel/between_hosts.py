"""Sums of gradients over several hosts: in shared memory within each, by messages between them."""

from __future__ import annotations

from sorix_dist.comm import Comm
from sorix_dist.core.flat import Flat
from sorix_dist.parallel.by_window import ByWindow
from sorix_dist.parallel.comm_hooks import Hook
from sorix_dist.parallel.host_memory import HostMemory
from sorix_dist.parallel.reduce import Apart, used_on_any_rank


class BetweenHosts(ByWindow):
    """Ranks of several hosts, equally many on each: those of a host sum their slices in shared memory, and each adds
    up its slice with `peers`, the ranks that have the same one on the other hosts, or lets a hook do so."""

    def __init__(self, flat: Flat, memory: HostMemory, peers: Comm, hook: Hook | None) -> None:
        super().__init__(flat, memory)
        self.memory, self.peers, self.hook = memory, peers, hook

    def sum(self, plain: bool) -> None:
        super().sum(plain)
        own_slice = self.total[self.totals.own]
        if self.hook is None:
            self.peers.all_reduce(own_slice)
        else:
            self.hook(self.peers, own_slice)
            self.flat.clear_gaps(self.total, self.totals.own)
        self.used = used_on_any_rank(self.memory.comm, self.used)
        self.memory.meet("backward")

    def finite(self) -> bool:
        return Apart.finite(self)
