"""Which placement the result of an operation has: rules for element-wise operations and layers.

A rule is called when an operand has a placement. It returns the placement of the result, or it converts the operands
by collectives, applies the operation to them and returns the result. It must not depend on this rank's number of rows,
so that all ranks run the same collectives. A rule for one family of operations stands beside it in `core.ops`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sorix_dist.core.capture import outside
from sorix_dist.core.deferred import deferred, waits
from sorix_dist.core.dtype import common_dtype
from sorix_dist.core.expected import beside_rows, beside_sum
from sorix_dist.core.own_numbers import warn_of_own_divisor
from sorix_dist.core.placement import REPLICATE, Deferred, Partial, Placement, Shard, refuse_value, shard_of, tagged
from sorix_dist.core.tensor import Tensor, array_of, ndarray_of, shape_of

Apply = Callable[..., Tensor]
Inputs = tuple[Any, ...]
Options = dict[str, Any]
Answer = Placement | Tensor
Rule = Callable[[Apply, Inputs, Options], Answer]


def collective() -> Any:
    from sorix_dist.core.ops import collective  # it is made of operations, which know the rules

    return collective


def placement_of(x: Any) -> Any:
    """The Shard or Partial that an operand is, else None."""
    place = x.place if isinstance(x, Tensor) else None
    return None if place is REPLICATE else place


def bare(x: Any) -> Any:
    """An operand without its placement, for operations whose caller sets that of the result."""
    if isinstance(x, Tensor) and isinstance(x.place, Deferred):
        refuse_value(x.place, x.array, "this operation")
    return Tensor.of(x.array, x.origin) if isinstance(x, Tensor) and x.place is not None else x


def whole(x: Any, name: str = "") -> Any:
    """An operand as a Replicate: the sum over all ranks, or the rows of all ranks."""
    return collective().to_replicate(x, name) if isinstance(placement_of(x), Shard | Partial | Deferred) else x


def whole_sums(inputs: Sequence[Any], name: str) -> list[Any]:
    """The operands, with Partials replaced by their sums over the ranks."""
    return [whole(x, name) if isinstance(placement_of(x), Partial | Deferred) else x for x in inputs]


def rows_along(name: str, x: Any, axes: tuple[int, ...]) -> Any:
    """An operand of a layer; it is gathered if it has rows along an axis other than `axes`."""
    place = placement_of(x)
    return x if not isinstance(place, Shard) or place.axis in axes else whole(x, name)


def first_shard(inputs: Sequence[Any]) -> Shard | None:
    """The placement of the first operand that is rows of a batch."""
    return next((p for x in inputs if isinstance(p := placement_of(x), Shard)), None)


def has_partial(inputs: Sequence[Any]) -> bool:
    """Whether an operand is a sum over ranks."""
    return any(isinstance(placement_of(x), Partial) for x in inputs)


def in_order(place: Shard) -> bool:
    """Whether products must gather these rows: in reproducible mode, since their bits depend on the number of rows."""
    return place.group.ordered


def one_row(place: Shard) -> bool:
    """Whether there is one row in the global batch, which broadcasts over others."""
    return (place.batch.known is not None or place.group.single) and place.total == 1


def on_every_rank(rows: Shard, condition: bool) -> bool:
    """Whether a condition holds on every rank of these rows. A call of all ranks."""
    group = rows.group
    if group.isolated or group.single:
        return condition
    outside("whether a tensor that len(x) or an index has made is rows of the batch is asked of all ranks")
    return group.counts(int(not condition))[1] == 0


def applied(apply: Apply, operands: Sequence[Any], inputs: Inputs, options: Options, place: Placement) -> Answer:
    """The answer of a rule that has converted the inputs to `operands`; place: that of the result."""
    if all(new is old for new, old in zip(operands, inputs, strict=True)):
        return place
    return tagged(apply(*map(bare, operands), **options), place)


# -- rules for any operation


def gathers(apply: Apply, inputs: Inputs, options: Options) -> Answer:
    """The rule of operations without one: their inputs are gathered. Integers that follow, such as those of argsort,
    are numbers of rows of the global batch."""
    if waits(inputs):
        return deferred(apply, inputs, options)
    result = apply(*(whole(x, apply.__name__) for x in inputs), **options)
    return tagged(result, REPLICATE) if result.array.dtype.kind in "iu" and result.place is None else result


def gathers_and_cuts(apply: Apply, inputs: Inputs, options: Options, rows: Shard | None) -> Answer:
    """As `gathers`; if the result has rows, these stay this rank's."""
    result: Any = gathers(apply, inputs, options)
    return result if rows is None else collective().rows_of(result, rows)  # type: ignore[no-any-return]


def given(apply: Apply, inputs: Inputs, options: Options) -> Answer:
    """The rule of operations whose callers set the placement of the result."""
    return None


def sums_made_whole(apply: Apply, inputs: Inputs, options: Options) -> Answer:
    """The rule of operations that are not linear: Partials are summed over the ranks first."""
    return deferred(apply, inputs, options) if waits(inputs) else apply(*whole_sums(inputs, apply.__name__), **options)


# -- element by element


def _common_rows(inputs: Inputs) -> Shard | None:
    """The placement of one operand, or of two with the same number of dimensions, that are rows of one batch."""
    x, y = inputs[0], inputs[-1]
    place = getattr(x, "place", None)
    if place.__class__ is not Shard or getattr(y, "place", None) is not place or len(inputs) > 2:
        return None
    return place if x is y or x.array.ndim == y.array.ndim else None


def elementwise(apply: Apply, inputs: Inputs, options: Options) -> Answer:
    """Element-wise operations with broadcasting: rows stay rows. They are not linear: Partials are summed first."""
    return _common_rows(inputs) or (sums_made_whole if has_partial(inputs) else _aligned)(apply, inputs, options)


def linear(apply: Apply, inputs: Inputs, options: Options) -> Answer:
    """Operations that are linear in one operand, element-wise or by a new shape that keeps the rows' axis: a Shard or a
    Partial stays one."""
    place = placement_of(inputs[0])
    if isinstance(place, Shard | Partial) and len(inputs) == 1:
        return place
    return elementwise(apply, inputs, options)


def cast(apply: Apply, inputs: Inputs, options: Options) -> Answer:
    """Another dtype: linear if it is one of floating point."""
    return (linear if np.dtype(options["dtype"]).kind == "f" else elementwise)(apply, inputs, options)


def additive(apply: Apply, inputs: Inputs, options: Options) -> Answer:
    """Sums of operands: a Partial if all operands are. A Replicate among Partials counts once."""
    if (rows := _common_rows(inputs)) is not None:
        return rows
    partials = [p for x in inputs if isinstance(p := placement_of(x), Partial)]
    if not partials:
        return elementwise(apply, inputs, options)
    if first_shard(inputs) is not None:
        return sums_made_whole(apply, inputs, options)
    place = partials[0]
    if len(partials) < len(inputs):
        if any(x.array.dtype.kind != "f" for x in inputs if isinstance(placement_of(x), Partial)):
            return sums_made_whole(apply, inputs, options)  # integers can't be divided by the number of ranks
        kind = common_dtype([*map(array_of, inputs)])
        return apply(*(collective().as_part(x, place.group, kind) for x in inputs), **options)
    for other in partials[1:]:
        if other.group is not place.group:
            return sums_made_whole(apply, inputs, options)
        place = place.joined(other)
    return place


def choosing(apply: Apply, inputs: Inputs, options: Options) -> Answer:
    """Elements of one operand or another, by a condition: linear if the other operand is 0."""
    others = [x for x in inputs if not isinstance(placement_of(x), Partial)]
    if len(others) < len(inputs) and all(isinstance(x, int | float) and x == 0 for x in others):
        places = [x.place for x in inputs if isinstance(x, Tensor)]
        if all(place is places[0] for place in places):
            return places[0]
    return elementwise(apply, inputs, options)


def product(apply: Apply, inputs: Inputs, options: Options) -> Answer:
    """Products: linear in each operand, so a Partial times a Replicate is a Partial."""
    return _common_rows(inputs) or (partial_product if has_partial(inputs) else _aligned)(apply, inputs, options)


def partial_product(apply: Apply, inputs: Inputs, options: Options) -> Answer:
    """A product of two operands; one at least is a Partial."""
    x, y = inputs
    first, second = placement_of(x), placement_of(y)
    if second is None:
        return beside_sum(first, y)
    if first is None:
        return beside_sum(second, x)
    return sums_made_whole(apply, inputs, options)


def quotient(apply: Apply, inputs: Inputs, options: Options) -> Answer:
    """Quotients: linear in the dividend."""
    first, second = map(placement_of, inputs)
    if isinstance(first, Partial) and not isinstance(second, Shard | Partial):
        warn_of_own_divisor(first, inputs[1])
        return beside_sum(first, inputs[1])
    return sums_made_whole(apply, inputs, options) if has_partial(inputs) else _aligned(apply, inputs, options)


def _aligned(apply: Apply, inputs: Inputs, options: Options) -> Answer:
    """The answer for an element-wise operation with at least one Shard."""
    if len(inputs) == 2 and (kind := inputs[1].__class__) in (float, int):
        rows: Shard = placement_of(inputs[0])
        if kind is float and not rows.group.single:
            beside_rows(rows, inputs[1])
        return rows
    operands, place = aligned_operands(apply.__name__, inputs)
    return applied(apply, operands, inputs, options, place)


def aligned_operands(name: str, inputs: Sequence[Any]) -> tuple[list[Any], Shard | None]:
    """Aligns the operands of an element-wise operation with its rows; returns them and the placement of the result.

    Axes are counted from the right, as in broadcasting. A Replicate broadcasts, is cut to this rank's rows if it has a
    row for each of the global batch, or counts as this rank's rows if it has their number. ValueError if it fits
    neither, or if the rows are those of different batches.
    """
    lead = first_shard(inputs)
    if lead is None:
        return list(inputs), None
    ndim = max(len(shape_of(x)) for x in inputs if x is not None)
    at = next(len(shape_of(x)) - lead.axis for x in inputs if placement_of(x) is lead)
    if one_row(lead) and any(_extent(x, at, lead.held) != 1 for x in inputs):
        return [whole(x, name) for x in inputs], None
    changed: list[Any] = []
    pairs = False
    for x in inputs:
        place = placement_of(x)
        if isinstance(place, Shard):
            if (place.outer, place.inner, len(shape_of(x)) - place.axis) != (lead.outer, lead.inner, at):
                pairs, x = pairs or place.batch.like(lead.batch), whole(x, name)
            elif place.group is not lead.group:
                lead, x = _of_two_groups(lead, x)
            elif not lead.batch.like(place.batch):
                raise ValueError(
                    f"{name}: rows of two batches can't be combined: {lead.total} rows, {lead.batch.held} of them on "
                    f"this rank, and {place.total} rows, {place.batch.held} of them on this rank"
                )
        x = beside(x, lead, at)
        if lead.group.ordered and isinstance(x, Tensor) and x.origin is not None and not isinstance(x.place, Shard):
            x = collective().spread(x, lead, at, ndim)
        changed.append(x)
    pairs = pairs and lead.outer == lead.inner == 1
    return changed, lead.batch.at(ndim - at, pairs=True) if pairs else lead.moved(ndim - at)


def _extent(x: Any, at: int, held: int) -> int:
    """The global extent of an operand along the axis `at` from the right; of what is as long as this rank's one row or
    none, and of what lacks the axis, 1."""
    place, shape = placement_of(x), shape_of(x)
    if isinstance(place, Shard) and len(shape) - place.axis == at:
        return place.total
    return 1 if len(shape) < at or shape[-at] == held else shape[-at]


def _of_two_groups(lead: Shard, x: Tensor) -> tuple[Shard, Tensor]:
    """Combines rows of a loader for all ranks with those of a model on some ranks; the constant one takes the other's
    placement."""
    place = x.place
    assert isinstance(place, Shard)
    if lead.group.isolated or place.group.isolated:
        raise RuntimeError(
            "reproducible mode: rows of one virtual shard are combined with rows of another, or of the whole batch, "
            "such as a module has stored in an earlier forward: pass them to forward, and return what the next needs"
        )
    if lead.batch.held != place.batch.held or lead.group.ordered != place.group.ordered:
        raise RuntimeError(
            f"rows of batches of {lead.rows.total} and {place.rows.total} that are sharded over different ranks can't "
            "be combined"
        )
    return (lead, x) if x.origin is None else (place, x)


# -- rows beside others


def rows_beside(x: Any, lead: Shard, at: int) -> Any:
    """This rank's rows of a Replicate, the same as those of `lead`, along the axis `at` from the right."""
    shape = shape_of(x)
    length = shape[-at]
    # Of rows that a mask has selected the ranks ask each other, whatever each holds of them: all must come here.
    of_all = (lead.batch.known is not None or not lead.group.isolated) and length == lead.total
    if lead.pairs and shape[-at:] == (lead.held, lead.held) != (lead.total, lead.total):
        raise RuntimeError(
            f"a matrix of this rank's {lead.held} rows by {lead.held} stands beside one of these rows by the "
            f"{lead.total} of all ranks: make it of x.shape[0], as sx.eye(x.shape[0]), not of len(x) "
            "[docs: own-numbers]"
        )
    if length == lead.held and (not of_all or lead.group.has_all):
        if lead.group.ordered and getattr(x, "origin", None) is not None and length != lead.total:
            raise RuntimeError(
                f"reproducible mode: a tensor that has the {length} rows of this rank but is none of them, such as one "
                "expanded to len(x), beside rows of the batch: expand it to x.shape[0]"
            )
        return x
    if length == lead.total:
        return collective().rows_of(x, lead.moved(len(shape) - at))
    raise ValueError(
        f"operands can't be combined: axis {len(shape) - at} of shape {tuple(shape)} does not fit a batch of "
        f"{lead.total} rows, {lead.held} of them on this rank"
    )


def beside(x: Any, lead: Shard, at: int) -> Any:
    """An operand aligned with rows along the axis `at` from the right: a Replicate with that axis is cut to them."""
    if x is None or shard_of(x) is not None:
        return x
    shape = shape_of(x)
    if len(shape) >= at and shape[-at] != 1:
        return rows_beside(x, lead, at)
    several_rows = lead.of_loader and lead.batch.parent is None and lead.total >= 2 * lead.group.size  # on each rank
    if len(shape) < at or several_rows:  # else it may be the only row of this rank
        beside_rows(lead, x)
    return x


def align(x: Any, like: Any, name: str) -> Any:
    """Aligns an operand with another by its first axes, as targets with predictions: a Replicate is cut to the rows of
    a Shard if it has a row for each of the batch; a Shard is gathered for a Replicate."""
    (x,) = whole_sums((x,), name)
    place, lead, shape = placement_of(x), placement_of(like), shape_of(x)
    if isinstance(lead, Shard) and place is None and lead.axis < len(shape):
        refuse_own_numbers(name, like, x, lead)
        if not lead.group.has_all and lead.batch.known is not None and shape[lead.axis] == lead.total:
            return collective().rows_of(x, lead)
    elif isinstance(place, Shard) and lead is None and not place.group.has_all:
        others = shape_of(like)
        if place.axis < len(others) and others[place.axis] == place.total:
            return whole(x, name)
    return x


def refuse_own_numbers(name: str, pairs: Any, numbers: Any, place: Shard) -> None:
    """RuntimeError for arange(len(x)) as columns of what pairs this rank's rows with those of all ranks, such as
    similarities."""
    if place.group.single or place.batch.known is None or not place.pairs or shard_of(numbers) is not None:
        return
    given, columns = np.ravel(ndarray_of(numbers)), shape_of(pairs)[1:]
    own = len(given) == place.held and columns == (place.total,) and 0 < place.held < place.total
    if own and given.dtype.kind in "iu" and np.array_equal(given, np.arange(place.held)):
        raise RuntimeError(
            f"{name}: there is a column for each of the {place.total} rows of all ranks, and the columns that are "
            f"named have the numbers of this rank's {place.held} rows: use sx.arange(sx.global_rows(x)), which "
            "numbers all rows, or diagonal() [docs: own-numbers]"
        )


# -- layers


def rows_at(axis: int | None = None, states: Sequence[int] = (), at: int = 0) -> Rule:
    """The rule of a layer: rows along `axis` (None: any but the last `dims` ones, an option, or the last) of the first
    operand stay there. The operands numbered `states` have rows along their axis `at` from the right (if they have it),
    the others are weights. Other placements are gathered."""

    def rule(apply: Apply, inputs: Inputs, options: Options) -> Answer:
        place = placement_of(inputs[0])
        fits = isinstance(place, Shard) and (
            place.axis < inputs[0].array.ndim - options.get("dims", 1) if axis is None else place.axis == axis
        )
        others = whole_sums(inputs[1:], apply.__name__)
        for i, other in enumerate(others, 1):
            theirs = placement_of(other)
            if isinstance(theirs, Shard):
                fits = fits and i in states and len(shape_of(other)) - theirs.axis == at and place.like(theirs)
            elif fits and i not in states:
                beside_rows(place, other)
            elif fits and not in_order(place):
                others[i - 1] = beside(other, place, at)
        if not fits or in_order(place):
            return gathers_and_cuts(apply, inputs, options, place if fits else None)
        return applied(apply, (inputs[0], *others), inputs, options, place)

    return rule


def linear_place(place: Any) -> Placement:
    """The placement of a linear function of an operand that is not a Shard."""
    return place if isinstance(place, Partial) else None
