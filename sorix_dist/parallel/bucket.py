"""A bucket: parameters of a wrapped model whose gradients are reduced together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal
from weakref import ref
from zlib import crc32

from sorix_dist.core.flat import Flat, leaf_of
from sorix_dist.parallel.reducers import Reducer

if TYPE_CHECKING:
    from sorix_dist.parallel.coordinator import Coordinator

NonFinite = Literal["raise", "skip", "allow"]
PRIVATE_GRADIENTS, OVERWRITE = 0, 1
"""See `Bucket.reduce_mode`."""


class Bucket:
    """The parameters of one dtype of a wrapped model, whose gradients are reduced together. They keep it alive.

    wrapper: refers to the wrapped model, or to LocalSGD; names: of the parameters; nonfinite: what happens to gradients
    that are not finite; number: the same on all ranks.
    """

    number: int
    reducer: Reducer

    def __init__(self, wrapper: object, coordinator: Coordinator, flat: Flat, names: list[str], nonfinite: NonFinite):
        self.wrapper = ref(wrapper)
        self.coordinator = coordinator
        self.flat = flat
        self.leaves = [leaf_of(parameter) for parameter in flat.parameters]
        self.names = names
        self.nonfinite = nonfinite

    def release(self) -> None:
        """Makes the parameters ordinary ones again."""
        self.flat.thaw()
        self.coordinator.remove(self)

    def reduce_mode(self) -> int:
        """How to add the sum to `grad`; it must be the same on all ranks that share memory.

        PRIVATE_GRADIENTS: not shared; each rank has private gradients. OVERWRITE: no `grad` to add to, and no hook.
        Else a digest of the parameters with a `grad` or a hook.
        """
        if not self.flat.frozen or self.coordinator.comm.size == 1:
            return PRIVATE_GRADIENTS
        for leaf in self.leaves:
            if leaf.total.written or leaf.hooks:
                return crc32(bytes([leaf.total.written + 2 * bool(leaf.hooks) for leaf in self.leaves])) + 2
        return OVERWRITE
