"""What a supervisor waits for: descriptors, times, and the end of children. One thread, no more."""

from __future__ import annotations

import heapq
import os
import select
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
_WAKE_BYTES = 4096


class Timer:
    """Calls ``action`` once at ``when`` (monotonic seconds), unless cancelled before."""

    __slots__ = ("action", "when")

    def __init__(self, when: float, action: Callable[[], None]) -> None:
        self.when = when
        self.action: Callable[[], None] | None = action

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when

    def cancel(self) -> None:
        self.action = None


class Loop:
    """Runs callbacks until told to stop. A descriptor must be forgotten before it is closed."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[int], None]] = {}
        self._timers: list[Timer] = []
        self._children: dict[int, Callable[[int], None]] = {}
        self._ended: dict[int, int] = {}
        self._stopped = False
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _noted)
        self.watch(self._wake_read, READ, self._woken)

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Calls ``callback(events)`` whenever ``fd`` is ready (or hung up); replaces what was asked for it before."""
        if fd in self._watched:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._watched[fd] = callback

    def forget(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def after(self, seconds: float, action: Callable[[], None]) -> Timer:
        timer = Timer(time.monotonic() + seconds, action)
        heapq.heappush(self._timers, timer)
        return timer

    def on_exit(self, pid: int, callback: Callable[[int], None]) -> None:
        """Calls ``callback(wait status)`` when the child has ended; at the next turn if it already has."""
        if pid in self._ended:
            status = self._ended.pop(pid)
            self.after(0, lambda: callback(status))
        else:
            self._children[pid] = callback

    def forget_ended(self) -> None:
        """To be called before a fork: who has ended before it is nobody whom `on_exit` will be asked about."""
        self.reap()
        self._ended.clear()

    def stop(self) -> None:
        """Leaves `run` after the present callback."""
        self._stopped = True

    def run(self) -> None:
        while not self._stopped:
            for fd, events in self._epoll.poll(self._timeout()):
                callback = self._watched.get(fd)  # an earlier callback of this round may have forgotten it
                if callback is not None:
                    callback(events)
                if self._stopped:
                    return
            self._run_timers()

    def _timeout(self) -> float:
        while self._timers and self._timers[0].action is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0].when - time.monotonic()) if self._timers else -1.0

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0].when <= now and not self._stopped:
            timer = heapq.heappop(self._timers)
            if timer.action is not None:
                timer.action()

    def _woken(self, events: int) -> None:
        try:
            os.read(self._wake_read, _WAKE_BYTES)
        except BlockingIOError:
            pass
        self.reap()

    def reap(self) -> None:
        """Takes in every child that has ended, known or not: orphans of the containers become ours."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            callback = self._children.pop(pid, None)
            if callback is not None:
                callback(status)
            else:
                self._ended[pid] = status


def _noted(number: int, frame: object) -> None:
    """The wake-up descriptor does the work; a handler must be set for the kernel to send the signal at all."""
