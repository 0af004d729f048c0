"""The libraries that multiply NumPy's matrices: which kernels they chose for this CPU, and their threads.

Both tensors and ranks ask, so it stands below both, and imports nothing of them.
"""

from typing import Any


def libraries() -> list[Any]:
    """Each BLAS that is loaded, NumPy's first, as threadpoolctl's controller: `internal_api`, such as "openblas",
    `version`, `architecture` (the kernels, where it has that attribute), `num_threads`."""
    from threadpoolctl import ThreadpoolController

    return [*ThreadpoolController().select(user_api="blas").lib_controllers]


def kernels(library: Any) -> str:
    """The name of the kernels that a library has chosen."""
    return getattr(library, "architecture", None) or "unknown"


def limit_threads(threads: int) -> None:
    """Sets the number of threads of every loaded BLAS."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(limits=threads, user_api="blas")
