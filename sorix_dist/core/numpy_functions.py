"""NumPy's functions on tensors: the operation of the same meaning where there is one, else NumPy on the arrays.

While operations are recorded, a function is refused if its answer would carry no gradient.
`np.asarray` and the constructors that go through it take a tensor's array as `.numpy()` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NoReturn

import numpy as np

from sorix_dist.core import arrange, changes
from sorix_dist.core.capture import outside, recorders
from sorix_dist.core.create import empty_like, full_like, ones_like, zeros_like
from sorix_dist.core.graph import recording
from sorix_dist.core.op import OF_NUMPY
from sorix_dist.core.ops import choose, indexing, join, matrix, reduce
from sorix_dist.core.ops import elementwise as e
from sorix_dist.core.ops import shape as shapes
from sorix_dist.core.ops.axes import along, axis_of
from sorix_dist.core.placement import REPLICATE, Array, Partial, Shard, current_group, shard_of
from sorix_dist.core.rules import on_every_rank, whole
from sorix_dist.core.tensor import Size, Tensor

# Called often, and without a gradient to lose; lengths are numbers of the batch, as x.shape[0] is.
_OF_SHAPES: dict[Any, Callable[..., Any]] = {
    np.shape: lambda a: a.shape,
    np.ndim: lambda a: a.ndim,
    np.size: lambda a, axis=None: a.numel if axis is None else a.shape[axis],
}
_WRITES = {np.copyto, np.fill_diagonal, np.place, np.put, np.put_along_axis, np.putmask}
_SHAPES = {np.result_type, np.can_cast}
# What NumPy says of an array, or makes of it as `.numpy()` does: this rank's rows are enough.
_OF_EACH_ROW = {
    np.save, np.savez, np.savez_compressed, np.savetxt, np.array2string, np.array_repr, np.array_str, np.copy,
    np.result_type, np.can_cast, np.min_scalar_type, np.common_type, np.may_share_memory, np.shares_memory,
    np.iscomplexobj, np.isrealobj,
}  # fmt: skip
# What to use instead of NumPy functions whose arguments or answers are not those of the operation.
_INSTEAD = {
    "numpy.linalg.norm": "norm", "numpy.sort": "sort", "numpy.add.reduce": "sum", "numpy.multiply.reduce": "prod",
    "numpy.maximum.reduce": "amax", "numpy.minimum.reduce": "amin", "numpy.add.accumulate": "cumsum",
    "numpy.multiply.outer": "outer",
}  # fmt: skip


def array_ufunc(self: Tensor, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
    """Implements a NumPy ufunc, or one of its methods, for tensors."""
    out, called = options.get("out", ()), method == "__call__"
    if called and ufunc in OF_NUMPY and not out:
        return OF_NUMPY[ufunc](*inputs, **options)
    name = f"numpy.{ufunc.__name__}" + ("" if called else f".{method}")
    if any(isinstance(target, Tensor) for target in out):
        raise TypeError(f"{name}(out=) can't write into a tensor; write into its `data`")
    if called and ufunc in OF_NUMPY and ufunc.nout == len(options) == 1:
        return _into(name, out[0], OF_NUMPY[ufunc](*inputs))
    writes = method == "at" or bool(out)
    by_row = bool(out) or _has_arrays(inputs[method == "at" :])
    return _on_arrays(name, getattr(ufunc, method), inputs, options, writes, by_row)


def array_function(self: Tensor, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
    """Implements another NumPy function for tensors."""
    if function in _OF_SHAPES:
        return _OF_SHAPES[function](*args, **kwargs)
    name = f"{function.__module__}.{function.__name__}"
    out = kwargs.get("out")
    if function is np.copyto and len(args) == 2 and not kwargs and isinstance(args[0], np.ndarray):
        return _into(name, *args)
    if function in OF_NUMPY:
        made = OF_NUMPY[function](*args, **{key: x for key, x in kwargs.items() if key != "out"})
        return made if out is None else _into(name, out, made)
    writes = out is not None or function in _WRITES
    by_row = function in _OF_EACH_ROW or (writes and not _writes_at_positions(function, args, kwargs))
    return _on_arrays(name, function, args, kwargs, writes, by_row)


def _writes_at_positions(function: Any, args: Any, kwargs: Any) -> bool:
    """Whether a function writes at positions in an array, or one value after the other where a mask is true."""
    if function in (np.place, np.putmask):
        values = [*args, *kwargs.values()][-1]
        return np.size(values) != 1 and np.shape(values) != np.shape(args[0])
    return function is np.fill_diagonal or (function in (np.put, np.put_along_axis) and not _has_arrays(args[1:]))


def shape_function(self: Size, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
    """np.prod(x.shape) is a number of the batch; other functions of a shape get its integers."""
    if function is np.prod and len(args) == 1 and not kwargs:
        return self.numel()
    return function(*_of_integers(args), **{name: _of_integers(x) for name, x in kwargs.items()})


def _of_integers(x: Any) -> Any:
    """An argument in which shapes are tuples of integers, also in lists and tuples."""
    if isinstance(x, Size):
        return tuple(map(int, x))
    return type(x)(map(_of_integers, x)) if x.__class__ in (list, tuple) else x


def _has_arrays(operands: Any) -> bool:
    """Whether there are NumPy's arrays among operands: beside them tensors count as this rank's rows."""
    return any((isinstance(x, np.ndarray) and x.ndim) or (isinstance(x, tuple) and _has_arrays(x)) for x in operands)


def _into(name: str, out: Array, result: Tensor) -> Array:
    """Writes the result of an operation into an array: this rank's rows if it is as long, else those of all ranks."""
    outside(f"{name} writes into an array inside of the step")
    if recording.get() and result.origin is not None:
        _refuse(name, True)
    rows = shard_of(result)
    own = rows is not None and on_every_rank(rows, out.shape == result.array.shape)
    np.copyto(out, (result if own else whole(result.detach(), name)).array, casting="same_kind")
    return out


def _on_arrays(
    name: str, function: Any, args: tuple[Any, ...], options: dict[str, Any], writes: bool, by_row: bool
) -> Any:
    """The function on the tensors' arrays; RuntimeError if a gradient would be lost, before anything is written.

    Sums over rows are those of the global batch. Unless the function works `by_row`, it gets all rows.
    """
    if recorders and function not in _SHAPES:
        outside(f"{name} reads the numbers of a tensor inside of the step")
    recorded = recording.get() and any(tensor.origin is not None for tensor in _tensors((args, options)))
    if recorded and writes:
        _refuse(name, writes)
    place = getattr(args[0], "place", None) if writes and args else None
    has_all = getattr(place, "group", current_group()).has_all
    if place not in (None, REPLICATE) and not (by_row and isinstance(place, Shard)) and not has_all:
        raise RuntimeError(
            f"{name} can't write at positions of rows or sums of a batch, {place}: write into sx.global_value(x)"
        )
    if writes and args and isinstance(args[0], Tensor):
        changes.note(args[0].array)
    wanted = Partial if by_row else Partial | Shard
    result = function(*_arrays(args, name, wanted), **_arrays(options, name, wanted))
    if recorded and _holds_floats(result):
        _refuse(name, writes)
    return result


def _refuse(name: str, writes: bool) -> NoReturn:
    instead = f"use sorix_dist.{_INSTEAD[name]}, or " if name in _INSTEAD else ""
    raise RuntimeError(
        f"{name}{'' if not writes else ', which writes into an array,'} would lose the gradient of a tensor that "
        f"requires one: {instead}call .detach() or .numpy() first where no gradient is wanted"
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | dict):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _tensors(entry)


def _arrays(value: Any, name: str, wanted: Any) -> Any:
    """The value with tensors replaced by their arrays; those of a `wanted` placement are made whole first."""
    if isinstance(value, Tensor):
        return (whole(value.detach(), name) if isinstance(value.place, wanted) else value).array
    if isinstance(value, dict):
        return {key: _arrays(entry, name, wanted) for key, entry in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_arrays(entry, name, wanted) for entry in value)
    return value


def _holds_floats(result: Any) -> bool:
    if isinstance(result, tuple | list):
        return any(_holds_floats(entry) for entry in result)
    if isinstance(result, np.ndarray | np.generic):
        return result.dtype.kind in "fcO"
    return isinstance(result, float | complex)


# -- NumPy's arguments, as far as the operations know them


def _condition(condition: Any) -> Any:
    return e.cast(condition, np.bool_) if isinstance(condition, Tensor) else np.asarray(condition, np.bool_)


def _reduction(operation: Callable[..., Any]) -> Callable[..., Any]:
    def over(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        a = _as(dtype, a, out)
        return shapes.alias(a) if axis == () else operation(a, axis, keepdims)  # () is no axis here, all for PyTorch

    return over


def _variance(operation: Callable[..., Any]) -> Callable[..., Any]:
    return lambda a, axis=None, dtype=None, out=None, ddof=0, keepdims=False: (
        e.mul(a, 0.0) if axis == () else operation(_as(dtype, a, out), axis, keepdims=keepdims, correction=ddof)
    )


def _extreme(operation: Callable[..., Any]) -> Callable[..., Any]:
    return lambda a, axis=None, out=None, keepdims=False: (
        shapes.alias(_as(None, a, out)) if axis == () else operation(_as(None, a, out), axis, keepdims)
    )


def _as(dtype: Any, a: Any, out: Any = None) -> Any:
    if out is not None:
        raise TypeError("a NumPy function of a tensor takes out by keyword only")
    return a if dtype is None else e.cast(a, np.dtype(dtype))


def _cumsum(a: Any, axis: Any = None, dtype: Any = None, out: Any = None) -> Any:
    a = _as(dtype, a, out)
    return reduce.cumsum(shapes.reshape(a, -1), 0) if axis is None else reduce.cumsum(a, axis)


def _dot(a: Any, b: Any) -> Any:
    if np.ndim(a) == 0 or np.ndim(b) == 0:
        return e.mul(a, b)
    if np.ndim(b) > 2:
        raise ValueError(f"numpy.dot: b must have at most two dimensions, got shape {tuple(b.shape)}; use einsum")
    return matrix.matmul(a, b)


def _split(equal: bool) -> Callable[..., list[Any]]:
    return lambda ary, indices_or_sections, axis=0: list(
        join.split(ary, _sizes(ary, indices_or_sections, axis, equal), axis)
    )


def _sizes(ary: Any, sections: Any, axis: int, equal: bool) -> list[int]:
    """The sizes of the parts into which NumPy's split cuts: some number of them, or before the indices given."""
    length = ary.shape[axis_of("split", ary, axis)]
    if np.ndim(sections):
        cuts = [slice(int(i)).indices(length)[1] for i in sections]
        return [max(0, stop - start) for start, stop in pairwise([0, *cuts, length])]
    if equal and length % sections:
        raise ValueError(f"numpy.split: {sections} parts of {length} along axis {axis} would not be equal")
    return [length // sections + (i < length % sections) for i in range(sections)]


def _take(a: Any, indices: Any, axis: int | None = None) -> Any:
    if axis is None:
        return indexing.index(shapes.reshape(a, -1), indices)
    return indexing.index(a, along(axis_of("take", a, axis), indices))


def _pad(array: Any, pad_width: Any, mode: str = "constant", *, constant_values: float = 0) -> Any:
    ours = {theirs: name for name, theirs in join.MODES.items()}.get(mode, mode)
    widths = np.broadcast_to(pad_width, (array.ndim, 2))[::-1].ravel().tolist()
    return join.pad(array, widths, ours, constant_values)


def _reshape(name: str, a: Any, shape: Any, order: str) -> Any:
    if order != "C":
        raise ValueError(f"numpy.{name}: order must be 'C' for a tensor, got {order!r}; transpose it first")
    return shapes.reshape(a, *(shape if isinstance(shape, tuple | list) else (shape,)))


OF_NUMPY |= {
    # creation, whose gradient is that of nothing
    np.zeros_like: lambda a, dtype=None: zeros_like(a, dtype=dtype),
    np.ones_like: lambda a, dtype=None: ones_like(a, dtype=dtype),
    np.empty_like: lambda prototype, dtype=None: empty_like(prototype, dtype=dtype),
    np.full_like: lambda a, fill_value, dtype=None: full_like(a, fill_value, dtype=dtype),
    # shape
    np.reshape: lambda a, shape, order="C": _reshape("reshape", a, shape, order),
    np.ravel: lambda a, order="C": _reshape("ravel", a, -1, order),
    np.transpose: lambda a, axes=None: shapes.transpose(a) if axes is None else shapes.permute(a, *axes),
    np.matrix_transpose: lambda x: shapes.swapaxes(x, -1, -2),
    np.swapaxes: lambda a, axis1, axis2: shapes.swapaxes(a, axis1, axis2),
    np.moveaxis: lambda a, source, destination: shapes.movedim(a, source, destination),
    np.squeeze: lambda a, axis=None: shapes.squeeze(a, axis),
    np.expand_dims: lambda a, axis: shapes.unsqueeze(a, axis),
    np.atleast_1d: arrange.atleast_1d,
    np.atleast_2d: arrange.atleast_2d,
    np.atleast_3d: arrange.atleast_3d,
    np.broadcast_to: lambda array, shape: shapes.expand_to(array, shape=tuple(np.atleast_1d(shape).tolist())),
    np.flip: lambda m, axis=None: shapes.flip(m, *(range(m.ndim) if axis is None else np.atleast_1d(axis).tolist())),
    np.roll: lambda a, shift, axis=None: shapes.roll(a, shift, axis),
    np.tile: lambda A, reps: arrange.tile(A, *np.atleast_1d(reps).tolist()),
    np.pad: _pad,
    # several into one, one into several
    np.concatenate: lambda arrays, axis=0: join.cat(
        [shapes.reshape(a, -1) for a in arrays] if axis is None else arrays, axis or 0
    ),
    np.stack: lambda arrays, axis=0: join.stack(arrays, axis),
    np.vstack: lambda tup: arrange.vstack(tup),
    np.hstack: lambda tup: arrange.hstack(tup),
    np.dstack: lambda tup: arrange.dstack(tup),
    np.column_stack: lambda tup: arrange.column_stack(tup),
    np.split: _split(equal=True),
    np.array_split: _split(equal=False),
    # choice
    np.where: lambda condition, *branches: (
        choose.where(_condition(condition), *branches) if branches else np.nonzero(condition)
    ),
    np.clip: lambda a, a_min=None, a_max=None, *, min=None, max=None: choose.clamp(
        a, min if a_min is None else a_min, max if a_max is None else a_max
    ),
    np.take: _take,
    np.take_along_axis: lambda arr, indices, axis=-1: indexing.take_along_dim(arr, indices, axis),
    np.diag: lambda v, k=0: indexing.diag(v, k),
    np.tril: lambda m, k=0: choose.tril(m, k),
    np.triu: lambda m, k=0: choose.triu(m, k),
    # element by element
    np.round: lambda a, decimals=0: e.round(a, decimals),
    np.around: lambda a, decimals=0: e.round(a, decimals),
    np.rint: e.round,
    np.fabs: e.abs,
    np.positive: shapes.alias,
    np.conjugate: shapes.alias,
    np.real: shapes.alias,
    # products
    np.matmul: matrix.matmul,
    np.dot: _dot,
    np.outer: matrix.outer,
    np.einsum: lambda *operands, optimize=False: matrix.einsum(*operands),
    np.linalg.matmul: matrix.matmul,
    np.linalg.outer: matrix.outer,
    # over dimensions
    np.sum: _reduction(reduce.sum),
    np.mean: _reduction(reduce.mean),
    np.prod: _reduction(reduce.prod),
    np.var: _variance(reduce.var),
    np.std: _variance(reduce.std),
    np.cumsum: _cumsum,
    np.max: _extreme(choose.amax),
    np.min: _extreme(choose.amin),
    np.argmax: lambda a, axis=None, keepdims=False: choose.argmax(a, axis, keepdims),
    np.argmin: lambda a, axis=None, keepdims=False: choose.argmin(a, axis, keepdims),
    np.all: _extreme(reduce.all),
    np.any: _extreme(reduce.any),
    np.unstack: lambda x, *, axis=0: join.unbind(x, axis),
    np.astype: lambda x, dtype: _as(dtype, x),
}
OF_NUMPY |= {np.amax: OF_NUMPY[np.max], np.amin: OF_NUMPY[np.min]}

setattr(Tensor, "__array_ufunc__", array_ufunc)  # noqa: B010 (mypy)
setattr(Tensor, "__array_function__", array_function)  # noqa: B010
setattr(Size, "__array_function__", shape_function)  # noqa: B010
