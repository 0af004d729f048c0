"""Functions of users that are called before and after the steps of an optimizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sorix_dist.core.arguments import as_function
from sorix_dist.core.capture import listening, recorders
from sorix_dist.core.tensor import Hook


class StepHooks:
    """The part of an optimizer that registers hooks."""

    def register_step_pre_hook(self, hook: Callable[..., Any]) -> Hook:
        """Calls `hook(optimizer, args, kwargs)` before each `step(*args, **kwargs)`; its result, if not None, is the
        new (args, kwargs). `remove()` of the returned handle unregisters the hook."""
        return self._register(0, hook)

    def register_step_post_hook(self, hook: Callable[..., Any]) -> Hook:
        """Calls `hook(optimizer, args, kwargs)` after each `step(*args, **kwargs)`. `remove()` of the returned handle
        unregisters the hook."""
        return self._register(1, hook)

    def _register(self, when: int, hook: Callable[..., Any]) -> Hook:
        hooks: Any = self.__dict__.setdefault("_step_hooks", ([], []))
        hooks[when].append(as_function("a hook of a step", hook, "the optimizer, args and kwargs"))
        self.__dict__["step"] = partial(_hooked_step, self)  # in place of the class's, which looks for no hooks
        return Hook(hooks[when], hook)


def _hooked_step(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
    """The step of an optimizer with hooks."""
    if recorders and (recorder := listening()) is not None:
        recorder.refuse("optimizer.step with hooks")
    before, after = optimizer._step_hooks
    for hook in before:
        if (given := hook(optimizer, args, kwargs)) is not None:
            args, kwargs = given
    result = type(optimizer).step(optimizer, *args, **kwargs)
    for hook in after:
        hook(optimizer, args, kwargs)
    return result
