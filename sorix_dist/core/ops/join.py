"""Several tensors into one, one into several, and borders."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any
from zlib import crc32

import numpy as np

from sorix_dist.core import rules
from sorix_dist.core.arguments import as_list
from sorix_dist.core.batch_numbers import is_of_batch, of_all
from sorix_dist.core.capture import of_shapes
from sorix_dist.core.graph import recording
from sorix_dist.core.op import as_operand, op
from sorix_dist.core.ops.axes import along, axis_of, parts_along, refused
from sorix_dist.core.ops.indexing import index_select, take
from sorix_dist.core.ops.shape import extents
from sorix_dist.core.placement import Partial, Shard, shard_of, tagged
from sorix_dist.core.rules import Answer, Apply, Inputs, Options, align, applied, bare, gathers, placement_of, whole
from sorix_dist.core.tensor import Tensor, array_of, shape_of


def pad_rule(apply: Apply, inputs: Inputs, options: Options) -> Answer:
    """Borders: rows have none."""
    x, place = inputs[0], inputs[0].place
    if isinstance(place, Shard) and tuple(options["widths"][place.axis]) == (0, 0):
        return place
    return apply(whole(x, apply.__name__), **options)


def concat_rule(apply: Apply, inputs: Inputs, options: Options) -> Answer:
    """Along another axis than that of the rows, rows stay rows; along it, all rows follow all rows (`Shard.outer`)."""
    axis, new = options["axis"], apply.__name__ == "stack"
    lead = rules.first_shard(inputs)
    if lead is None:
        first, *others = places = [placement_of(x) for x in inputs]
        if all(isinstance(p, Partial) and p.shown_like(first) for p in places):
            return reduce(Partial.joined, others, first)  # type: ignore[no-any-return]
        return rules.sums_made_whole(apply, inputs, options)
    shards = [p for x in inputs if isinstance(p := placement_of(x), Shard)]
    alike = all(p.axis == lead.axis and p.inner == lead.inner and lead.batch.like(p.batch) for p in shards)
    if any(p.batch.parent is not None and p.batch is not lead.batch for p in shards):
        alike = rules.on_every_rank(lead, alike)  # of what two masks select, some ranks may have as much of both
    if not new and axis == lead.axis:
        if alike and len(shards) == len(inputs):
            return lead.batch.at(axis, sum(p.outer for p in shards), lead.inner)
        others = [x for x in inputs if not isinstance(placement_of(x), Shard)]
        # Constants with this rank's number of rows count as rows, unless that happens to be their length.
        rows = [not _is_known_alike(x) and shape_of(x)[axis] == lead.batch.held * lead.inner for x in others]
        if (
            alike
            and not lead.group.isolated
            and not lead.group.counts(not all(rows))[1]
            and _made_by_rank(lead, others)
        ):
            result = lead.batch.at(axis, sum(p.outer for p in shards) + len(others), lead.inner)
            return tagged(apply(*map(bare, inputs), **options), result)
        return gathers(apply, inputs, options)
    if not alike or any(p.outer != lead.outer for p in shards):
        return gathers(apply, inputs, options)
    parts: list[Any] = rules.whole_sums(inputs, apply.__name__)
    for i, x in enumerate(parts):
        if not isinstance(placement_of(x), Shard):
            parts[i] = rules.rows_beside(x, lead, len(shape_of(x)) - lead.axis)
    return applied(apply, parts, inputs, options, lead.moved(lead.axis + (new and axis <= lead.axis)))


def _made_by_rank(rows: Shard, others: list[Any]) -> bool:
    """Whether constants as long as this rank's rows were made for them: the ranks have others, or the program has asked
    for that length. RuntimeError if it has, but they look like any constant. A call of all ranks."""
    digest = crc32(b"".join(np.asarray(array_of(x)).tobytes() for x in others))
    differ = rows.group.counts(digest)[1] != digest * rows.group.size
    if not rules.on_every_rank(rows, not differ) or rows.group.has_all:
        return True
    if rows.group.measured is not None and any(len(np.unique(array_of(x))) > 1 for x in others):
        raise RuntimeError(
            f"cat: a tensor beside rows of a batch is as long as the {rows.held} rows of this rank and the same on "
            "every rank: wrap it in sx.replicated() if it is a constant, or make it with x.shape[0] if it is for rows"
        )
    return rows.group.measured is not None


def _is_known_alike(x: Any) -> bool:
    """Whether an operand without rows is known to be the same on every rank."""
    return isinstance(x, Tensor) and (x.place is not None or x.origin is not None)


@op(promote="common", rule=concat_rule, called="cat")
def concatenate(*parts: Any, axis: int) -> Any:
    """The parts one after the other along `axis`."""
    places = parts_along(axis, (part.shape[axis] for part in parts))
    return np.concatenate(parts, axis), tuple(_slicing(place) for place in places)


@op(promote="common", rule=concat_rule, called="stack")
def stack_along(*parts: Any, axis: int) -> Any:
    """The parts side by side along a new axis."""
    return np.stack(parts, axis), tuple(_slicing(along(axis, i)) for i in range(len(parts)))


def _slicing(key: Any) -> Any:
    return lambda g, out: g[key]


@op(rule=pad_rule, called="pad")
def pad_with(x: Any, *, widths: Any, value: float) -> Any:
    """A border of `value`: widths has a pair (before, after) per dimension."""
    inside = tuple(slice(a, a + n) for (a, _), n in zip(widths, x.shape, strict=True))
    return np.pad(x, widths, constant_values=value) if widths else np.array(x), (lambda g, out: g[inside],)


def cat(tensors: Sequence[Any], dim: int = 0, *, out: Tensor | None = None, axis: int | None = None) -> Any:
    """The tensors one after the other along `dim`; they agree in the other dimensions."""
    parts = _several("cat", tensors)
    if any(len(shape_of(part)) > 1 for part in parts):  # as in PyTorch, where sums of parts begin with nothing
        parts = [part for part in parts if shape_of(part) != (0,) or shard_of(part) is not None]
    at = axis_of("cat", parts[0], dim if axis is None else axis)
    parts = _beside_rows("cat", parts, at)
    shapes = _global_shapes(parts, at)
    rests = {(*s[:at], *s[at + 1 :]) for s in shapes}
    if () in shapes or len(rests) > 1 or len({len(s) for s in shapes}) > 1:
        raise ValueError(f"cat: tensors must have at least one dimension and agree in all but dim {at}, got {shapes}")
    return _into("cat", concatenate(*parts, axis=at), out)


def stack(tensors: Sequence[Any], dim: int = 0, *, out: Tensor | None = None, axis: int | None = None) -> Any:
    """The tensors, all of one shape, side by side along a new dimension `dim`."""
    parts = _beside_rows("stack", _several("stack", tensors))
    shapes = _global_shapes(parts)
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"stack: tensors must all have the same shape, got {shapes}")
    at = axis_of("stack", parts[0], dim if axis is None else axis, more=1)
    return _into("stack", stack_along(*parts, axis=at), out)


def split(tensor: Any, split_size_or_sections: Any, dim: int = 0, *, axis: int | None = None) -> tuple[Any, ...]:
    """Parts along `dim`: all of one size (the last may be smaller), or of the sizes in a list."""
    at = axis_of("split", tensor, dim if axis is None else axis)
    length, place = (shape_of(tensor) or (0,))[at], shard_of(tensor)
    if place is None or place.axis != at:
        split_size_or_sections = of_all(split_size_or_sections)
    elif place.outer == 1:
        tensor = refused(tensor, "split")
    if isinstance(split_size_or_sections, tuple | list):
        sizes = [n if is_of_batch(n) else int(n) for n in split_size_or_sections]
        if any(n < 0 for n in sizes) or sum(sizes) != length:
            raise ValueError(f"split: sections must add up to the size {length} of dim {at}, got {sizes}")
    else:
        size = split_size_or_sections
        if place is not None and place.axis == at and place.outer > 1 and place.held == size * place.outer:
            return chunk(tensor, place.outer, at)  # all rows, then all rows again
        size = int(size)
        if size < 1:
            raise ValueError(f"split: split_size must be at least 1, got {size}")
        sizes = [min(size, length - start) for start in range(0, length, size)] or [0]
    return tuple(take(tensor, index=key) for key in parts_along(at, sizes))


def chunk(input: Any, chunks: int, dim: int = 0, *, axis: int | None = None) -> tuple[Any, ...]:
    """At most `chunks` parts of one size along `dim`; the last may be smaller."""
    if chunks < 1:
        raise ValueError(f"chunk: chunks must be at least 1, got {chunks}")
    at = axis_of("chunk", input, dim if axis is None else axis)
    place = shard_of(input)
    if place is not None and place.axis == at and place.outer % chunks == 0:
        one = place.batch.at(at, place.outer // chunks, place.inner)
        return tuple(tagged(take(bare(input), index=key), one) for key in parts_along(at, [one.held] * chunks))
    length = (shape_of(input) or (0,))[at]
    return split(input, max(1, -(-length // chunks)), at) if length else split(input, [0] * chunks, at)


def unbind(input: Any, dim: int = 0, *, axis: int | None = None) -> tuple[Any, ...]:
    """The slices along `dim`, without that dimension."""
    if not shape_of(input):
        raise TypeError("unbind: input must have at least one dimension, got a 0-d tensor")
    at, place = axis_of("unbind", input, dim if axis is None else axis), shard_of(input)
    if place is not None and place.axis == at:
        input = refused(input, "unbind")
    return tuple(take(input, index=along(at, i)) for i in range(shape_of(input)[at]))


MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}  # what a border repeats, in NumPy's words


def pad(input: Any, pad: Sequence[int], mode: str = "constant", value: float = 0.0) -> Any:
    """A border: `pad` lists pairs (before, after), the last dimension first; negative numbers crop.

    mode: "constant" (of `value`), "reflect" (without the edge), "replicate" (the edge) or "circular".
    """
    given, shape = as_list("pad: pad", pad, "integers"), shape_of(input)
    if any(isinstance(n, float) for n in given):
        raise ValueError(f"pad: pad must hold integers, got {given}")
    widths = [int(n) for n in given]
    if len(widths) % 2 or len(widths) > 2 * len(shape):
        raise ValueError(f"pad: pad must hold at most {len(shape)} pairs for shape {shape}, got {widths}")
    if mode != "constant" and mode not in MODES:
        raise ValueError(f"pad: mode must be 'constant' or one of {sorted(MODES)}, got {mode!r}")
    pairs = [(0, 0)] * (len(shape) - len(widths) // 2)
    pairs += [(widths[i], widths[i + 1]) for i in range(len(widths) - 2, -1, -2)]
    place = shard_of(input)
    if place is not None and pairs[place.axis] != (0, 0):
        input = whole(input, "pad")
        shape = shape_of(input)
    if any(min(a, b) < 0 for a, b in pairs):
        if any(n + min(a, 0) + min(b, 0) < 0 for (a, b), n in zip(pairs, shape, strict=True)):
            raise ValueError(f"pad: pad must not cut off more than there is of shape {shape}, got {widths}")
        inside = tuple(
            slice(-a if a < 0 else None, n + b if b < 0 else None) for (a, b), n in zip(pairs, shape, strict=True)
        )
        input, pairs = take(input, index=inside), [(max(a, 0), max(b, 0)) for a, b in pairs]
    if mode == "constant":
        return pad_with(input, widths=tuple(pairs), value=value)
    for axis, (a, b) in enumerate(pairs):
        if a or b:
            length = shape_of(input)[axis]
            limit = {"reflect": length - 1, "circular": length}.get(mode)
            if not length or (limit is not None and max(a, b) > limit):
                raise ValueError(
                    f"pad: {mode} can add at most {limit or 0} to a dimension of {length}, got {max(a, b)}"
                )
            places = np.pad(np.arange(length), (a, b), mode=MODES[mode])  # type: ignore[call-overload]
            input = index_select(input, axis, of_shapes(places))
    return input


def _several(name: str, tensors: Any) -> list[Any]:
    """The tensors as a list, checked; arrays and numbers among them are taken as tensors."""
    if not isinstance(tensors, list | tuple):
        raise TypeError(f"{name}: the type of tensors must be tuple or list, got {type(tensors).__name__}")
    if not tensors:
        raise ValueError(f"{name}: tensors must hold at least one tensor, got none")
    return [x if isinstance(x, Tensor | np.ndarray) else Tensor(as_operand(x)) for x in tensors]


def _beside_rows(name: str, parts: list[Any], axis: int | None = None) -> list[Any]:
    """The parts, with this rank's rows of Replicates, if there are rows along another axis than
    the one to join along."""
    rows = next((part for part in parts if shard_of(part) is not None), None)
    if rows is None or rows.place.axis == axis:
        return parts
    return [align(part, rows, name) for part in parts]


def _global_shapes(parts: list[Any], axis: int | None = None) -> list[tuple[int, ...]]:
    """The shapes of the parts in the global batch. A Replicate with an entry for each row of this rank, such as an
    expanded token, counts as rows, unless it is joined along that axis."""
    shapes = [extents(part) for part in parts]
    rows = next((place for part in parts if (place := shard_of(part)) is not None), None)
    if rows is None or rows.axis == axis:
        return shapes
    at = rows.axis
    beside = [shard_of(x) is None and s[at : at + 1] == (rows.held,) for x, s in zip(parts, shapes, strict=True)]
    if any(beside) and rows.group.ordered and not rows.group.isolated and rows.held != rows.total:
        raise RuntimeError(
            f"reproducible mode: cat or stack of rows of a batch beside a tensor that has the {rows.held} rows of this "
            "rank but is none of them, such as one that was expanded: do it in the forward of the model"
        )
    return [(*s[:at], rows.total, *s[at + 1 :]) if b else s for b, s in zip(beside, shapes, strict=True)]


def _into(name: str, result: Any, out: Tensor | None) -> Any:
    """The result, written into `out` if that is given."""
    if out is None:
        return result
    if recording.get() and (result.requires_grad or out.requires_grad):
        raise RuntimeError(f"{name}: out must not be given where a gradient is recorded; use the result, or no_grad()")
    if out.shape != result.shape:
        raise ValueError(f"{name}: out must have shape {tuple(result.shape)}, got {tuple(out.shape)}")
    np.copyto(out.array, result.array, casting="same_kind")
    return out
