"""How many threads the BLAS of each rank uses: the ranks of a host share its cores.

Without a cap, each of them takes all cores and training is 6 to 24 times slower on 4 ranks. A number that the
user chose by one of `VARIABLES` is respected: nothing is changed then.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import MutableMapping
from typing import TYPE_CHECKING

from sorix_dist.comm.cores import cut_to_quota, own_cpus
from sorix_dist.comm.launcher import detect

if TYPE_CHECKING:
    from sorix_dist.comm.protocol import Comm

VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")

_set_here: dict[str, str] = {}


def cap_early(environ: MutableMapping[str, str]) -> int | None:
    """Cap the BLAS threads before any rank has heard of the others, if a launcher says that several share
    this host; return the number of threads, or None if nothing was changed.

    Called when the package is imported, so that NumPy work before `init` is not slowed down. A NumPy that is
    loaded later reads `environ`; one that is loaded already is told by threadpoolctl.
    """
    ranks = _launched_here(environ)
    if ranks == 1 or _chosen_by_user(environ):
        return None
    threads = max(1, cut_to_quota(len(own_cpus())) // ranks)
    _set(environ, threads)
    return threads


def cap(comm: Comm, threads: int | str, environ: MutableMapping[str, str]) -> int | None:
    """Set the BLAS threads of this rank: a call of all ranks; return the number, None if left as it is.

    'auto' is the number of distinct CPUs that the ranks of this host may use, cut to the container's quota and
    divided by these ranks, at least 1 and at most the CPUs that this rank may use; one rank alone on its host, without
    a quota, is not capped. Ranks that the launcher started here but that are not in `comm` count too. An int is the
    number itself, whatever the environment says.
    """
    cpus = own_cpus()
    masks = comm.gather_objects((comm.host, sum(1 << cpu for cpu in cpus)))
    union = 0
    for host, mask in masks:
        if host == comm.host:
            union |= mask
    cores = cut_to_quota(union.bit_count())
    ranks = max(comm.local_size, _launched_here(environ))
    if isinstance(threads, int):
        _warn_of_crowd(f"threads={threads}", threads, ranks, cores, comm.rank)
        _set(environ, threads)
        return threads
    chosen = _chosen_by_user(environ)
    number = max(1, min(len(cpus), cores // ranks))
    if chosen is None and (ranks > 1 or number < len(cpus)):
        _set(environ, number)
        return number
    if chosen is not None and environ[chosen].isdigit():
        _warn_of_crowd(f"{chosen}={environ[chosen]}", int(environ[chosen]), ranks, cores, comm.rank)
    return None


def limit(threads: int) -> None:
    """Makes the BLAS of this process use so many threads, whatever was set before."""
    _set(os.environ, threads)


def kernels() -> str:
    """What decides on the bits of a product or a sum on this rank: NumPy, the instructions that it uses, and the BLAS
    with its kernels, which the CPU or a variable such as OPENBLAS_CORETYPE chooses."""
    import numpy as np
    from threadpoolctl import threadpool_info

    blas = [
        f"{each['internal_api']} {each['version']} with kernels for {each.get('architecture', 'any CPU')}"
        for each in threadpool_info()
        if each["user_api"] == "blas"
    ]
    found = np.show_config(mode="dicts").get("SIMD Extensions", {}).get("found", [])
    return f"NumPy {np.__version__} with {', '.join(found) or 'no extensions'}; {', '.join(sorted(blas)) or 'no BLAS'}"


def _warn_of_crowd(said: str, threads: int, ranks: int, cores: int, rank: int) -> None:
    """Rank 0 warns of more BLAS threads than its host's cores are good for."""
    if rank == 0 and threads > max(1, cores // ranks):
        here = "this process" if ranks == 1 else f"{ranks} ranks of this host"
        each = "" if ranks == 1 else " each"
        warnings.warn(
            f"{said} gives {here} {threads} BLAS threads{each} on {cores} core{'s' * (cores > 1)}, which is slow; "
            f"unset it, or give threads={max(1, cores // ranks)}",
            RuntimeWarning,
            stacklevel=5,
        )


def _launched_here(environ: MutableMapping[str, str]) -> int:
    """The processes that the launcher started on this host, 1 if it does not say."""
    launch = detect(environ)
    return launch.local_size or 1 if launch is not None else 1


def _chosen_by_user(environ: MutableMapping[str, str]) -> str | None:
    """The first of VARIABLES that somebody else has set."""
    for name in VARIABLES:
        if environ.get(name) and environ[name] != _set_here.get(name):
            return name
    return None


def _set(environ: MutableMapping[str, str], threads: int) -> None:
    for name in VARIABLES:  # for a BLAS that is loaded later, and for child processes of this rank
        environ[name] = _set_here[name] = str(threads)
    if "numpy" in sys.modules:
        from threadpoolctl import threadpool_limits

        threadpool_limits(limits=threads, user_api="blas")
