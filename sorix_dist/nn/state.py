"""What a module does with all tensors below it: lists, saves, loads and converts them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.device import raise_for_device
from sorix_dist.core.dtype import DType, as_dtype, float16, float32, float64, names_dtype
from sorix_dist.core.flat import convert, zero_gradients
from sorix_dist.core.memory import refuse_frozen


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict` found in the module but not in the state, and the other way round."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Stateful:
    """What has parameters and buffers."""

    def _named_tensors(self) -> Iterator[tuple[str, Tensor, bool, bool]]:
        """Every parameter and buffer below, under each of its names; whether it is a parameter, and whether the state
        dict has it."""
        raise NotImplementedError

    # -- one by one

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The trained tensors with dotted names; one that several layers share comes once, by its first name."""
        return self._each_once(trained=True)

    def parameters(self) -> list[Tensor]:
        """The trained tensors, each once."""
        return [parameter for _, parameter in self.named_parameters()]

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that are state but are not trained, with dotted names."""
        return self._each_once(trained=False)

    def buffers(self) -> Iterator[Tensor]:
        """The tensors that are state but are not trained."""
        for _, buffer in self.named_buffers():
            yield buffer

    def _each_once(self, trained: bool) -> Iterator[tuple[str, Tensor]]:
        seen: set[int] = set()
        for name, tensor, is_trained, _ in self._named_tensors():
            if is_trained == trained and id(tensor) not in seen:
                seen.add(id(tensor))
                yield name, tensor

    def get_parameter(self, target: str) -> Tensor:
        """The parameter of a dotted name; AttributeError if there is none."""
        return self._tensor(target, "parameter")

    def get_buffer(self, target: str) -> Tensor:
        """The buffer of a dotted name; AttributeError if there is none."""
        return self._tensor(target, "buffer")

    def _tensor(self, target: str, kind: str) -> Tensor:
        for name, tensor, trained, _ in self._named_tensors():
            if name == target and trained == (kind == "parameter"):
                return tensor
        raise AttributeError(f"{type(self).__name__} has no {kind} '{target}'")

    # -- as a state

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all parameters and persistent buffers, by dotted name; tied ones come under each name."""
        return {name: Tensor(tensor.array.copy()) for name, tensor in self._saved()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Copies values (tensors or arrays) into the parameters and buffers of the same names.

        ValueError if names are missing or unknown (unless not `strict`: then they are returned), or if a
        shape or dtype does not fit; nothing is changed then.
        """
        different = self.check_state_dict(state_dict, strict)
        own = {name: tensor.array for name, tensor in self._saved() if name in state_dict}
        for array in own.values():
            refuse_frozen(array)
        for name, array in own.items():
            np.copyto(array, np.asarray(state_dict[name]), casting="same_kind")
        return different

    def check_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Raises what `load_state_dict` would raise for these values, and changes nothing."""
        own = dict(self._saved())
        missing = [name for name in own if name not in state_dict]
        unknown = [name for name in state_dict if name not in own]
        if strict and (missing or unknown):
            raise ValueError(f"load_state_dict: state_dict lacks {missing} and has unknown {unknown}")
        for name, tensor in own.items():
            if name not in state_dict:
                continue
            value, wanted = np.asarray(state_dict[name]), tensor.array
            if value.shape != wanted.shape or not np.can_cast(value.dtype, wanted.dtype, "same_kind"):
                raise ValueError(
                    f"load_state_dict: '{name}' must have shape {wanted.shape} and dtype {wanted.dtype}, "
                    f"got shape {value.shape} and dtype {value.dtype}"
                )
        return IncompatibleKeys(missing, unknown)

    def _saved(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, tensor) for name, tensor, _, saved in self._named_tensors() if saved)

    # -- all alike

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Makes all parameters trained, or frozen."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients of all parameters; not `set_to_none`: makes them zeros."""
        if not set_to_none:
            zero_gradients(self.parameters())
            return
        for parameter in self.parameters():
            parameter.grad = None

    def to(self, *wanted: Any, device: Any = None, dtype: Any = None) -> Self:
        """This module, converted to a floating point dtype if one is given, such as `to(sx.float64)`.

        A device, by position or name, can only be "cpu"; RuntimeError for one that is not there.
        """
        for entry in wanted:
            if isinstance(entry, str | DType | np.dtype | type) and names_dtype(entry):
                dtype = entry
            else:
                device = entry
        raise_for_device(device)
        if dtype is not None:
            self._convert(as_dtype(dtype))
        return self

    def half(self) -> Self:
        """Converts parameters and floating point buffers to float16."""
        return self._convert(float16.dtype)

    def float(self) -> Self:
        """Converts parameters and floating point buffers to float32."""
        return self._convert(float32.dtype)

    def double(self) -> Self:
        """Converts parameters and floating point buffers to float64."""
        return self._convert(float64.dtype)

    def _convert(self, dtype: np.dtype[Any]) -> Self:
        if dtype.kind != "f":
            raise TypeError(f"dtype must be a floating point type, got {dtype}")
        for tensor in {id(tensor): tensor for _, tensor, *_ in self._named_tensors()}.values():
            if tensor.array.dtype.kind == "f":
                convert(tensor, dtype)
        return self
