"""Starts a job again after a crash, from its latest checkpoint, as long as it makes progress."""

from __future__ import annotations

import secrets
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from sorix_dist.launch.command import Command
from sorix_dist.launch.run import ENDING, TIMED_OUT, Ended, run
from sorix_dist.watchdog.launcher import COMPLETION_FILE, EXIT_PREEMPTED, is_complete

EXIT_INCOMPLETE = 70
"""The exit code if all ranks ended with 0, but rank 0 did not reach the end of the script."""

ATTEMPT = "SORIX_DIST_ATTEMPT"
"""How often the script was started before, as a variable for it: 0, 1, 2, ..."""

PRIVATE = ".completed-"
"""The prefix of a file in the checkpoint folder: rank 0 writes it when it has reached the end."""

FRUITLESS = 2
"""Attempts in a row without a later saved step, after which the job is not started again."""

PAUSE = 1.0
"""Seconds between two attempts."""

# mpirun kills ranks half a second after a SIGTERM; SIGUSR1 it passes on, so that they can save their work.
WARNING: dict[int, int] = {**ENDING, signal.SIGTERM: signal.SIGUSR1}


def supervise(
    start: Callable[[int, dict[str, str]], Command],
    checkpoint: Path,
    *,
    max_restarts: int,
    newest_steps: Callable[[Path], Mapping[Path, int]],
    say: Callable[[str], None],
    limit: float | None = None,
) -> int:
    """Runs a command, again after each crash, at most 1 + max_restarts times; returns the exit code.

    start: makes the command of an attempt from the number of earlier ones and variables for the ranks.
    checkpoint: the folder that the script saves its checkpoints to, seen by all hosts.
    newest_steps: gives the newest step in a valid file for each folder at and below `checkpoint`. A later one is
        progress.
    say: is called with a line after each failed attempt.
    limit: seconds for all attempts together.

    The code is 0 if rank 0 reached the end of the script. Code 75 (preempted, the work is saved) and that of an end
    which a signal asked for are returned at once. Otherwise it is the code of the last attempt, with 70 in place of 0.
    """
    began = time.monotonic()
    fruitless = 0
    before = newest_steps(checkpoint) if max_restarts else {}
    for attempt in range(max_restarts + 1):
        mark = checkpoint / f"{PRIVATE}{secrets.token_hex(8)}"
        remaining = None if limit is None else max(0.0, limit - (time.monotonic() - began))
        ended = run(
            start(attempt, {COMPLETION_FILE: str(mark), ATTEMPT: str(attempt)}), limit=remaining, ending=WARNING
        )
        completed = is_complete(mark)
        mark.unlink(missing_ok=True)
        if completed and ended.code == 0:
            return 0
        code = ended.code or EXIT_INCOMPLETE
        if ended.asked or code in (EXIT_PREEMPTED, TIMED_OUT):
            return code
        if attempt < max_restarts:
            after = newest_steps(checkpoint)
            fruitless = 0 if any(step > before.get(folder, -1) for folder, step in after.items()) else fruitless + 1
            before = after
        say(_what(ended, attempt, max_restarts, fruitless, checkpoint))
        if fruitless == FRUITLESS:
            break
        if attempt < max_restarts:
            time.sleep(PAUSE)
    return code


def run_on_hosts(start: Callable[[dict[str, str]], Command], say: Callable[[str], None], limit: float | None) -> int:
    """Runs a command on several hosts, and returns its exit code: 70 in place of 0 if rank 0 began on this host, and
    did not reach the end of the script. mpirun may return 0 when it has lost a host.

    start: makes the command from variables for the ranks.
    """
    with tempfile.TemporaryDirectory(prefix="sorix_dist-run-") as folder:
        mark = Path(folder, "completed")
        ended = run(start({COMPLETION_FILE: str(mark)}), limit=limit)
        if ended.code or ended.asked or not mark.exists() or is_complete(mark):
            return ended.code
    say("the job ended with code 0, but rank 0 did not reach the end of the script, as when a host is lost")
    return EXIT_INCOMPLETE


def _what(ended: Ended, attempt: int, max_restarts: int, fruitless: int, checkpoint: Path) -> str:
    if ended.code:
        what = f"the job ended with code {ended.code}"
    else:
        what = "the job ended with code 0, but rank 0 did not reach the end of a script that imports sorix_dist"
    if fruitless == FRUITLESS:
        return f"{what}; not started again: {FRUITLESS} attempts in a row saved no later step in {checkpoint}"
    if attempt == max_restarts:
        return f"{what}; not started again" + f" after {max_restarts} restarts" * (max_restarts > 0)
    return f"{what}; restart {attempt + 1} of {max_restarts}"
