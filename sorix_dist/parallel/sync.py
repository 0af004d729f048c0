"""One flat storage of a wrapped model, and how its gradients are to be summed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal
from weakref import ref
from zlib import crc32

from sorix_dist.core.flat import Flat, leaf_of
from sorix_dist.nn import Module
from sorix_dist.parallel.reduce import Reducer

if TYPE_CHECKING:
    from sorix_dist.parallel.replicas import Replicas

NonFinite = Literal["raise", "skip", "allow"]

PLAIN = 1
"""What `Member.way` says of a sum that just takes the place of what the parameters show."""


class Member:
    """One flat storage among the replicas, which lives as long as its parameters.

    wrapper: refers to the wrapped model; names: of its parameters; nonfinite: what becomes of their gradients when
    these are not finite.
    """

    number: int
    reducer: Reducer

    def __init__(self, wrapper: Module, replicas: Replicas, flat: Flat, names: list[str], nonfinite: NonFinite) -> None:
        self.wrapper = ref(wrapper)
        self.replicas = replicas
        self.flat = flat
        self.leaves = [leaf_of(parameter) for parameter in flat.parameters]
        self.names = names
        self.nonfinite = nonfinite

    def release(self) -> None:
        """Makes the parameters ordinary ones again, which no one synchronises."""
        self.flat.thaw()
        self.replicas.remove(self)

    def way(self) -> int:
        """How the next sum is to be added to what the parameters show: the same on all ranks that share it.

        0: not shared; each rank keeps private gradients. PLAIN: it overwrites, with nothing to add to and no hook. Else
        a digest of where it is added to something, and where there are hooks.
        """
        if not self.flat.frozen or self.replicas.comm.size == 1:
            return 0
        if not any([leaf.total.written or leaf.hooks for leaf in self.leaves]):  # noqa: C419 (faster)
            return PLAIN
        return crc32(bytes([leaf.total.written + 2 * bool(leaf.hooks) for leaf in self.leaves])) + 2
