"""What ranks must agree on before anything is mixed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import zip_longest

from sorix_dist.comm import Comm
from sorix_dist.core import Tensor


def describe(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """One line per tensor: name, shape and dtype."""
    return [f"'{name}' of shape {tuple(t.array.shape)} and dtype {t.array.dtype}" for name, t in tensors]


def same_everywhere(comm: Comm, what: str, lines: list[str]) -> None:
    """ValueError on every rank, naming the first difference, if `lines` are not the same on all of them."""
    digest = hashlib.sha256("\n".join(lines).encode()).digest()
    digests = comm.gather_objects(digest)
    other = next((r for r, d in enumerate(digests) if d != digests[0]), None)
    if other is None:
        return
    ours, theirs = comm.share(lines, 0), comm.share(lines, other)
    first, second = next((a, b) for a, b in zip_longest(ours, theirs) if a != b)
    raise ValueError(
        f"{what} must be the same on every rank: rank 0 has {first or 'no more'}, "
        f"rank {other} has {second or 'no more'} at the same place"
    )
