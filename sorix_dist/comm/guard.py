"""The guard: one process per host that sees what becomes of the ranks, says what went wrong, and ends the others.

It starts with the first rank that imports the package and ends with the last one. It holds no memory but the table.
"""

from __future__ import annotations

import os
import platform
import resource
import select
import signal
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path

from sorix_dist.comm.launcher import detect
from sorix_dist.comm.leftovers import remove_launchers_files
from sorix_dist.comm.process import (
    Process,
    children,
    command,
    descends_from,
    end_status,
    environ,
    fill_standard_streams,
    lives,
    outputs,
    parent,
    processes,
    start_time,
    state,
)
from sorix_dist.comm.process import (
    seconds as seconds_of,
)
from sorix_dist.comm.site import PACKAGE
from sorix_dist.comm.table import Seen, State, Table, launcher_of
from sorix_dist.comm.verdict import Fault, Observed, activity, is_waiting, judge, step_of

TICK = 0.1
"""Seconds between two looks at the table; the end of a process is seen at once."""
TOGETHER = 0.03
"""Seconds in which the ends of several ranks are taken for one event."""
LOOK_AT_STATES = 0.5
"""Seconds between two looks at the states of the processes."""
LONGEST_GAP = 1.0
"""Seconds that count of a longer time between two ticks: the guard itself was stopped then, as by Ctrl-Z."""
STACKS = 0.3
"""Seconds that ranks have to write down their stacks."""
DRAINED = 0.05
"""Seconds for the launcher to pass on what ranks have printed, so that what they did wrong comes last."""
FORWARDED = 0.2
"""Seconds for the launcher to pass the last words on, before the ranks end and it with them."""
GOODBYE = 3.0
"""Seconds that ranks have to end by themselves after one has failed."""
SPARE = 2
"""Descriptors that are left to read of processes in /proc."""
LAUNCHERS = ("mpirun", "mpiexec", "mpiexec.hydra", "hydra_pmi_proxy", "prterun", "prted", "orted", "orterun")
"""Programs that have nothing else to do than to start ranks, and to end with them."""
LINES = 12
"""Ranks, and frames of a stack, that a report shows."""


def main(path: str) -> None:
    """Guard the ranks of the table at `path`, in a process that nobody waits for."""
    fill_standard_streams()
    table = Table.existing(Path(path))
    with suppress(OSError, ValueError):
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # two for each rank
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    line = socket.socket(socket.AF_UNIX)
    with suppress(OSError):  # its name is taken: all that is not known is the order of two ends
        with suppress(FileNotFoundError):  # of an earlier guard that was killed
            os.unlink(table.line)
        line.bind(table.line)
        line.listen(table.ranks)
    if child := os.fork():
        table.set_guard(child)
        os._exit(0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # these are for the ranks
        signal.signal(number, signal.SIG_IGN)
    table.set_guard(os.getpid())
    Guard(table, line).run()


class Guard:
    """What the guard sees and has said."""

    def __init__(self, table: Table, line: socket.socket) -> None:
        self.table = table
        self.line = line
        self.lines: dict[int, socket.socket] = {}
        self.hung_up: list[int] = []
        """Processes whose files are closed, in this order."""
        self.processes: dict[int, Process] = {}
        self.observed = Observed()
        self.launcher = launcher_of(table.path)
        self.launchers = [Process(*self.launcher)]
        """What has started the ranks of this host, and what has started that."""
        while command(above := parent(self.launchers[-1].pid)) in LAUNCHERS:
            self.launchers.append(Process(above, start_time(above)))
        for launcher in self.launchers:
            launcher.close()  # they are looked at in the end only: ranks need the descriptors
        self.doing: dict[int, tuple[int, int, State]] = {}
        self.events = select.epoll()
        self.events.register(line, select.EPOLLIN)
        self.most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE
        self.polled: set[int] = set()
        """Ranks whose ends nothing tells: Linux or Python has no such descriptors, or none is left."""
        self.looked = self.now = time.monotonic()
        self.all_stopped = False
        self.saying_since: float | None = None
        self.shells: dict[int, Process] = {}
        """The processes between the launcher and a rank that is not its own child."""
        self.outputs: set[str] = set()
        """The pipes to which ranks write."""
        self.will = 0
        """The process that ends the ranks should this one not."""

    def run(self) -> None:
        """Return when no rank is left."""
        while self.look():
            if self.table.said:
                self.end_the_rest()
            else:
                self.speak()
        if self.will:
            os.kill(self.will, signal.SIGKILL)
        self.see_off()
        os._exit(0)

    def look(self) -> bool:
        """Wait a tick or until a process ends; note what the ranks do; whether there are any."""
        self.table.beat()
        limit = time.monotonic() + TICK
        while (left := limit - time.monotonic()) > 0:
            if self._note_events([handle for handle, _ in self.events.poll(left)]):
                limit = min(limit, time.monotonic() + TOGETHER)
        before, self.now = self.now, time.monotonic()
        passed = min(self.now - before, LONGEST_GAP)
        self._find_new()
        for rank in [rank for rank in self.polled if not self.processes[rank].alive()]:
            self._note_end(rank)
        if not self._living() and not self._stay():
            return False
        for rank in self.processes:
            seen = self.table.see(rank)
            if seen is not None:
                doing = (seen.pid, seen.entered, seen.state)
                same = self.doing.get(rank) == doing and is_waiting(seen)
                self.doing[rank] = doing
                counted = 0.0 if self.all_stopped else passed
                self.observed.waited[rank] = self.observed.waited.get(rank, 0.0) + counted if same else 0.0
                over = seen.over and rank not in self.observed.gone and not is_waiting(seen)
                self.observed.over[rank] = self.observed.over.get(rank, 0.0) + counted if over else 0.0
        if self.now - self.looked >= LOOK_AT_STATES:
            self._look_at_states(min(self.now - self.looked, LONGEST_GAP))
            self._look_for_absent()
            self.observed.may_come = frozenset(rank for rank, shell in self.shells.items() if shell.alive())
            self.looked = self.now
        return True

    def speak(self) -> None:
        """Say what is wrong, if something is, and see to the end of all ranks."""
        table = {rank: seen for rank in sorted(self.processes) if (seen := self.table.see(rank)) is not None}
        failed = [rank for rank, seen in table.items() if seen.state == State.FAILED]
        if failed and self.table.last_words.exists():
            # The rank that failed ends the job itself, so that the exit code is its own.
            self._leave_a_will()
            self._signal(signal.SIGSTOP, but=failed)
            time.sleep(DRAINED)
            _write(self.table.last_words.read_text(errors="replace"))
            time.sleep(FORWARDED)
            self.table.set_said()
            return
        fault = judge(
            table, self.observed, self.table.timeout, self.table.all_here, not self.table.elsewhere
        ) or self._orphaned(table)
        if fault is None:
            return
        report = self._report(fault, table)
        self._leave_a_will()
        self._signal(signal.SIGSTOP)
        if not self.observed.gone:  # else the launcher may be ending everything, this message with it
            time.sleep(DRAINED)
        _write(report)
        self.table.set_said()
        time.sleep(FORWARDED)
        self._signal(signal.SIGKILL)

    def _leave_a_will(self) -> None:
        """Have another process end the ranks in the end: this one may be killed while they are stopped, or have a
        message that nobody reads. It closes every file it inherits, so that nobody waits for it."""
        guard = os.getpid()
        with suppress(OSError):
            self.will = os.fork()
            if self.will:
                return
            for number in {*range(3), self.line.fileno(), *self.lines}:
                os.close(number)
            time.sleep(2 * GOODBYE)
            self._signal(signal.SIGKILL)
            if os.getppid() == guard:  # the launcher may wait for the end of what the guard writes to
                os.kill(guard, signal.SIGKILL)
            os._exit(0)

    def end_the_rest(self) -> None:
        """End the ranks that are still there a while after all was said."""
        if self.saying_since is None:
            self.saying_since = self.now
        elif self.now - self.saying_since > GOODBYE:
            self._signal(signal.SIGKILL)

    def see_off(self) -> None:
        """The ranks are gone: end, in time, what keeps their launcher from its end, and after a fault a launcher that
        stays, as one does that has lost another host."""
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)  # this process may be the last to hold it
        self.line.close()
        seconds = 0.0
        patience = GOODBYE if self.table.said else self.table.timeout
        while left := [launcher for launcher in self.launchers if launcher.alive()]:
            holders = self._holders()
            stopped = [launcher for launcher in left if state(launcher.pid) == "T"]
            after_fault = left if self.table.said and command(left[0].pid) in LAUNCHERS else []
            if not (holders or stopped or after_fault):
                break
            if seconds >= patience:
                for pid in holders:
                    _write_to(
                        pid,
                        f"all ranks of this host have ended, but process {pid}, which one of them has started, "
                        "keeps their output open; ending it\n",
                    )
                    Process(pid, start_time(pid)).send(signal.SIGKILL)
                for launcher in after_fault:
                    launcher.send(signal.SIGTERM if seconds < patience + GOODBYE else signal.SIGKILL)
                for launcher in stopped:
                    launcher.send(signal.SIGCONT)
            time.sleep(LOOK_AT_STATES)
            seconds += LOOK_AT_STATES
        if not self.launchers[0].alive():
            remove_launchers_files(since=seconds_of(self.launcher[1]) - 1)

    def _holders(self) -> list[int]:
        """The processes that ranks have started and left behind, and whose output goes where theirs did: the launcher
        waits for their end. A shell around a rank is none: the launcher has started it."""
        return [
            pid
            for pid in processes()
            if self.outputs & set(outputs(pid))
            and pid != os.getpid()
            and detect(environ(pid)) is not None
            and not descends_from(pid, self.launcher[0])
        ]

    def _living(self) -> list[int]:
        return [rank for rank in self.processes if rank not in self.observed.gone]

    def _stay(self) -> bool:
        """Whether a rank has come at the last moment; else the table is removed, and this guard is done."""
        if not self.table.said:
            self.speak()  # all have died at once
        with self.table.locked():
            self._find_new()
            if self._living():
                return True
            self.table.remove()
            return False

    def _note_events(self, handles: list[int]) -> bool:
        """Note who has come and who has gone, in this order; whether anybody has gone."""
        gone = False
        for handle in handles:
            if handle == self.line.fileno():
                try:
                    line, _ = self.line.accept()
                except OSError:  # no descriptor is left, or the socket has no name
                    self.events.unregister(handle)
                    continue
                if line.fileno() >= self.most or _peer(line)[1] != os.getuid():
                    line.close()
                    continue
                self.lines[line.fileno()] = line
                self.events.register(line, select.EPOLLRDHUP)
            elif handle in self.lines:
                line = self.lines.pop(handle)
                self.hung_up.append(_peer(line)[0])
                self.events.unregister(handle)
                line.close()
            else:
                gone = True
                rank = next(rank for rank, process in self.processes.items() if process.handle == handle)
                self._note_end(rank)
        return gone

    def _note_end(self, rank: int) -> None:
        process = self.processes[rank]
        self.observed.gone[rank] = end_status(process.pid)
        self.polled.discard(rank)
        if process.handle is not None:
            self.events.unregister(process.handle)
            process.close()
        # MPICH ends all ranks as soon as the first one's files are closed, and of all their memories the first
        # one's may take the longest to be freed: the first connection to close names the rank that failed.
        order = {pid: place for place, pid in enumerate(self.hung_up)}
        self.observed.gone = dict(
            sorted(self.observed.gone.items(), key=lambda each: order.get(self.processes[each[0]].pid, len(order)))
        )

    def _find_new(self) -> None:
        for rank in range(self.table.ranks):
            pid, start = self.table.owner(rank)
            if pid == 0:
                continue
            known = self.processes.get(rank)
            if known is not None and (known.pid, known.start) == (pid, start):
                continue
            if known is not None and known.handle is not None:
                self.events.unregister(known.handle)
                known.close()
            process = self.processes[rank] = Process(pid, start)
            if process.handle is not None and process.handle >= self.most:
                process.close()
            self.observed.gone.pop(rank, None)
            self.polled.discard(rank)
            self.outputs.update(outputs(pid))
            shell = pid
            while (above := parent(shell)) > 1 and above != self.launcher[0]:
                shell = above
            if above == self.launcher[0] and shell != pid:
                self.shells[rank] = Process(shell, start_time(shell))
                self.shells[rank].close()
                self.observed.may_come |= {rank}
            if process.handle is not None:
                self.events.register(process.handle, select.EPOLLIN)
            elif process.alive():
                self.polled.add(rank)
            else:
                self._note_end(rank)

    def _look_at_states(self, passed: float) -> None:
        states = {rank: state(self.processes[rank].pid) for rank in self._living()}
        some_run = any(letter != "T" for letter in states.values())
        self.all_stopped = not some_run  # as by Ctrl-Z, or a scheduler that suspends the job
        stopped = self.observed.stopped
        for rank, letter in states.items():
            stopped[rank] = stopped.get(rank, 0.0) + passed if letter == "T" and some_run else 0.0
        self.observed.stopped = {rank: seconds for rank, seconds in stopped.items() if rank in states}

    def _look_for_absent(self) -> None:
        """Note the ranks that have ended before they imported the package: the launcher may go on without a word."""
        unseen = set(range(self.table.all_here)) - self.processes.keys()
        started = [detect(environ(pid)) for pid in children(self.launcher[0])] if unseen else []
        ranks = {launch.rank for launch in started if launch is not None}
        self.observed.absent = frozenset(unseen - ranks if ranks else ())

    def _signal(self, number: int, but: list[int] | None = None) -> None:
        for rank in self._living():
            if rank not in (but or ()):
                self.processes[rank].send(number)

    def _orphaned(self, table: dict[int, Seen]) -> Fault | None:
        pid, start = self.launcher
        if lives(pid, start) or all(seen.state < State.STARTING for seen in table.values()):
            return None
        return Fault(f"what started the ranks of this host (pid {pid}) is gone", ())

    def _report(self, fault: Fault, table: dict[int, Seen]) -> str:
        stacks = self._stacks(table)
        lines = [f"{fault.what}; ending all ranks (host {platform.node()})"]
        for rank, seen in list(table.items())[:LINES]:
            gone = "is gone, " if rank in self.observed.gone else ""
            place = "has ended, " if seen.state == State.ENDED else gone
            now = _user_frame(stacks.get(rank, []))
            lines.append(f"  rank {rank}: {place}{step_of(seen)}{activity(seen)}{f'; now at {now}' if now else ''}")
        if len(table) > LINES:
            lines.append(f"  and {len(table) - LINES} more ranks of this host")
        for rank in fault.ranks[:3]:
            if rank in stacks:
                lines.append(f"the stack of rank {rank}, innermost call first:")
                lines += [f"  {frame}" for frame in stacks[rank][:LINES]]
        return "\n".join(lines) + "\n"

    def _stacks(self, table: dict[int, Seen]) -> dict[int, list[str]]:
        """The stacks of the ranks that can say where they are, as faulthandler writes them."""
        files = {
            rank: Path(f"/proc/{seen.pid}/fd/{seen.stack}")
            for rank, seen in table.items()
            if seen.stack >= 0  # not of an interpreter that is being taken down: the signal would kill it
            and seen.state in (State.IMPORTED, State.STARTING, State.RUNNING)
            and rank not in self.observed.gone
            and not self.observed.stopped.get(rank)
        }
        for rank in files:
            self.processes[rank].send(signal.SIGUSR2)
        stacks: dict[int, list[str]] = {}
        limit = time.monotonic() + STACKS
        while len(stacks) < len(files) and time.monotonic() < limit:
            time.sleep(0.02)
            for rank, file in files.items():
                with suppress(OSError):
                    lines = file.read_text(errors="replace").splitlines()
                    if rank not in stacks and lines:
                        time.sleep(0.01)  # until it is all there
                        lines = file.read_text(errors="replace").splitlines()
                        stacks[rank] = [line.strip() for line in lines[1:]]
        return stacks


def _user_frame(frames: list[str]) -> str:
    """File and line of the innermost frame that is neither this package nor the standard library."""
    library = str(Path(os.__file__).parent) + os.sep
    for frame in frames:
        name, _, rest = frame.removeprefix('File "').partition('", line ')
        if rest and not name.startswith((PACKAGE, library, "<frozen")):
            return f"{name}:{rest.split()[0]}"
    return ""


def _peer(line: socket.socket) -> tuple[int, int]:
    """Number and user of the process that a connection is to."""
    pid, user, _ = struct.unpack("3i", line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, user


def _write_to(pid: int, text: str) -> None:
    """Say something on another process's standard error."""
    with suppress(OSError):
        file = os.open(f"/proc/{pid}/fd/2", os.O_WRONLY | os.O_NONBLOCK)
        os.write(file, text.encode())
        os.close(file)


def _write(text: str) -> None:
    with suppress(OSError):  # nobody listens any more
        os.write(2, text.encode(errors="replace"))
