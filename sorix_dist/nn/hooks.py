"""The call of a module, with the hooks before and after its forward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sorix_dist.core.capture import changed
from sorix_dist.core.graph import recording
from sorix_dist.core.ops.shape import alias
from sorix_dist.core.tensor import Hook, Tensor


class _TakesOptions(partial[Any]):
    """A hook that also gets the call's options by keyword."""


class _Backward:
    """One call of a module with backward hooks: it collects the gradients that the hooks get."""

    def __init__(self, module: Any, hooks: list[Any], inputs: tuple[Any, ...]) -> None:
        self.module, self.hooks, self.of_output = module, [*hooks], None
        self.inputs = tuple(alias(x) if isinstance(x, Tensor) and x.requires_grad else x for x in inputs)
        self.followed = [i for i, (x, own) in enumerate(zip(inputs, self.inputs)) if x is not own]
        self.gradients: dict[int, Any] = {}

    def leaving(self, output: Any) -> Any:
        """The output, whose gradient is collected."""
        if not isinstance(output, Tensor):
            raise TypeError(
                f"register_full_backward_hook: forward of {type(self.module).__name__} must return one tensor, got a "
                f"{type(output).__name__}: use register_hook of its tensors"
            )
        if output.requires_grad:
            reached = _reached(output, {self.inputs[i].origin for i in self.followed})
            self.followed = [i for i in self.followed if self.inputs[i].origin in reached]  # others get no gradient
            for i in self.followed:
                self.inputs[i].register_hook(partial(self._arrived, i))
            output = alias(output)
            output.register_hook(self._begin)
        return output

    def _begin(self, gradient: Any) -> None:
        self.of_output, self.gradients = gradient, {}
        if not self.followed:
            self._call()

    def _arrived(self, i: int, gradient: Any) -> Any:
        self.gradients[i] = gradient
        return self._call().get(i) if len(self.gradients) == len(self.followed) else None

    def _call(self) -> dict[int, Any]:
        """Calls the hooks; the gradients that replace those to the inputs."""
        given = tuple(self.gradients.get(i) for i in range(len(self.inputs)))
        replaced = {}
        for hook in self.hooks:
            own = hook(self.module, given, (self.of_output,))
            if own is None:
                continue
            given = own if isinstance(own, tuple) else (own,)
            if len(given) != len(self.inputs) or len(self.followed) > 1:
                raise RuntimeError(
                    "register_full_backward_hook: a hook may return the gradient of a single input, got "
                    f"{len(given)} for {len(self.inputs)} inputs: use register_hook of the inputs for others"
                )
            replaced = {i: given[i] for i in self.followed}
        return replaced


def _reached(output: Tensor, ends: set[Any]) -> set[Any]:
    """The operations and leaves that the gradient of a tensor reaches, as far as these ends."""
    found: set[Any] = set()
    left: list[Any] = [output.origin]
    while left:
        if (origin := left.pop()) not in found:
            found.add(origin)
            left += () if origin in ends else getattr(origin, "edges", ())
    return found


class Hooked:
    """The part of a module that calls `forward` and its hooks."""

    _hooks: tuple[list[Any], list[Any], list[Any]] | None = None  # called before and after forward, and in backward

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Computes the output of the module; subclasses define it."""
        raise NotImplementedError("You must implement forward in the subclass.")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if not inputs and options.keys() == {"input"}:  # PyTorch's name of what layers take
            inputs, options = (options["input"],), {}
        if self._hooks is None:
            return self.forward(*inputs, **options)
        before, after, back = self._hooks
        for hook in before:
            if isinstance(hook, _TakesOptions):
                if (both := hook(self, inputs, options)) is not None:
                    inputs, options = both
            elif (own := hook(self, inputs)) is not None:
                inputs = own if isinstance(own, tuple) else (own,)
        passed = _Backward(self, back, inputs) if back and recording.get() else None
        output = self.forward(*(inputs if passed is None else passed.inputs), **options)
        for hook in after:
            given = (inputs, options) if isinstance(hook, _TakesOptions) else (inputs,)
            if (own := hook(self, *given, output)) is not None:
                output = own
        return output if passed is None else passed.leaving(output)

    def register_forward_pre_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False
    ) -> Hook:
        """Calls `hook(module, inputs)` before each forward; its result, if not None, replaces the inputs.

        prepend: before the other hooks. with_kwargs: calls `hook(module, inputs, options)`, which returns None or new
        inputs and options. `remove()` of the returned handle unregisters the hook.
        """
        return self._register(0, hook, prepend, with_kwargs)

    def register_forward_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False
    ) -> Hook:
        """Calls `hook(module, inputs, output)` after each forward; its result, if not None, replaces the output.

        prepend: before the other hooks. with_kwargs: calls `hook(module, inputs, options, output)`. `remove()` of the
        returned handle unregisters the hook.
        """
        return self._register(1, hook, prepend, with_kwargs)

    def register_full_backward_hook(self, hook: Callable[..., Any], prepend: bool = False) -> Hook:
        """Calls `hook(module, grad_input, grad_output)` in each backward: tuples of the gradients to the inputs of
        forward by position (None for one without) and to its output, a single tensor. Its result, if not None, replaces
        the former. `remove()` of the returned handle unregisters the hook.
        """
        return self._register(2, hook, prepend, False)

    def _register(self, when: int, hook: Callable[..., Any], prepend: bool, with_kwargs: bool) -> Hook:
        hooks: Any = self.__dict__.setdefault("_hooks", ([], [], []))  # no new value of an attribute
        hook = _TakesOptions(hook) if with_kwargs else hook
        hooks[when].insert(0 if prepend else len(hooks[when]), hook)
        changed()
        return Hook(hooks[when], hook)
