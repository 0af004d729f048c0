"""Parameters: the tensors that a module trains."""

from __future__ import annotations

from typing import Any

from sorix_dist.core import Tensor


class Parameter(Tensor):
    """A tensor that a module trains: it requires a gradient and is part of the module's state."""

    __slots__ = ("torch_transposed",)

    torch_transposed: bool  # whether PyTorch has the transpose of this matrix, which optimizers' states follow

    def __init__(self, data: Any, requires_grad: bool = True, dtype: Any = None) -> None:
        super().__init__(data, requires_grad=requires_grad, dtype=dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        made, (kind, array, trained, _, place), state = super().__reduce__()
        arguments = kind, array, trained, None, place  # a copy has no gradient, as in PyTorch
        transposed = getattr(self, "torch_transposed", None)
        return made, arguments, state if transposed is None else (state, {"torch_transposed": transposed})


class Parameters(list[Tensor]):
    """The parameters of a module, as a list that `next` takes the first of, then the second ...: PyTorch's are an
    iterator, and `next(model.parameters())` is how its users ask for a dtype."""

    _taken = 0

    def __next__(self) -> Tensor:
        if self._taken == len(self):
            raise StopIteration
        self._taken += 1
        return self[self._taken - 1]


def is_trained(value: Any) -> bool:
    """Whether `value` is a parameter, frozen or not, or another tensor that was made to require a gradient."""
    return isinstance(value, Tensor) and value.is_leaf and (isinstance(value, Parameter) or value.leaf is not None)
