"""The agreement of ranks on several hosts, in one message."""

from __future__ import annotations

import numpy as np

from sorix_dist.comm import Comm
from sorix_dist.comm.checked import HEAD, MESSAGE
from sorix_dist.parallel.agreement import (
    ACTIONS,
    COMPARED,
    MOST_VALUES,
    ROW,
    Agreement,
    Fields,
    Meanwhile,
    SharedMemoryConsensus,
    StepFingerprint,
    merged,
    packed,
    with_many_values,
)

_SHORT_ROW = MESSAGE - HEAD  # bytes of a row that one message both compares and carries
_LONGER = 255  # bytes of a short row in place of one that is longer; no row has this many numbers


class MessageConsensus:
    """Ranks of several hosts gather their rows in one message; those of a host share memory as well."""

    def __init__(self, comm: Comm) -> None:
        self.comm = comm
        self._neighbours = SharedMemoryConsensus(comm)

    def agree(
        self, fingerprint: Fields, numbers: list[int], values: list[float], used: int = 0, meanwhile: Meanwhile = None
    ) -> Agreement:
        # The fence's result is not used: if one host stopped here, the others would wait for it in the gather.
        action, _, digest, *_ = fingerprint
        self._neighbours.fence(ACTIONS[action], digest)
        return self._gather(fingerprint, numbers, values, used, meanwhile)

    def commit(self, fine: bool) -> bool:
        return fine  # every rank has the whole sum

    def fence(self, action: str, digest: int, everywhere: bool = False) -> list[StepFingerprint] | None:
        differing = self._neighbours.fence(action, digest)
        if differing is None and not everywhere:
            return None
        return self._gather(StepFingerprint(ACTIONS.index(action), 0, digest), [], [], 0)[0]

    def _gather(
        self, fingerprint: Fields, numbers: list[int], values: list[float], used: int, meanwhile: Meanwhile = None
    ) -> Agreement:
        sent, places = packed(fingerprint, numbers, used), [-i for i in range(min(len(values), MOST_VALUES))]
        for size in (_SHORT_ROW, ROW):
            row = np.zeros(size, np.uint8)
            if COMPARED + len(sent) + 8 * max(len(places) - 1, 0) <= size:
                row[COMPARED : COMPARED + len(sent)] = np.frombuffer(sent, np.uint8)
                row.view(np.float64)[places] = values[:MOST_VALUES]
            else:
                row[:] = _LONGER
            rows = self.comm.all_gather(row, meanwhile)
            if (rows[:, COMPARED] != _LONGER).all():
                break
        sums = [sum(column) for column in rows.view(np.float64)[:, places].T.tolist()]
        found = merged([each.data[COMPARED:] for each in rows], sums)
        return found if len(values) == len(places) else with_many_values(found, values, self.comm)
