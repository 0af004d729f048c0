"""The rows of a loader's batch that belong to one virtual worker."""

from __future__ import annotations

from typing import Any

from sorix_dist.core.placement import REPLICATE, Batch, Rows, Shard, tagged
from sorix_dist.core.tensor import Tensor
from sorix_dist.utils.data.nested import entries, map_arrays


def check_batch(name: str, batch: tuple[Any, ...]) -> None:
    """RuntimeError for an argument that can't be cut into the rows of workers, and is not the same on every rank."""
    first = None
    for x in entries(batch):
        place = x.place if isinstance(x, Tensor) else None
        if place is REPLICATE:
            continue
        what = "is not rows of a loader's batch"
        if isinstance(place, Shard):
            first = first or place.batch
            what = "requires a gradient" if x.origin is not None else ""
            if place.batch.known is None or place.batch.known[:3] != first.known[:3]:  # type: ignore[index]
                what = "is not all rows of one batch"
        if what:
            raise RuntimeError(
                f"{name}: an argument of shape {tuple(x.shape)} {what}: put it into the data set, compute it inside of "
                "the loop, or pass sx.replicated(x) if it is the same on every rank"
            )


def rows_of_worker(batch: tuple[Any, ...], start: int, stop: int, group: Any) -> tuple[Any, ...]:
    """Rows start to stop - 1 of this rank's rows, as the batch of one worker."""
    own = Batch(Rows(0, stop - start, stop - start), group)

    def cut(x: Tensor) -> Tensor:
        place = x.place
        if not isinstance(place, Shard):
            return x
        held = place.batch.held
        rows = x.array if stop - start == held else place.part(x.array, start, stop, held)
        return tagged(Tensor.of(rows, None), own.at(place.axis, place.outer, place.inner))

    result: tuple[Any, ...] = map_arrays(batch, cut)
    return result
