"""Which placement the result of an operation has: one rule for each kind of operation.

A rule is asked when an operand has a placement. It answers with that of the result, or brings the operands together
by collectives, applies the operation to these and answers with the result. It decides by what is the same on every
rank, never by this rank's number of rows, so that all ranks come to the same collectives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from math import prod
from typing import Any

import numpy as np

from sorix_dist.core.graph import recording
from sorix_dist.core.placement import REPLICATE, SUM, Partial, Placement, Shard, tagged
from sorix_dist.core.promote import common_dtype
from sorix_dist.core.tensor import Tensor

_NUMBERS = (float, int)
Apply = Callable[..., Tensor]
Rule = Callable[[Apply, tuple[Any, ...], dict[str, Any]], Placement | Tensor]


def collective() -> Any:
    from sorix_dist.core.ops import collective  # it is made of operations, which know the rules

    return collective


def _place(x: Any) -> Any:
    place = x.place if isinstance(x, Tensor) else None
    return None if place is REPLICATE else place


def bare(x: Any) -> Any:
    """An operand without a placement, for operations whose result is given its own."""
    return Tensor.of(x.array, x.origin) if isinstance(x, Tensor) and x.place is not None else x


def whole(x: Any, name: str = "") -> Any:
    """An operand as every rank holds it alike: the sum over all parts, or the rows of all ranks."""
    return collective().replicated(x, name) if isinstance(_place(x), Shard | Partial) else x


def rows_along(name: str, x: Any, axes: tuple[int, ...]) -> Any:
    """An operand of a layer, gathered unless its rows, if it has any, lie along one of `axes` and need no others."""
    place = _place(x)
    fits = not isinstance(place, Shard) or (place.axis in axes and not in_order(place))
    return x if fits else whole(x, name)


def whole_sums(inputs: Sequence[Any], name: str) -> list[Any]:
    """The operands, with the sums over all ranks in the place of Partials."""
    return [whole(x, name) if isinstance(_place(x), Partial) else x for x in inputs]


def _has_partial(inputs: Sequence[Any]) -> bool:
    return any(isinstance(_place(x), Partial) for x in inputs)


def _first_shard(inputs: Sequence[Any]) -> Shard | None:
    return next((p for x in inputs if isinstance(p := _place(x), Shard)), None)


def in_order(place: Shard) -> bool:
    """Whether products of these rows need all of them, since their bits depend on how many there are; where nothing is
    recorded nobody asks for these bits."""
    return place.group.ordered and recording.get()


# -- element by element


def elementwise(apply: Apply, inputs: tuple[Any, ...], options: dict[str, Any]) -> Placement | Tensor:
    """Operations on single elements, with broadcasting: rows stay rows. They are not linear, so sums are made whole."""
    if len(inputs) == 1:
        place = inputs[0].place
        if place.__class__ is Shard:
            return place
    if _has_partial(inputs):
        return apply(*whole_sums(inputs, apply.__name__), **options)
    return _aligned(apply, inputs, options)


def linear(apply: Apply, inputs: tuple[Any, ...], options: dict[str, Any]) -> Placement | Tensor:
    """Linear in one operand, element by element or by a new shape that keeps the rows' axis: rows stay rows, and parts
    of a sum are parts of the result."""
    place = _place(inputs[0])
    if isinstance(place, Shard | Partial) and len(inputs) == 1:
        return place
    return elementwise(apply, inputs, options)


def cast(apply: Apply, inputs: tuple[Any, ...], options: dict[str, Any]) -> Placement | Tensor:
    """Another dtype: linear if it is one of floating point."""
    return (linear if np.dtype(options["dtype"]).kind == "f" else elementwise)(apply, inputs, options)


def additive(apply: Apply, inputs: tuple[Any, ...], options: dict[str, Any]) -> Placement | Tensor:
    """Sums of operands: of parts they are parts, and what every rank holds alike counts once."""
    parts = [p for x in inputs if isinstance(p := _place(x), Partial)]
    if not parts:
        return _aligned(apply, inputs, options)
    if _first_shard(inputs) is not None:
        return apply(*whole_sums(inputs, apply.__name__), **options)
    place = parts[0]
    if len(parts) < len(inputs):
        if any(x.array.dtype.kind != "f" for x in inputs if isinstance(_place(x), Partial)):
            return apply(*whole_sums(inputs, apply.__name__), **options)  # integers do not divide into parts
        kind = common_dtype([x.array if isinstance(x, Tensor) else x for x in inputs])
        return apply(*(collective().as_part(x, place.group, kind) for x in inputs), **options)
    for other in parts[1:]:
        if other.group is not place.group:
            return apply(*whole_sums(inputs, apply.__name__), **options)
        place = place.joined(other)
    return place


def choosing(apply: Apply, inputs: tuple[Any, ...], options: dict[str, Any]) -> Placement | Tensor:
    """Elements of one operand or another, by a condition: linear in both where one is a sum and the other 0."""
    others = [x for x in inputs if not isinstance(_place(x), Partial)]
    if len(others) < len(inputs) and all(isinstance(x, int | float) and x == 0 for x in others):
        places = [x.place for x in inputs if isinstance(x, Tensor)]
        if all(place is places[0] for place in places):
            return places[0]
    return elementwise(apply, inputs, options)


def product(apply: Apply, inputs: tuple[Any, ...], options: dict[str, Any]) -> Placement | Tensor:
    """Products: linear in each operand, so that a sum times what every rank holds alike is a sum."""
    x, y = inputs
    first, second = _place(x), _place(y)
    if first is second and first.__class__ is Shard and x.array.shape == y.array.shape:
        return first
    if isinstance(first, Partial) or isinstance(second, Partial):
        other = second if isinstance(first, Partial) else first
        if isinstance(other, Shard | Partial):
            return apply(*whole_sums(inputs, apply.__name__), **options)
        return first.beside(y) if isinstance(first, Partial) else second.beside(x)
    return _aligned(apply, inputs, options)


def quotient(apply: Apply, inputs: tuple[Any, ...], options: dict[str, Any]) -> Placement | Tensor:
    """Quotients: linear in the dividend."""
    first, second = map(_place, inputs)
    if isinstance(first, Partial) and not isinstance(second, Shard | Partial):
        divisor = inputs[1]
        if first.over == SUM and isinstance(divisor, int | float) and divisor == first.held and not first.group.alone:
            first.group.tell(
                f"a sum over the rows of all ranks is divided by {divisor}, the number of rows of this rank. The mean "
                "over the global batch is .mean(); its number of rows is sx.global_rows(xb)"
            )
        return first.beside(divisor)
    if isinstance(first, Partial) or isinstance(second, Partial):
        return apply(*whole_sums(inputs, apply.__name__), **options)
    return _aligned(apply, inputs, options)


def _shape(x: Any) -> tuple[int, ...]:
    return x.array.shape if isinstance(x, Tensor) else np.shape(x)


def _aligned(apply: Apply, inputs: tuple[Any, ...], options: dict[str, Any]) -> Placement | Tensor:
    """The placement of an element-wise result where one operand at least is rows."""
    if len(inputs) == 2 and inputs[1].__class__ in _NUMBERS:
        return _place(inputs[0])  # type: ignore[no-any-return]
    operands, place = together(apply.__name__, inputs)
    if all(new is old for new, old in zip(operands, inputs, strict=True)):
        return place
    if place is None:
        return apply(*operands, **options)
    return tagged(apply(*map(bare, operands), **options), place)


def single(place: Shard) -> bool:
    """Whether there is one row in the global batch, which broadcasts over others."""
    return (place.batch.known is not None or place.group.alone) and place.total == 1


def together(name: str, inputs: Sequence[Any]) -> tuple[list[Any], Shard | None]:
    """The operands of an element-wise operation as they go together, and where the rows of its result are.

    Axes are counted from the right, as broadcasting does. What every rank holds alike broadcasts, is cut to these
    rows if it has one for each of the global batch, or is taken for this rank's rows if it has as many.
    """
    lead = _first_shard(inputs)
    if lead is None:
        return list(inputs), None
    ndim = max(len(_shape(x)) for x in inputs if x is not None)
    at = next(len(_shape(x)) - lead.axis for x in inputs if _place(x) is lead)
    lengths = {shape[-at] for x in inputs if len(shape := _shape(x)) >= at}
    if single(lead) and not lengths <= {1, lead.held}:
        return [whole(x, name) for x in inputs], None
    changed: list[Any] = []
    for x in inputs:
        place, shape = _place(x), _shape(x)
        if isinstance(place, Shard):
            alike = (place.outer, place.inner, len(shape) - place.axis) == (lead.outer, lead.inner, at)
            if alike and place.group is not lead.group:
                lead, x = _of_two_groups(lead, x)
            elif alike and not lead.batch.like(place.batch):
                raise ValueError(
                    f"{name}: rows of two batches do not go together, {lead.total} rows of which this rank holds "
                    f"{lead.batch.held}, and {place.total} of which it holds {place.batch.held}"
                )
            elif not alike:
                x = whole(x, name)
                shape = _shape(x)
                x = rows_beside(x, lead, at) if len(shape) >= at and shape[-at] != 1 else x
        elif len(shape) >= at and shape[-at] != 1:
            x = rows_beside(x, lead, at)
        if lead.group.ordered and isinstance(x, Tensor) and x.origin is not None and not isinstance(x.place, Shard):
            x = collective().spread(x, lead, at, ndim)
        changed.append(x)
    return changed, lead.moved(ndim - at)


def _of_two_groups(lead: Shard, x: Tensor) -> tuple[Shard, Tensor]:
    """Rows that a loader shared out between all ranks beside those of a model of some ranks: a constant follows."""
    place = x.place
    assert isinstance(place, Shard)
    if lead.batch.held != place.batch.held or lead.group.ordered != place.group.ordered:
        raise RuntimeError(
            f"rows of {lead.rows.total} and of {place.rows.total} that are shared out between different ranks don't go "
            "together"
        )
    return (lead, x) if x.origin is None else (place, x)


def rows_beside(x: Any, lead: Shard, at: int) -> Any:
    """This rank's rows, beside those of `lead`, of what every rank holds alike, along the axis `at` from the right."""
    shape = _shape(x)
    length = shape[-at]
    known = lead.batch.known is not None
    of_all = known and length == lead.total
    if length == lead.held and (not of_all or (lead.group.alone and not lead.group.ordered)):
        return x
    if length == lead.total:
        return collective().rows_of(x, lead.moved(len(shape) - at))
    raise ValueError(
        f"operands do not go together: axis {len(shape) - at} of shape {tuple(shape)} meets the {lead.total} rows of a "
        f"batch, of which this rank holds {lead.held}"
    )


def beside(x: Any, lead: Shard, at: int) -> Any:
    """An operand beside rows along the axis `at` from the right: this rank's rows of what every rank holds alike, if it
    has that axis."""
    shape = _shape(x)
    alike = not isinstance(_place(x), Shard) and len(shape) >= at and shape[-at] != 1
    return rows_beside(x, lead, at) if alike else x


def align(x: Any, like: Any, name: str) -> Any:
    """An operand beside rows of a batch, such as targets beside predictions, along their first axes: this rank's rows
    of what has one for each row of the batch; the rows of all ranks beside what every rank holds alike."""
    if _has_partial((x,)):
        x = whole(x, name)
    place, lead, shape = _place(x), _place(like), _shape(x)
    if isinstance(lead, Shard) and place is None and lead.axis < len(shape):
        several = lead.group.ordered or not lead.group.alone
        if several and lead.batch.known is not None and shape[lead.axis] == lead.total:
            return collective().rows_of(x, lead)
    elif isinstance(place, Shard) and lead is None and (place.group.ordered or not place.group.alone):
        others = _shape(like)
        if place.axis < len(others) and others[place.axis] == place.total:
            return whole(x, name)
    return x


# -- along axes


def _axes(axis: Any, ndim: int) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(ndim))
    return tuple(a % ndim for a in (axis if isinstance(axis, tuple | list) else (axis,)))


def _without(shard: Shard, axes: tuple[int, ...], keepdims: Any) -> Shard:
    """The placement when the axes, which are not the rows', have gone."""
    return shard if keepdims else shard.moved(shard.axis - sum(a < shard.axis for a in axes))


def sums(apply: Apply, inputs: tuple[Any, ...], options: dict[str, Any]) -> Placement | Tensor:
    """A sum along axes: over rows it is a Partial."""
    x, place = inputs[0], inputs[0].place
    if not isinstance(place, Shard):
        return place if isinstance(place, Partial) else None
    axes = _axes(options["axis"], x.array.ndim)
    if place.axis not in axes:
        return _without(place, axes, options["keepdims"])
    if place.group.ordered:
        return _summed_in_order(x, axes, options["keepdims"], None)
    return place.batch.partial(SUM)


def means(apply: Apply, inputs: tuple[Any, ...], options: dict[str, Any]) -> Placement | Tensor:
    """A mean along axes: over rows it is a sum divided by the global number of elements."""
    x, place = inputs[0], inputs[0].place
    if not isinstance(place, Shard):
        return place if isinstance(place, Partial) else None
    axes = _axes(options["axis"], x.array.ndim)
    if place.axis not in axes:
        return _without(place, axes, options["keepdims"])
    held, total = counts(x, axes)
    if place.group.ordered:
        return _summed_in_order(x, axes, options["keepdims"], total)
    if options.get("count") is None:
        return apply(x, **{**options, "count": total})
    return place.batch.partial(place.rows.total, options["count"] / held if held else 0.0)


def divided(apply: Apply, inputs: tuple[Any, ...], options: dict[str, Any]) -> Placement | Tensor:
    """A sum of all elements, divided by a `divisor` over the whole batch, of which this rank has `held`."""
    x, place = inputs[0], inputs[0].place
    if place.__class__ is not Shard:
        return place if isinstance(place, Partial) else None
    divisor, held, over = options["divisor"], options["held"], options.get("over")
    if over is None:
        over = (place.batch.known or place.rows).total
    if place.group.ordered:
        return tagged(_summed_in_order(x, _axes(None, x.array.ndim), False, divisor), place.batch.partial(over))
    return place.batch.partial(over, divisor / held if held else 0.0)


def _summed_in_order(x: Tensor, axes: tuple[int, ...], keepdims: Any, divisor: float | None) -> Tensor:
    place = x.place
    assert isinstance(place, Shard)
    shape = x.array.shape
    kept = tuple(1 if i in axes else n for i, n in enumerate(shape))
    total = collective().add_up(x, kept, divisor)
    if not keepdims:
        from sorix_dist.core.ops.shape import reshape_to

        total = reshape_to(total, shape=tuple(n for i, n in enumerate(shape) if i not in axes))
    return tagged(total, place.batch.partial(SUM if divisor is None else place.rows.total))


def counts(x: Any, axes: tuple[int, ...] | None = None) -> tuple[int, int]:
    """How many elements along the axes (None: all) this rank has, and how many all have together."""
    shape, place = _shape(x), _place(x)
    axes = tuple(range(len(shape))) if axes is None else axes
    held = total = 1
    for axis in axes:
        held *= shape[axis]
        total *= place.total if isinstance(place, Shard) and place.axis == axis else shape[axis]
    return held, total


def along(reduces: bool | None) -> Rule:
    """Along `axis`, whose elements depend on each other: rows are gathered if it is theirs.

    reduces: whether the axis goes; None: where `keepdims` is not set.
    """

    def rule(apply: Apply, inputs: tuple[Any, ...], options: dict[str, Any]) -> Placement | Tensor:
        x, place = inputs[0], inputs[0].place
        if not isinstance(place, Shard):
            return apply(*(whole(x, apply.__name__) for x in inputs), **options)
        axes = _axes(options["axis"], x.array.ndim)
        if place.axis in axes:
            return apply(*(whole(x, apply.__name__) for x in inputs), **options)
        kept = options["keepdims"] if reduces is None else not reduces
        return _without(place, axes, kept)

    return rule


def mixes_rows(apply: Apply, inputs: tuple[Any, ...], options: dict[str, Any]) -> Placement | Tensor:
    """Turned around or moved along `axis`: rows keep their places, which mean something else on every split."""
    place = inputs[0].place
    if isinstance(place, Shard) and place.axis in _axes(options["axis"], inputs[0].array.ndim):
        return apply(refused(inputs[0], apply.__name__), **options)
    return place if isinstance(place, Shard | Partial) else None


def refused(x: Tensor, what: str) -> Tensor:
    """RuntimeError: rows are named by their places, which are other rows on every number of ranks. In one process
    there is nothing to refuse, and the rows are all rows."""
    place = x.place
    assert isinstance(place, Shard)
    if not place.group.alone:
        raise RuntimeError(
            f"{what}: along axis {place.axis} lie the rows of this rank only, {place.held} of {place.total} in the "
            "global batch, so that places in it mean other rows on every number of ranks. sx.all_gather(x) gives the "
            "rows of every rank, sx.global_value(x) all of them in one tensor; row masks, `:` and `...` are allowed"
        )
    gathered: Tensor = whole(x)
    return gathered


# -- other shapes


def reordered(apply: Apply, inputs: tuple[Any, ...], options: dict[str, Any]) -> Placement | Tensor:
    """The dimensions in the order `axes`: the rows' moves with them."""
    place = inputs[0].place
    return place.moved(options["axes"].index(place.axis)) if isinstance(place, Shard) else _linear_place(place)


def _linear_place(place: Any) -> Placement:
    return place if isinstance(place, Partial) else None


def reshaped(apply: Apply, inputs: tuple[Any, ...], options: dict[str, Any]) -> Placement | Tensor:
    """Another shape: rows stay rows if their axis does, or is merged with others or taken apart again."""
    x, place = inputs[0], inputs[0].place
    if not isinstance(place, Shard):
        return _linear_place(place)
    found = reshaped_rows(place, x.array.shape, options["shape"])
    return apply(mixed(x, options["shape"]), **options) if found is None else found


def mixed(x: Tensor, shape: Sequence[int]) -> Tensor:
    """RuntimeError: a reshape mixes rows. In one process there is nothing to refuse, and the rows are all rows."""
    place = x.place
    assert isinstance(place, Shard)
    if not place.group.alone:
        raise RuntimeError(
            f"reshape: {tuple(x.array.shape)}, {place.batch.held} of {place.rows.total} rows along axis {place.axis}, "
            f"does not become {tuple(shape)} row by row. Say -1 for the axis of the batch, or take "
            "sx.global_value(x), which has the rows of all ranks"
        )
    return bare(x)  # type: ignore[no-any-return]


def reshaped_rows(
    place: Shard, before: tuple[int, ...], after: Sequence[int], unknown: int | None = None
) -> Shard | None:
    """Where the rows are after a reshape; None if they are mixed, or if that can't be told.

    unknown: the axis of -1, whose length in `after` does not matter. A rank with a single row can't tell it from other
    dimensions of 1 and has to guess; where that would be wrong, the others, which know better, answer None.
    """
    front = prod(before[: place.axis]) * place.outer
    behind = prod(before[place.axis + 1 :]) * place.inner
    found = _axis_of_rows(front, behind, place.batch.held, after, unknown)
    if found is None:
        return None
    axis, outer, inner = found
    if place.batch.held != 1 and not place.group.alone:
        of_one = (*after[:axis], outer * inner, *after[axis + 1 :])
        if _axis_of_rows(front, behind, 1, of_one, unknown) != found:
            return None
    return place.batch.at(axis, outer, inner)


def _axis_of_rows(
    front: int, behind: int, rows: int, after: Sequence[int], unknown: int | None
) -> tuple[int, int, int] | None:
    """(axis, outer, inner) of rows after a reshape that have `front` elements in front of them and `behind` behind.

    They are whole in an axis with A elements in front and B behind if A divides `front` and B `behind`, and it has what
    is left: that of -1, or one that is as long. Where several would do, it is the one that merges the rows with the
    fewest others.
    """
    found = []
    for axis, length in enumerate(after):
        left, right = prod(after[:axis]), prod(after[axis + 1 :])
        if left and right and not front % left and not behind % right:
            outer, inner = front // left, behind // right
            by_length = length == outer * rows * inner and (unknown is None or outer == inner == 1)
            if axis == unknown or by_length:
                found.append((inner, axis != unknown, outer, axis))
    if not found:
        return None
    inner, _, outer, axis = min(found)
    return axis, outer, inner


def expanded(apply: Apply, inputs: tuple[Any, ...], options: dict[str, Any]) -> Placement | Tensor:
    """Repeated to a larger shape: the rows' axis moves if dimensions come in front."""
    x, place = inputs[0], inputs[0].place
    if not isinstance(place, Shard):
        return _linear_place(place)
    axis = place.axis + len(options["shape"]) - x.array.ndim
    if options["shape"][axis] != x.array.shape[place.axis]:
        return apply(refused(x, "expand"), **options)
    return place.moved(axis)


def padded(apply: Apply, inputs: tuple[Any, ...], options: dict[str, Any]) -> Placement | Tensor:
    """Borders: rows have none."""
    x, place = inputs[0], inputs[0].place
    if isinstance(place, Shard) and tuple(options["widths"][place.axis]) == (0, 0):
        return place
    return apply(whole(x, apply.__name__), **options)


def concatenated(apply: Apply, inputs: tuple[Any, ...], options: dict[str, Any]) -> Placement | Tensor:
    """One after the other along `axis`: rows beside rows are rows, and so are all rows behind all rows."""
    axis, new = options["axis"], apply.__name__ == "stack_along"
    lead = _first_shard(inputs)
    if lead is None:
        first, *others = places = [_place(x) for x in inputs]
        if all(isinstance(p, Partial) and p.shown_like(first) for p in places):
            return reduce(Partial.joined, others, first)  # type: ignore[no-any-return]
        return apply(*whole_sums(inputs, apply.__name__), **options)
    shards = [p for x in inputs if isinstance(p := _place(x), Shard)]
    together = all(p.axis == lead.axis and p.inner == lead.inner and lead.batch.like(p.batch) for p in shards)
    if not new and axis == lead.axis:
        if together and len(shards) == len(inputs):
            return lead.batch.at(axis, sum(p.outer for p in shards), lead.inner)
        others = [x for x in inputs if not isinstance(_place(x), Shard)]
        # Constants that have as many rows as the batch, on every rank, are taken for rows.
        rows = [not _is_known_alike(x) and _shape(x)[axis] == lead.batch.held * lead.inner for x in others]
        if together and not lead.group.apart and not lead.group.counts(not all(rows))[1]:
            result = lead.batch.at(axis, sum(p.outer for p in shards) + len(others), lead.inner)
            return tagged(apply(*map(bare, inputs), **options), result)
        return apply(*(whole(x, "cat") for x in inputs), **options)
    if not together or any(p.outer != lead.outer for p in shards):
        return apply(*(whole(x, apply.__name__) for x in inputs), **options)
    parts: list[Any] = whole_sums(inputs, apply.__name__)
    for i, x in enumerate(parts):
        if not isinstance(_place(x), Shard):
            parts[i] = rows_beside(x, lead, len(_shape(x)) - lead.axis)
    result = lead.moved(lead.axis + (new and axis <= lead.axis))
    if all(a is b for a, b in zip(parts, inputs, strict=True)):
        return result
    return tagged(apply(*map(bare, parts), **options), result)


def _is_known_alike(x: Any) -> bool:
    """Whether an operand that is no rows is known to be the same on every rank."""
    return isinstance(x, Tensor) and (x.place is not None or x.origin is not None)


def indexed(apply: Apply, inputs: tuple[Any, ...], options: dict[str, Any]) -> Placement | Tensor:
    """NumPy's indexing: along the rows' axis only what takes each row for itself, which is `:`, None and masks."""
    from sorix_dist.core.ops.shape import rows_in_index

    x, place = inputs[0], inputs[0].place
    if not isinstance(place, Shard):
        return _linear_place(place)
    found = rows_in_index(place, x.array.shape, options["index"])
    return apply(refused(x, "an index"), **options) if found is None else found


def scattered(apply: Apply, inputs: tuple[Any, ...], options: dict[str, Any]) -> Placement | Tensor:
    """Elements added up at an index: where rows go is not known, so they are gathered."""
    place = inputs[0].place
    return apply(whole(inputs[0], "scatter_add"), **options) if isinstance(place, Shard) else _linear_place(place)


# -- products and layers


def contracts(apply: Apply, inputs: tuple[Any, ...], options: dict[str, Any]) -> Placement | Tensor:
    """The product of stacks of matrices: contracted over rows it is a Partial."""
    x, y = inputs
    a, b = _place(x), _place(y)
    name = apply.__name__
    if isinstance(a, Partial) or isinstance(b, Partial):
        if not isinstance(b if isinstance(a, Partial) else a, Shard | Partial):
            return a.beside(y) if isinstance(a, Partial) else b.beside(x)
        return apply(*whole_sums(inputs, name), **options)
    lead = a if isinstance(a, Shard) else b
    if not isinstance(lead, Shard):
        return None
    if in_order(lead):
        return apply(whole(x, name), whole(y, name), **options)
    dims_x, dims_y = len(_shape(x)), len(_shape(y))
    dims = max(dims_x, dims_y)
    last = isinstance(a, Shard) and a.axis == dims_x - 1
    if last and not isinstance(b, Shard):
        y = rows_beside(y, a, 2)
        return tagged(apply(bare(x), bare(y), **options), a.batch.partial(SUM))
    if isinstance(b, Shard) and b.axis == dims_y - 2:  # the rows of y are contracted
        if last and a.like(b):
            return a.batch.partial(SUM)  # type: ignore[no-any-return]
        if not isinstance(a, Shard):
            x = rows_beside(x, b, 1)
            return tagged(apply(bare(x), bare(y), **options), b.batch.partial(SUM))
        return apply(x, whole(y, name), **options)
    if last:
        return apply(whole(x, name), y, **options)
    both = isinstance(a, Shard) and isinstance(b, Shard)
    if both and not (a.axis - dims_x == b.axis - dims_y < -2 and a.like(b)):
        return apply(x, whole(y, name), **options)
    axis = lead.axis + dims - (dims_x if lead is a else dims_y)
    if axis < dims - 2:  # along a leading dimension, which broadcasts as in element-wise operations
        other, shape = (y, _shape(y)) if lead is a else (x, _shape(x))
        at = dims - axis
        if not isinstance(_place(other), Shard) and len(shape) >= at and shape[-at] != 1:
            if single(lead):
                return apply(whole(x, name), whole(y, name), **options)
            cut = rows_beside(other, lead, at)
            pair = (bare(x), bare(cut)) if lead is a else (bare(cut), bare(y))
            return tagged(apply(*pair, **options), lead.moved(axis))
    return lead.moved(axis)


def rows_at(axis: int, states: Sequence[int] = (), at: int = 0) -> Rule:
    """A layer: rows along `axis` of the first operand stay there, those of the operands numbered `states` lie along
    their axis `at` from the right, if they have so many, and the others are weights. Anything else is gathered."""

    def rule(apply: Apply, inputs: tuple[Any, ...], options: dict[str, Any]) -> Placement | Tensor:
        place = _place(inputs[0])
        fits = isinstance(place, Shard) and place.axis == axis and not in_order(place)
        others = whole_sums(inputs[1:], apply.__name__)
        for i, other in enumerate(others, 1):
            held, shape = _place(other), _shape(other)
            if isinstance(held, Shard):
                fits = fits and i in states and len(shape) - held.axis == at and place.like(held)
            elif fits and i in states:
                others[i - 1] = beside(other, place, at)
        if not fits:
            return apply(*(whole(each, apply.__name__) for each in inputs), **options)
        if all(new is old for new, old in zip(others, inputs[1:], strict=True)):
            return place  # type: ignore[no-any-return]
        return tagged(apply(*map(bare, (inputs[0], *others)), **options), place)

    return rule


def affine(apply: Apply, inputs: tuple[Any, ...], options: dict[str, Any]) -> Placement | Tensor:
    """x @ w + b: rows of x stay rows."""
    x, w, b = inputs
    place = getattr(x, "place", None)
    if place.__class__ is Shard and place.axis < x.array.ndim - 1 and not (place.group.ordered and recording.get()):
        if getattr(w, "place", None) is getattr(b, "place", None) is None:
            return place
        if not (isinstance(_place(w), Shard) or isinstance(_place(b), Shard)):
            return apply(x, whole(w, "linear"), whole(b, "linear"), **options)
    return apply(*(whole(each, "linear") for each in inputs), **options)


def of_each_row(apply: Apply, inputs: tuple[Any, ...], options: dict[str, Any]) -> Placement | Tensor:
    """Scores (N, classes), and what there is beside each of them, into one number for each row."""
    place = _place(inputs[0])
    if len(inputs) == 1 and isinstance(place, Shard) and place.axis == 0:
        return place
    operands, place = together(apply.__name__, whole_sums(inputs, apply.__name__))
    if place is None or place.axis != 0:
        return apply(*(whole(each, apply.__name__) for each in operands), **options)
    if all(new is old for new, old in zip(operands, inputs, strict=True)):
        return place
    return tagged(apply(*map(bare, operands), **options), place)


def trailing(apply: Apply, inputs: tuple[Any, ...], options: dict[str, Any]) -> Placement | Tensor:
    """A layer over the last `dims` dimensions of its first operand, each row for itself."""
    x, place = inputs[0], _place(inputs[0])
    weights = all(_place(other) is None for other in inputs[1:])
    if weights and isinstance(place, Shard) and place.axis < x.array.ndim - options["dims"] and not in_order(place):
        return place
    return apply(*(whole(each, apply.__name__) for each in inputs), **options)


def attends(apply: Apply, inputs: tuple[Any, ...], options: dict[str, Any]) -> Placement | Tensor:
    """Attention: rows along a leading dimension of queries, keys, values and masks; or queries that are rows, with keys
    and values that every rank holds alike."""
    operands = beside_queries(apply.__name__, inputs)
    lead = _place(operands[0])
    if lead is None:
        return apply(*operands, **options)
    place = lead.moved(max(len(_shape(x)) for x in operands) - len(_shape(operands[0])) + lead.axis)
    if all(new is old for new, old in zip(operands, inputs, strict=True)):
        return place  # type: ignore[no-any-return]
    return tagged(apply(*map(bare, operands), **options), place)


def beside_queries(name: str, inputs: Sequence[Any]) -> list[Any]:
    """Queries, keys, values and masks as they go together: with the rows of a batch where queries have them."""
    queries, *others = whole_sums(inputs, name)
    lead = _place(queries)
    if lead is None or lead.axis == len(_shape(queries)) - 1 or in_order(lead) or single(lead):
        return [whole(x, name) for x in (queries, *others)]
    at = len(_shape(queries)) - lead.axis
    for i, x in enumerate(others):
        place, has_rows = _place(x), at > 2 or i > 1  # the second last dimension of keys and values is none of queries
        if place is not None and not (has_rows and len(_shape(x)) - place.axis == at and lead.like(place)):
            x = whole(x, name)
        others[i] = beside(x, lead, at) if has_rows else x
    return [queries, *others]


def gathers(apply: Apply, inputs: tuple[Any, ...], options: dict[str, Any]) -> Placement | Tensor:
    """Operations of which nothing is known: they get the rows of all ranks."""
    return apply(*(whole(x, apply.__name__) for x in inputs), **options)


def given(apply: Apply, inputs: tuple[Any, ...], options: dict[str, Any]) -> Placement | Tensor:
    """Operations whose result somebody else gives its placement."""
    return None
