"""The guard: one process per host that watches the ranks, reports a fault, and ends them.

It starts with the first rank that imports the package and ends with the last one. Its only memory is the status pages,
so another guard can take over at any time.
"""

from __future__ import annotations

import fcntl
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

from sorix_dist.watchdog.call_site import collect_stacks, user_frame
from sorix_dist.watchdog.diagnosis import Fault, Observations, activity, diagnose, is_waiting, step_of
from sorix_dist.watchdog.launcher import detect
from sorix_dist.watchdog.leftovers import LAUNCHER, Launchers
from sorix_dist.watchdog.page_folder import launcher_of
from sorix_dist.watchdog.process import (
    Process,
    children,
    command,
    end_status,
    environ,
    fill_standard_streams,
    in_child,
    lives,
    outputs,
    parent,
    start_time,
    state,
)
from sorix_dist.watchdog.status_page import State, Status, StatusPages

TICK = 0.1  # seconds between two looks at the status pages; the guard sees the end of a process at once
SAME_EVENT = 0.03  # seconds in which the ends of several ranks count as one event
STATES_TICK = 0.5  # seconds between two looks at the states of the processes
LONGEST_TICK = 1.0  # seconds that count of a longer pause: the guard itself was stopped, as by Ctrl-Z
DRAIN = 0.05  # seconds for the launcher to forward what ranks have printed, so that the report comes last
FORWARD = 0.2  # seconds for the launcher to forward the report, before the ranks end and it with them
GRACE = 3.0  # seconds that ranks have to end by themselves after the report
BACKUP = 4.0  # seconds after which another process ends the ranks, if the guard has not
F_SETSIG = 10  # Linux's number, which Python does not name
LINES = 12  # ranks, and frames of a stack, in a report


def main(path: str) -> None:
    """Guard the ranks of the status pages at `path`, which are open as standard input, in an orphaned process."""
    fill_standard_streams()
    pages = StatusPages.existing(Path(path), os.dup(0))
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    with suppress(OSError, ValueError):
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # each rank takes two
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    server = socket.socket(socket.AF_UNIX)
    with suppress(OSError):  # its path is taken: only the order of two ends stays unknown
        with suppress(FileNotFoundError):  # of an earlier guard that was killed
            os.unlink(pages.socket_path)
        server.bind(pages.socket_path)
        server.listen(pages.ranks)
    if child := os.fork():
        pages.set_guard(child)
        os._exit(0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # these are for the ranks
        signal.signal(number, signal.SIG_IGN)
    pages.set_guard(os.getpid())
    Guard(pages, server).run()


class Guard:
    """The state of the guard: the processes that it watches, and its observations."""

    def __init__(self, pages: StatusPages, server: socket.socket) -> None:
        self.pages = pages
        self.server = server
        self.connections: dict[int, socket.socket] = {}
        self.disconnected: dict[int, int | None] = {}
        """Processes that closed their files, in this order, and their wait statuses at that moment."""
        self.processes: dict[int, Process] = {}
        self.launchers = Launchers(*launcher_of(pages.path))
        self.launcher = self.launchers.nearest
        self.observed = Observations(ends_by_kill=command(self.launcher.pid) == LAUNCHER)
        self.last_seen: dict[int, tuple[int, int, State]] = {}
        self.events = select.epoll()
        self.events.register(server, select.EPOLLIN)
        self.most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 2  # to read /proc
        self.polled: set[int] = set()
        """Ranks without a descriptor that signals their end, for want of pidfds or of descriptors."""
        self.states_read = self.now = time.monotonic()
        self.all_stopped, self.progress = False, 0
        self.reported_at: float | None = None
        self.shells: dict[int, tuple[int, int]] = {}
        """The processes between the launcher and a rank that is not its own child."""
        self.outputs: set[str] = set()  # the pipes and terminals to which ranks write
        self.backup = 0  # the process that ends the ranks if this one can't

    def run(self) -> None:
        """Return when no rank is left."""
        while self.look():
            self.end_the_rest() if self.pages.reported else self.report_fault()
        if self.backup:
            os.kill(self.backup, signal.SIGKILL)
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)  # the launcher waits for its end, and this may be the last descriptor
        self.server.close()
        after_fault = bool(self.pages.reported)
        self.launchers.release(self.outputs, after_fault, GRACE if after_fault else self.pages.timeout)
        os._exit(0)

    def look(self) -> bool:
        """Wait a tick or until a process ends, observe the ranks, and return whether there are any."""
        self.pages.heartbeat += 1
        limit = time.monotonic() + TICK
        while (rest := limit - time.monotonic()) > 0:
            if self._handle_events([handle for handle, _ in self.events.poll(rest)]):
                limit = min(limit, time.monotonic() + SAME_EVENT)
        before, self.now = self.now, time.monotonic()
        self._find_new()
        for rank in [rank for rank in self.polled if not self.processes[rank].alive()]:
            self._note_end(rank)
        if not self._living() and self._is_done():
            return False
        self._count_time(0.0 if self.all_stopped else min(self.now - before, LONGEST_TICK))
        if self.now - self.states_read >= STATES_TICK:
            self._read_states(min(self.now - self.states_read, LONGEST_TICK))
            self._find_absent()
            self.observed.may_come = frozenset(rank for rank, shell in self.shells.items() if lives(*shell))
            self.states_read = self.now
        return True

    def report_fault(self) -> None:
        """If there is a fault, report it and end all ranks."""
        statuses = {rank: status for rank in sorted(self.processes) if (status := self.pages.read(rank)) is not None}
        failed = [rank for rank, status in statuses.items() if status.state == State.FAILED]
        if failed and self.pages.last_words.exists():
            # The rank that failed ends the job itself, so that the exit code is its own.
            self._start_backup()
            self._signal(signal.SIGSTOP, but=failed)
            time.sleep(DRAIN)
            _write(self.pages.last_words.read_text(errors="replace"))
            time.sleep(FORWARD)
            self.pages.reported = 1
            return
        pages = self.pages
        fault = diagnose(statuses, self.observed, pages.timeout, pages.world_size, not pages.other_hosts)
        fault = fault or self._orphaned(statuses)
        if fault is None:
            return
        if state(self.launcher.pid) == "T":
            stopped = f"; what started the ranks (pid {self.launcher.pid}) is stopped (state T)"
            fault = Fault(fault.what + stopped, fault.ranks)
        report = self._report(fault, statuses)
        self._start_backup()
        self._signal(signal.SIGSTOP)
        # Only stopped ones are woken, to forward the report: Open MPI passes SIGCONT on to the ranks, and returns 0.
        stopped_launchers = [launcher for launcher in self.launchers.all if state(launcher.pid) == "T"]
        for launcher in stopped_launchers:
            launcher.send(signal.SIGCONT)
        if not self.observed.gone:  # else the launcher may be ending everything, this report included
            time.sleep(DRAIN)
        _write(report)
        self.pages.reported = 1
        time.sleep(FORWARD)
        self._signal(signal.SIGKILL)
        for launcher in stopped_launchers:
            launcher.send(signal.SIGKILL)

    def _start_backup(self) -> None:
        """Fork a process that ends the ranks later. This one may be killed while they are stopped, or block in the
        write of a report that nothing reads. The backup closes what it inherits, so that nothing waits for it."""
        self.backup = in_child(self._back_up, os.getpid())

    def _back_up(self, guard: int) -> None:
        for number in {*range(3), self.server.fileno(), *self.connections}:
            with suppress(OSError):
                os.close(number)
        time.sleep(BACKUP)
        self._signal(signal.SIGKILL)
        if os.getppid() == guard:  # the launcher may wait for the end of what the guard writes to
            os.kill(guard, signal.SIGKILL)
        self.launchers.release(set(), True, GRACE)

    def end_the_rest(self) -> None:
        """End the ranks that are still there a while after the report."""
        if self.reported_at is None:
            self.reported_at = self.now
        elif self.now - self.reported_at > GRACE:
            self._signal(signal.SIGKILL)

    def _living(self) -> list[int]:
        return [rank for rank in self.processes if rank not in self.observed.gone]

    def _is_done(self) -> bool:
        """Whether no rank has arrived at the last moment; then the pages are removed."""
        if not self.pages.reported:
            self.report_fault()  # all died at once
        with self.pages.locked():
            self._find_new()
            if self._living():
                return False
            self.pages.remove()
            return True

    def _handle_events(self, handles: list[int]) -> bool:
        """Record connections and ends, in this order; return whether a rank ended."""
        ended = False
        for handle in handles:
            if handle == self.server.fileno():
                try:
                    connection, _ = self.server.accept()
                except OSError:  # no descriptor is left, or the socket has no name
                    self.events.unregister(handle)
                    continue
                if connection.fileno() >= self.most or _peer(connection)[1] != os.getuid():
                    connection.close()
                    continue
                _wake_by(connection)
                self.connections[connection.fileno()] = connection
                self.events.register(connection, select.EPOLLRDHUP)
            elif handle in self.connections:
                connection = self.connections.pop(handle)
                pid = _peer(connection)[0]
                self.disconnected[pid] = end_status(pid)
                self.events.unregister(handle)
                connection.close()
            else:
                ended = True
                self._note_end(next(rank for rank, process in self.processes.items() if process.handle == handle))
        return ended

    def _note_end(self, rank: int) -> None:
        process, gone = self.processes[rank], self.observed.gone
        status = end_status(process.pid)
        gone[rank] = self.disconnected.get(process.pid) if status is None else status
        self.polled.discard(rank)
        self._forget_handle(process)
        # MPICH ends all ranks as soon as the first one closes its files, and its memory may take the longest to be
        # freed: the first connection to close identifies the rank that failed.
        order = {pid: number for number, pid in enumerate(self.disconnected)}
        ranks = sorted(gone, key=lambda each: order.get(self.processes[each].pid, len(order)))
        self.observed.gone = {each: gone[each] for each in ranks}

    def _forget_handle(self, process: Process) -> None:
        if process.handle is not None:
            self.events.unregister(process.handle)
            process.close()

    def _find_new(self) -> None:
        dead = list[tuple[bool, int]]()
        for rank in range(self.pages.ranks):
            pid, start = self.pages.owner(rank)
            known = self.processes.get(rank)
            if pid == 0 or (known is not None and (known.pid, known.start) == (pid, start)):
                continue
            if known is not None:
                self._forget_handle(known)
            process = self.processes[rank] = Process(pid, start)
            if process.handle is not None and process.handle >= self.most:
                process.close()
            self.observed.gone.pop(rank, None)
            self.polled.discard(rank)
            self.outputs.update(output for number, output in outputs(pid).items() if number in (1, 2))
            self._find_shell(rank, pid)
            if process.handle is not None:
                self.events.register(process.handle, select.EPOLLIN)
            elif process.alive():
                self.polled.add(rank)
            else:
                status = self.pages.read(rank)
                dead.append((status is not None and is_waiting(status), rank))
        for _, rank in sorted(dead):  # before this guard began: one that waited is not likely to be the first
            self._note_end(rank)

    def _find_shell(self, rank: int, pid: int) -> None:
        shell = pid
        while (above := parent(shell)) > 1 and above != self.launcher.pid:
            shell = above
        if above == self.launcher.pid and shell != pid:
            self.shells[rank] = shell, start_time(shell)
            self.observed.may_come |= {rank}

    def _count_time(self, passed: float) -> None:
        """Add `passed` seconds to those that ranks have waited, or are over."""
        observed, progress = self.observed, self.pages.progress
        observed.idle = observed.idle + passed if progress == self.progress else 0.0
        self.progress = progress
        waited, over = observed.waited, observed.over
        observed.gone_for += passed if observed.gone else 0.0
        for rank in self.processes:
            status = self.pages.read(rank)
            if status is not None:
                seen = (status.pid, status.entered, status.state)
                waits = is_waiting(status)
                same = waits and self.last_seen.get(rank) == seen
                self.last_seen[rank] = seen
                waited[rank] = waited.get(rank, 0.0) + passed if same else 0.0
                # The end of MPI keeps Python's lock: a rank that is in there can't say that its script is over.
                is_over = status.script_over or status.state == State.ENDED
                stays = is_over and not waits and rank not in observed.gone
                over[rank] = over.get(rank, 0.0) + passed if stays else 0.0

    def _read_states(self, passed: float) -> None:
        states = {rank: state(self.processes[rank].pid) for rank in self._living()}
        # All stop by Ctrl-Z, or by a scheduler that suspends the job; but not only those that have not ended yet.
        some_run = any(letter != "T" for letter in states.values())
        some_run = some_run or (bool(self.observed.gone) and state(self.launcher.pid) not in ("T", ""))
        self.all_stopped = not some_run
        before = self.observed.stopped
        self.observed.stopped = {
            rank: before.get(rank, 0.0) + passed if letter == "T" and some_run else 0.0
            for rank, letter in states.items()
        }

    def _find_absent(self) -> None:
        """Record ranks that ended before they imported the package: the launcher may go on silently."""
        unseen = set(range(self.pages.world_size)) - self.processes.keys()
        started = [detect(environ(pid)) for pid in children(self.launcher.pid)] if unseen else []
        known = {launch.rank for launch in started if launch is not None}
        # The variables of another user's process can't be read: it may be any rank.
        self.observed.absent = frozenset(unseen - known if known and None not in started else ())

    def _signal(self, number: int, but: list[int] | None = None) -> None:
        for rank in self._living():
            if rank not in (but or ()):
                self.processes[rank].send(number)

    def _orphaned(self, statuses: dict[int, Status]) -> Fault | None:
        # A rank whose script has ended no longer needs its launcher: Open MPI's may end first.
        working = [status for status in statuses.values() if State.STARTING <= status.state < State.ENDED]
        if not self.launcher.start or self.launcher.alive() or not working:  # 0: hidden, by hidepid of /proc
            return None
        return Fault(f"what started the ranks of this host (pid {self.launcher.pid}) is gone")

    def _report(self, fault: Fault, statuses: dict[int, Status]) -> str:
        frames = collect_stacks(
            {
                rank: (self.processes[rank], status.stack)
                for rank, status in statuses.items()
                if status.stack >= 0  # not of an interpreter that is being taken down: the signal would kill it
                and status.state in (State.IMPORTED, State.STARTING, State.RUNNING)
                and rank not in self.observed.gone
                and not self.observed.stopped.get(rank)
            }
        )
        lines = [f"{fault.what}; ending all ranks (host {platform.node()})"]
        for rank in sorted(sorted(statuses, key=lambda rank: rank not in fault.ranks)[:LINES]):
            status = statuses[rank]
            gone = "is gone, " if rank in self.observed.gone else ""
            end = "has ended, " if status.state == State.ENDED else gone
            now = user_frame(frames.get(rank, []))
            lines.append(f"  rank {rank}: {end}{step_of(status)}{activity(status)}{f'; now at {now}' if now else ''}")
        if len(statuses) > LINES:
            lines.append(f"  and {len(statuses) - LINES} more ranks of this host")
        for rank in fault.ranks[:3]:
            if rank in frames:
                lines.append(f"the stack of rank {rank}, innermost call first:")
                lines += [f"  {frame}" for frame in frames[rank][:LINES]]
        return "\n".join(lines) + "\n"


def _wake_by(connection: socket.socket) -> None:
    """Have the kernel send SIGCONT to this process when a connection ends: a guard that was stopped must see the end of
    the ranks, because the launcher waits until it has closed their standard error."""
    with suppress(OSError):
        fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(connection, F_SETSIG, signal.SIGCONT)
        fcntl.fcntl(connection, fcntl.F_SETFL, fcntl.fcntl(connection, fcntl.F_GETFL) | os.O_ASYNC)


def _peer(connection: socket.socket) -> tuple[int, int]:
    """Number and user of the process at the other end of a connection."""
    pid, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, user


def _write(text: str) -> None:
    with suppress(OSError):  # the pipe is closed
        os.write(2, text.encode(errors="replace"))
