"""Sums of gradients over several hosts: in shared memory within each, by messages between them."""

from __future__ import annotations

from sorix_dist.comm import Comm
from sorix_dist.core.flat import Flat
from sorix_dist.parallel.comm_hooks import Hook
from sorix_dist.parallel.reduce import Apart, ByWindow, slice_of


class BetweenHosts(ByWindow):
    """Ranks of several hosts, equally many on each: those of a host sum their slices in shared memory, and each adds
    up its slice with `peers`, the ranks that have the same one on the other hosts, or lets a hook do so."""

    def __init__(self, flat: Flat, comm: Comm, peers: Comm, hook: Hook | None) -> None:
        super().__init__(flat, comm)
        self.comm, self.peers, self.hook = comm, peers, hook
        first, end = slice_of(flat, comm.local_rank, comm.local_size)
        self.own_slice = self.total[first:end]

    def sum(self) -> None:
        written, summed = self.windows
        written.barrier()
        super().sum()
        if self.hook is None:
            self.peers.all_reduce(self.own_slice).wait()
        else:
            self.hook(self.peers, self.own_slice)
        self.comm.all_reduce(self.used, "max").wait()
        summed.barrier()

    def finite(self) -> bool:
        return Apart.finite(self)
