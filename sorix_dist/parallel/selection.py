"""How ranks agree and reduce: selected by whether they share a host, and by hooks and virtual shards."""

from __future__ import annotations

from sorix_dist.comm import Comm
from sorix_dist.core.flat import Flat
from sorix_dist.parallel.agreement import Consensus, SharedMemoryConsensus
from sorix_dist.parallel.comm_hooks import Hook, HookReducer, fp16_compress, is_exchanged
from sorix_dist.parallel.hosts import HostsReducer, MessageConsensus, Peers
from sorix_dist.parallel.local import LocalConsensus, LocalReducer
from sorix_dist.parallel.reducers import Reducer
from sorix_dist.parallel.shared_memory import SharedMemory, SharedMemoryReducer
from sorix_dist.parallel.tree_reducers import DelayedTreeReducer, MessageTreeReducer, SharedTreeReducer
from sorix_dist.parallel.virtual_shards import VirtualShards


def consensus_of(comm: Comm) -> Consensus:
    """The fastest consensus for the ranks of a communicator. A call of all of them."""
    if comm.size == 1:
        return LocalConsensus()
    return SharedMemoryConsensus(comm) if comm.hosts == 1 else MessageConsensus(comm)


def reducer_of(
    flat: Flat,
    hook: Hook | None,
    memory: SharedMemory,
    shards: VirtualShards | None,
    peers: Peers | None,
    delayed: bool = False,
) -> Reducer:
    """The reducer of a flat storage, by `hook` if there is one; `delayed` a `DelayedTreeReducer`. A call of all
    ranks."""
    comm = memory.comm
    if shards is not None and delayed:
        return DelayedTreeReducer(flat, shards, hook is fp16_compress)
    if shards is not None and comm.hosts == 1:
        return SharedTreeReducer(flat, shards, memory)
    if shards is not None:
        return MessageTreeReducer(flat, shards, hook is fp16_compress)  # the only hook that there is here
    if peers is not None and (is_exchanged(hook) or peers.slices * comm.hosts == comm.size):
        return HostsReducer(flat, memory, peers, hook)
    if hook is not None:
        return HookReducer(flat, comm, hook)
    return LocalReducer(flat) if comm.size == 1 else SharedMemoryReducer(flat, memory)
