"""Suggestions for names of PyTorch that this package does not have."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dis import opname
from typing import Any

_NUMPY = "numpy.{0}(x.numpy()), without a gradient"
_PADDED = "sx.nn.utils.rnn.pad_sequence: recurrent layers compute the padding too, which a mask leaves out of a loss"
_PRECISION = "dtype=: there is no mixed precision"
_INSTEAD = {
    **{name: _NUMPY.format(f"linalg.{name}") for name in ("svd", "qr", "eigh", "eig", "cholesky", "pinv", "lstsq")},
    **{name: _NUMPY.format(name) for name in ("quantile", "histogram", "fft", "cov", "corrcoef", "gcd", "lcm")},
    **dict.fromkeys(("pack_padded_sequence", "pad_packed_sequence", "pack_sequence"), _PADDED),
    **dict.fromkeys(("amp", "autocast", "GradScaler"), _PRECISION),
    **dict.fromkeys(("DataParallel", "parallel"), "sx.DistributedDataParallel"),
    "new_group": "DistributedDataParallel(model, comm=) with a communicator of mpi4py",
    "backends": "nothing to set: NumPy computes on the CPU", "set_num_threads": "sx.init(threads=)",
    "use_deterministic_algorithms": "sx.init(virtual_shards=8), for the same bits on any number of ranks",
    "jit": "the model itself: there is nothing to compile", "nanmedian": "median", "kthvalue": "sort", "mode": "unique",
    "concatenate_": "cat", "complex64": "two tensors, for the real and the imaginary part",
    "sparse": "sx.nn.Embedding, or dense tensors", "masked_scatter": "where", "scatter_reduce": "scatter_add, amax",
    "index_put": "where, scatter_add", "einops": "reshape, permute", "Parameter": "nn.Parameter",
    "SyncBatchNorm": "BatchNorm2d, whose statistics are those of the global batch",
    "Transformer": "TransformerEncoder, TransformerDecoder", "LBFGS": "Adam, or scipy.optimize.minimize",
    "ASGD": "SGD, and swa_utils.AveragedModel", "CTCLoss": "no loss of alignments",
    "EmbeddingBag": "Embedding, and a mean over its rows",
    "SubsetRandomSampler": "Subset(dataset, indices) with DataLoader(shuffle=True)",
    "RandomSampler": "DataLoader(shuffle=True)", "SequentialSampler": "DataLoader(shuffle=False)",
    "get_worker_info": "threads as workers, and each makes whole batches",
    "weight_norm": "a parametrization in your forward", "spectral_norm": "a parametrization in your forward",
}  # fmt: skip


def missing_from(module: str, names: dict[str, Any]) -> Callable[[str], Any]:
    """A module's `__getattr__`: an error with the nearest thing that there is, ImportError in an import."""

    def missing(name: str) -> Any:
        from difflib import get_close_matches  # slow to import, and rarely used

        near = _INSTEAD.get(name) or ", ".join(get_close_matches(name, [n for n in names if n[0] != "_"], 3, 0.6))
        if name.startswith("__"):
            near = ""
        caller = sys._getframe(1)
        imported = opname[caller.f_code.co_code[caller.f_lasti]] == "IMPORT_FROM"
        error = ImportError if imported else AttributeError  # an import drops an AttributeError's message
        raise error(f"module {module!r} has no {name!r}{f'; there is {near}' if near else ''}")

    return missing
