"""What type checkers are told of functions and methods that are made by other functions. No body here ever runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, overload

if TYPE_CHECKING:
    from sorix_dist.core.tensor import Tensor


class LikeInput(Protocol):
    """A function that gives a tensor for tensors, else an array."""

    __name__: str
    __doc__: str | None

    @overload
    def __call__(self, x: Tensor | Sequence[Tensor], /, *others: Any, **options: Any) -> Tensor: ...
    @overload
    def __call__(self, *inputs: Any, **options: Any) -> Any: ...


def _bound(self: Any, *inputs: Any, **options: Any) -> Tensor:
    raise NotImplementedError


class Bound:
    """The operators and methods that `core/methods.py` and `core/compositions.py` give to a Tensor; it has more, whose
    results are of several types."""

    T: Tensor
    mT: Tensor

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _bound
    __pow__ = __rpow__ = __matmul__ = __rmatmul__ = __mod__ = __rmod__ = __floordiv__ = __rfloordiv__ = _bound
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = _bound
    __lt__ = __le__ = __gt__ = __ge__ = _bound
    __neg__ = __pos__ = __abs__ = __invert__ = __getitem__ = _bound
    __eq__ = __ne__ = _bound  # type: ignore[assignment]

    abs = add = addmm = all = amax = amin = any = argmax = argmin = argsort = astype = bmm = broadcast_to = _bound
    ceil = clamp = clamp_ = clip = clone = copy_ = cos = cpu = cumprod = cumsum = diagonal = div = div_ = dot = _bound
    double = eq = erf = exp = expand = expand_as = expm1 = fill_ = flatten = flip = float = floor = gather = ge = _bound
    gt = half = index_add = index_fill = index_select = int = isfinite = isinf = isnan = le = log = log1p = _bound
    log_softmax = logical_and = logical_not = logical_or = logsumexp = long = lt = masked_fill = masked_select = _bound
    matmul = maximum = mean = median = minimum = mm = movedim = mul = mul_ = narrow = ne = neg = norm = normal_ = _bound
    permute = pow = prod = reciprocal = relu = repeat = repeat_interleave = reshape = roll = round = rsqrt = _bound
    scatter = scatter_add = select = sigmoid = sign = sin = softmax = sqrt = square = squeeze = std = sub = _bound
    sub_ = sum = swapaxes = t = tan = tanh = to = transpose = tril = triu = type_as = unflatten = uniform_ = _bound
    unsqueeze = var = view = view_as = where = zero_ = _bound

    def backward(self, gradient: Any = None, retain_graph: Any = None, create_graph: Any = False) -> None: ...
    def __setitem__(self, key: Any, value: Any) -> None: ...
    def __iter__(self) -> Iterator[Tensor]:
        raise NotImplementedError

    def __contains__(self, value: Any) -> Any: ...
    def __getattr__(self, name: str) -> Any: ...
