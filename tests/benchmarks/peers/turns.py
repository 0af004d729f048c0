"""A process that waits for its turn, does something a number of times, and says how long each time took:

    python turns.py LIBRARY SOCKET '{"threads": 1, "rank": 0, "ranks": 1, "meeting": "PATH"}'

While it waits it blocks on the socket and uses no core, ranks of an MPI job included. It reads requests and answers
with one line of JSON each:
{"prepare": NAME, "act": ACT, ...options}, then {"time": NAME, "count": COUNT} or
{"losses": NAME, "count": COUNT}.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

Request = dict[str, Any]


def answer(peer: Any, acts: dict[str, Callable[[], Any]], request: Request) -> Request:
    """Does what is asked. Times are in seconds; the first call of a turn, which finds cold caches, is not timed."""
    if "prepare" in request:
        name = request.pop("prepare")
        acts.pop(name, None)
        gc.collect()  # on all ranks at the same time, as they give back shared memory together
        acts[name] = peer.prepare(**request)
        return {}
    if "describe" in request:
        description: Request = peer.describe()
        return description
    if "losses" in request:
        act = acts[request["losses"]]
        return {"losses": [float(act()) for _ in range(request["count"])]}
    act, times = acts[request["time"]], []
    act()
    for _ in range(request["count"]):
        start = perf_counter()
        act()
        times.append(perf_counter() - start)
    return {"times": times}


def main(library: str, path: str, options: str) -> None:
    """Takes turns until the other end of the socket is closed."""
    sys.path[0] = str(Path(__file__).parent)
    module = importlib.import_module(f"with_{library}")
    peer = module.Peer(**json.loads(options))
    acts: dict[str, Callable[[], Any]] = {}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        with connection.makefile("rw", encoding="utf-8") as lines:
            print(
                json.dumps({"rank": peer.rank, "pid": os.getpid(), "version": module.VERSION}), file=lines, flush=True
            )
            for line in lines:
                try:
                    said = answer(peer, acts, json.loads(line))
                except Exception as error:  # noqa: BLE001 (told to who asked)
                    traceback.print_exc()
                    said = {"error": f"{type(error).__name__}: {error}"}
                print(json.dumps(said), file=lines, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
