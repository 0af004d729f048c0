"""Sums of gradients over several hosts: in shared memory within each, by messages between them."""

from __future__ import annotations

from sorix_dist.comm import Comm
from sorix_dist.core.flat import Flat
from sorix_dist.parallel.reduce import Apart, ByWindow, slice_of


class BetweenHosts(ByWindow):
    """Ranks of several hosts, equally many on each: those of a host sum their slices in shared memory, and each adds
    up its slice with `peers`, the ranks that have the same one on the other hosts."""

    def __init__(self, flat: Flat, comm: Comm, peers: Comm) -> None:
        super().__init__(flat, comm)
        self.comm, self.peers = comm, peers
        first, end = slice_of(flat, comm.local_rank, comm.local_size)
        self.own_slice = self.total[first:end]

    def sum(self) -> None:
        written, summed = self.windows
        written.barrier()
        super().sum()
        self.peers.all_reduce(self.own_slice).wait()
        self.comm.all_reduce(self.used, "max").wait()
        summed.barrier()

    def finite(self) -> bool:
        return Apart.finite(self)
