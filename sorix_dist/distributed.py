"""torch.distributed's names, for scripts that come from there: `import sorix_dist.distributed as dist`.

Ranks need no set-up here, so some of these functions only check what they are given. A collective works on all ranks,
and has returned when it is done.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from sorix_dist.comm import world as comm_world
from sorix_dist.core import Tensor
from sorix_dist.core.capture import uncaptured
from sorix_dist.core.keywords import missing_from
from sorix_dist.parallel import collectives
from sorix_dist.parallel.collectives import barrier
from sorix_dist.parallel.world import init, size, world
from sorix_dist.parallel.world import rank as _rank

__all__ = [
    "ReduceOp", "all_gather", "all_gather_object", "all_reduce", "barrier", "broadcast", "broadcast_object_list",
    "destroy_process_group", "get_backend", "get_rank", "get_world_size", "init_process_group", "is_available",
    "is_initialized", "reduce",
]  # fmt: skip


__path__: list[str] = []  # so that an import of torch.distributed's modules says what there is instead


class ReduceOp(Enum):
    """What `all_reduce` computes. AVG is the sum divided by the number of ranks."""

    SUM = "sum"
    AVG = "avg"
    MAX = "max"
    MIN = "min"


def init_process_group(
    backend: str | None = None,
    init_method: str | None = None,
    timeout: Any = None,
    world_size: int = -1,
    rank: int = -1,
    **without_effect: Any,
) -> None:
    """Starts communication as `sx.init` does. MPI carries the messages whatever `backend` and `init_method` are.

    timeout: seconds or a timedelta that a rank may be late, None for 300 seconds.
    RuntimeError if `rank` or `world_size` are given, and are not those of this process.
    """
    seconds = getattr(timeout, "total_seconds", lambda: timeout)()
    if seconds is not None or not comm_world.is_initialized():  # sx.init(virtual_shards=) may stand before it
        init(**{} if seconds is None else {"timeout": seconds})
    for name, given, own in (("rank", rank, _rank()), ("world_size", world_size, size())):
        if given not in (-1, own):
            raise RuntimeError(
                f"init_process_group: {name} is {own} here, got {given!r}; ranks are started by "
                "`sorix-dist run -n 4 SCRIPT` or mpirun, and need no such argument"
            )


def destroy_process_group(group: Any = None) -> None:
    """Nothing: communication ends with the program."""
    _only_all(group)


def is_available() -> bool:
    """True."""
    return True


def is_initialized() -> bool:
    """True: the first use of the ranks starts communication."""
    return True


def get_backend(group: Any = None) -> str:
    """ "mpi"."""
    _only_all(group)
    return "mpi"


def get_rank(group: Any = None) -> int:
    """The number of this process among all ranks, from 0."""
    _only_all(group)
    return _rank()


def get_world_size(group: Any = None) -> int:
    """The number of ranks that train together."""
    _only_all(group)
    return size()


def all_reduce(tensor: Any, op: ReduceOp = ReduceOp.SUM, group: Any = None, async_op: bool = False) -> None:
    """The sum (or mean, maximum, minimum) of a tensor over all ranks, in place.

    After `backward()` a loss is that of the global batch already, on every rank; the mean of equal values is no error.
    """
    _only_all(group, async_op)
    try:
        op = ReduceOp(op)
    except ValueError:
        names = ", ".join(f"ReduceOp.{each.name}" for each in ReduceOp)
        raise ValueError(f"all_reduce: op must be one of {names}, got {op!r}") from None
    tensor = _tensor("all_reduce", tensor)
    if op is ReduceOp.AVG:
        collectives.average(tensor)
    else:
        collectives.all_reduce(tensor, op.value)


def reduce(tensor: Any, dst: int = 0, op: ReduceOp = ReduceOp.SUM, group: Any = None, async_op: bool = False) -> None:
    """`all_reduce`: not only rank `dst` gets the result."""
    all_reduce(tensor, op, group, async_op)


def broadcast(tensor: Any, src: int = 0, group: Any = None, async_op: bool = False) -> None:
    """Sends rank `src`'s values to all ranks, in place."""
    _only_all(group, async_op)
    collectives.broadcast(_tensor("broadcast", tensor), src)


def all_gather(tensor_list: list[Any], tensor: Any, group: Any = None, async_op: bool = False) -> None:
    """Copies every rank's tensor into the tensors of a list, in rank order."""
    _only_all(group, async_op)
    _count("tensor_list", tensor_list)
    for target, found in zip(tensor_list, collectives.all_gather(_tensor("all_gather", tensor).detach())):
        target.copy_(found)


def all_gather_object(object_list: list[Any], obj: Any, group: Any = None) -> None:
    """Puts every rank's object into a list, in rank order. Objects are pickled."""
    _only_all(group)
    _count("object_list", object_list)
    object_list[:] = collectives.gather_objects(obj)


@uncaptured
def broadcast_object_list(object_list: list[Any], src: int = 0, group: Any = None) -> None:
    """Replaces the objects of a list by those of rank `src`. Objects are pickled."""
    _only_all(group)
    object_list[:] = world().broadcast_object(object_list, src)


def _tensor(function: str, x: Any) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{function}: tensor must be a tensor, got {type(x).__name__}")
    return x


def _count(name: str, values: list[Any]) -> None:
    if len(values) != size():
        raise ValueError(f"{name} must have an entry for each of {size()} ranks, got {len(values)}")


def _only_all(group: Any, async_op: bool = False) -> None:
    if group is not None:
        raise ValueError(f"group must be None, for all ranks, got {group!r}; for others, give mpi4py's own collectives")
    if async_op:
        raise ValueError("async_op must be False: collectives have returned when they are done")


__getattr__ = missing_from(__name__, globals())
