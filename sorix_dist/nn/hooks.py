"""The call of a module, with the hooks before and after its forward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sorix_dist.core.capture import changed
from sorix_dist.core.tensor import Hook


class _TakesOptions(partial[Any]):
    """A hook that also gets the call's options by keyword."""


class Hooked:
    """The part of a module that calls `forward` and its hooks."""

    _hooks: tuple[list[Any], list[Any]] | None = None  # called before and after forward

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Computes the output of the module; subclasses define it."""
        raise NotImplementedError("You must implement forward in the subclass.")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if not inputs and options.keys() == {"input"}:  # PyTorch's name of what layers take
            inputs, options = (options["input"],), {}
        if self._hooks is None:
            return self.forward(*inputs, **options)
        before, after = self._hooks
        for hook in before:
            if isinstance(hook, _TakesOptions):
                if (both := hook(self, inputs, options)) is not None:
                    inputs, options = both
            elif (own := hook(self, inputs)) is not None:
                inputs = own if isinstance(own, tuple) else (own,)
        output = self.forward(*inputs, **options)
        for hook in after:
            given = (inputs, options) if isinstance(hook, _TakesOptions) else (inputs,)
            if (own := hook(self, *given, output)) is not None:
                output = own
        return output

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

    def _register(self, when: int, hook: Callable[..., Any], prepend: bool, with_kwargs: bool) -> Hook:
        hooks: Any = self.__dict__.setdefault("_hooks", ([], []))  # no new value of an attribute
        hook = _TakesOptions(hook) if with_kwargs else hook
        hooks[when].insert(0 if prepend else len(hooks[when]), hook)
        changed()
        return Hook(hooks[when], hook)
