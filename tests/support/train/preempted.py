"""A program that is warned, saves and ends; started again, it goes on. Started on ranks by test_preempt.py:

    python -m tests.support.train.preempted FOLDER STEPS [SIGNAL RANK]

The rank gets the signal after the third step, from a thread, while it waits in MPI for one that is late.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import numpy as np

import sorix_dist as sx

folder, steps = sys.argv[1], int(sys.argv[2])
number, chosen = (getattr(signal, sys.argv[3]), int(sys.argv[4])) if len(sys.argv) > 3 else (None, None)
preemption = sx.Preemption()
checkpointer = sx.Checkpointer(folder, async_save=True)
found = checkpointer.load_latest()
first = 0 if found is None else found["step"]
total = 0.0 if found is None else found["total"]
for step in range(first, steps):
    if step == 3 and number is not None:
        if sx.rank() == chosen:
            threading.Timer(0.2, os.kill, (os.getpid(), number)).start()
        else:
            time.sleep(0.6)
    total += float(sx.all_reduce(np.array([step + sx.rank()], float))[0])
    if preemption.should_stop():
        checkpointer.save(step + 1, total=total)
        checkpointer.wait()
        print(f"rank {sx.rank()} stops after step {step}\n", end="", flush=True)
        preemption.exit()
print(f"rank {sx.rank()} has {total} from step {first}\n", end="", flush=True)
