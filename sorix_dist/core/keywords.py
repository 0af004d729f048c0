"""PyTorch's keywords for functions that take their operands by position or under another name; and suggestions for
names of PyTorch that this package does not have."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import wraps
from inspect import Parameter, signature
from typing import Any

from sorix_dist.core.arguments import EXPLAINED, explain, explained
from sorix_dist.core.batch_numbers import is_just
from sorix_dist.core.calling_code import is_import
from sorix_dist.core.ops.elementwise import cast, mul, rounded_quotient

_PLACES = {"input": 0, "self": 0, "tensors": 0, "other": 1, "exponent": 1, "dims": 1, "sizes": 1, "repeats": 1,
           "shape": 1, "size": 1}  # fmt: skip
_OF_A_SIZE = {"zeros", "ones", "empty", "rand", "randn"}
_WITH_A_DTYPE = {"sum", "mean", "prod", "cumsum", "softmax", "log_softmax", "softmin"}
_OF_NUMPY = {"axis": "dim", "keepdims": "keepdim"}  # PyTorch takes them everywhere
_MEANINGLESS = {"memory_format", "layout", "pin_memory", "non_blocking", "inplace"}  # promises that save nothing here


def with_torch_keywords(function: Callable[..., Any], known_as: str = "") -> Callable[..., Any]:
    """The function, which also takes PyTorch's keywords: `input=`, `other=`, `dims=`, `dtype=`, `alpha=`, … Errors of
    wrong arguments name it, as `known_as` if that is given, and what it was given."""
    kinds = list(signature(function, follow_wrapped=False).parameters.values())
    own = {p.name for p in kinds if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)}
    name: str = function.__name__
    several = any(p.kind is Parameter.VAR_POSITIONAL for p in kinds)
    innermost = signature(function).parameters
    numpys = {key: its for key, its in _OF_NUMPY.items() if its in innermost and key not in innermost}
    if name == "backward":
        return function
    if "input" in own and not several and not numpys and name not in _WITH_A_DTYPE:
        return explained(function, known_as)  # it takes PyTorch's keywords by itself

    @wraps(function)
    def call(*inputs: Any, **options: Any) -> Any:
        try:
            if not options:
                return function(*inputs)
            return translated(inputs, options)
        except EXPLAINED as error:
            explain(error, function, known_as or name, inputs, options)
            raise

    def translated(inputs: Sequence[Any], options: dict[str, Any]) -> Any:
        if options.keys() <= own:
            return function(*inputs, **options)
        operands = list(inputs)
        for key in [key for key in options if key not in own]:
            if key in numpys and numpys[key] not in options:
                options[numpys[key]] = options.pop(key)
            elif key in _MEANINGLESS:
                del options[key]
            elif key in _PLACES:
                at = 0 if key == "size" and name in _OF_A_SIZE else _PLACES[key]
                if at != len(operands) and not (at == 0 and key in ("input", "self")):
                    raise TypeError(f"{name}: {key} is argument {at + 1}, and {len(operands)} were given by position")
                operands.insert(at, options.pop(key))
        dtype = options.pop("dtype", None) if name in _WITH_A_DTYPE else None
        if dtype is not None:
            operands[0] = cast(operands[0], dtype)
        if name in ("add", "sub"):
            alpha = options.pop("alpha", 1)
            operands[1:2] = (
                operands[1:2]
                if is_just(alpha, 1)
                else [operands[1] * alpha if isinstance(operands[1], int | float) else mul(operands[1], alpha)]
            )
        mode = options.pop("rounding_mode", None) if name == "div" else None
        if mode is not None:
            return rounded_quotient(*operands, mode=mode)
        value = function(*operands, **options)
        return value if dtype is None else cast(value, dtype)

    return call


def publish(module: dict[str, Any], names: Sequence[str]) -> None:
    """Gives a module's public functions PyTorch's keywords, and their place in it as their origin."""
    for name in names:
        plain = module[name]
        function = with_torch_keywords(plain, name)
        module[name] = function
        function.__signature__ = signature(function)  # type: ignore[attr-defined]
        del function.__wrapped__  # type: ignore[attr-defined]
        function.__module__, function.__qualname__ = module["__name__"], name


_NUMPY = "numpy.{0}(x.numpy()), without a gradient"
_PADDED = "sx.nn.utils.rnn.pad_sequence: recurrent layers compute the padding too, which a mask leaves out of a loss"
_INSTEAD = {
    **{name: _NUMPY.format(f"linalg.{name}") for name in ("svd", "qr", "eigh", "eig", "pinv", "lstsq")},
    **{name: f"linalg.{name}" for name in ("cholesky", "slogdet", "det", "inv", "solve")},
    **{name: _NUMPY.format(name) for name in ("quantile", "histogram", "cov", "corrcoef", "gcd", "lcm")},
    "fft": _NUMPY.format("fft.fft"),
    **dict.fromkeys(("pack_padded_sequence", "pad_packed_sequence", "pack_sequence"), _PADDED),
    **dict.fromkeys(("DataParallel", "parallel"), "sx.DistributedDataParallel"),
    "new_group": "DistributedDataParallel(model, comm=) with a communicator of mpi4py",
    "set_num_threads": "sx.init(threads=)", "set_default_dtype": "dtype=, or double() of a module",
    "get_default_dtype": "sx.float32, the dtype of layers unless told", "set_printoptions": "numpy.set_printoptions",
    **dict.fromkeys(("seed", "initial_seed", "random"), "sx.manual_seed(seed)"),
    **dict.fromkeys(("get_rng_state", "set_rng_state"), "sx.Checkpointer, which saves how far random numbers came"),
    **dict.fromkeys(("detect_anomaly", "set_detect_anomaly"), "nothing to switch on: a NaN in a gradient raises"),
    **dict.fromkeys(("current_device", "get_device_name", "get_device_properties", "xpu"), "the CPU"),
    "bfloat16": "float16, float32, float64: NumPy has no other floats", "Variable": "the tensor itself",
    **dict.fromkeys(("multiprocessing", "elastic"), "sx.run(), or `sorix-dist run -n 4 SCRIPT`, which start ranks"),
    "tensorboard": "sx.Recorder(tensorboard=True)", "profiler": "sx.profile", "fsdp": "sx.DistributedDataParallel",
    "distributions": "sx.normal, multinomial, bernoulli, and losses such as F.gaussian_nll_loss",
    "modules": "sx.nn", "testing": "numpy.testing", "version": "sx.__version__", "hub": "sx.load(path)",
    "onnx": "sx.to_torch_state(model), for an export by PyTorch", "vmap": "broadcasting", "func": "sx.autograd.grad",
    "dataloader": "sx.utils.data", "ZeroRedundancyOptimizer": "any optimizer", "special": "sx.erf and its kin",
    "use_deterministic_algorithms": "sx.init(virtual_shards=8), for the same bits on any number of ranks",
    "jit": "the model itself: there is nothing to compile", "nanmedian": "median", "kthvalue": "sort", "mode": "unique",
    "concatenate_": "cat", "complex64": "two tensors, for the real and the imaginary part",
    "sparse": "sx.nn.Embedding, or dense tensors", "masked_scatter": "where", "scatter_reduce": "scatter_add, amax",
    "index_put": "where, scatter_add", "einops": "reshape, permute", "Parameter": "nn.Parameter",
    "SyncBatchNorm": "BatchNorm2d, whose statistics are those of the global batch",
    "LBFGS": "Adam, or scipy.optimize.minimize", "ASGD": "SGD, and swa_utils.AveragedModel",
    "CTCLoss": "no loss of alignments",
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
        # An import drops the message of an AttributeError.
        error = ImportError if is_import(sys._getframe(1)) else AttributeError
        raise error(f"module {module!r} has no {name!r}{f'; there is {near}' if near else ''}")

    return missing


class MissingModules:
    """The last finder of modules: it says what there is instead of a module of PyTorch that this package lacks."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        """ModuleNotFoundError for a known module of PyTorch; None for any other name."""
        parent, _, last = name.rpartition(".")
        if name.startswith("sorix_dist.") and last in _INSTEAD:
            raise ModuleNotFoundError(f"module {parent!r} has no {last!r}; there is {_INSTEAD[last]}", name=name)
