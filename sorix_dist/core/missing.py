"""Suggestions for names of PyTorch that this package does not have."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

_NUMPY = "numpy.{0}(x.numpy()), without a gradient"
_INSTEAD = {
    **{name: _NUMPY.format(f"linalg.{name}") for name in ("svd", "qr", "eigh", "eig", "cholesky", "pinv", "lstsq")},
    **{name: _NUMPY.format(name) for name in ("quantile", "histogram", "fft", "cov", "corrcoef", "gcd", "lcm")},
    "Generator": "sx.manual_seed(seed), which starts all random numbers",
    "amp": "dtype=: there is no mixed precision", "autocast": "dtype=: there is no mixed precision",
    "DataParallel": "sx.DistributedDataParallel", "parallel": "sx.DistributedDataParallel",
    "new_group": "DistributedDataParallel(model, comm=) with a communicator of mpi4py",
    "jit": "the model itself: there is nothing to compile", "nanmedian": "median", "kthvalue": "sort", "mode": "unique",
    "concatenate_": "cat", "complex64": "two tensors, for the real and the imaginary part",
    "sparse": "sx.nn.Embedding, or dense tensors", "masked_scatter": "where", "scatter_reduce": "scatter_add, amax",
    "index_put": "where, scatter_add", "einops": "reshape, permute", "Parameter": "nn.Parameter",
}  # fmt: skip


def missing_from(module: str, names: dict[str, Any]) -> Callable[[str], Any]:
    """A module's `__getattr__`: AttributeError with the nearest thing that there is."""

    def missing(name: str) -> Any:
        near = _INSTEAD.get(name) or ", ".join(get_close_matches(name, [n for n in names if n[0] != "_"], 3, 0.6))
        if name.startswith("__"):
            near = ""
        raise AttributeError(f"module {module!r} has no {name!r}{f'; there is {near}' if near else ''}")

    return missing
