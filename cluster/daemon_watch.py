"""A watch over the processes that Ray starts, while Ray cannot be asked: one that ends is found out within seconds.

Ray itself would wait for it for up to a minute, mostly below Python, where no signal is
heard, then write lines of its own and end this process; for one that stands still it would
wait for ever. So a thread looks. Who waits in Python is interrupted; who waits below it is
not to be reached, and the process is ended as Ray would, but soon, and with nothing left running.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

from cluster.process_family import Process, is_alive, is_stopped

LOOK_S = 0.1
GRACE_S = 2.0
"""How long somebody who was interrupted may take to leave the block."""
STILL_S = 10.0
"""How long a process may stand still (SIGSTOP): whoever waits for it would wait for ever."""


class DaemonEnded(BaseException):
    """One of the processes ended, or as good as that: it stands still. The message names it, and says which.

    Like KeyboardInterrupt no error that Ray would catch.
    """


class DaemonWatch:
    """A ``with`` block in which processes that are noted must live, and not stand still for ``STILL_S``.

    Raises DaemonEnded in it as soon as one does not, in the main thread alone, and behind it, where an
    error that comes out of the block is taken to come of that; ``give_up`` is called
    with the same words, in another thread, if the block is not left then, and is to end this process.
    """

    def __init__(self, give_up: Callable[[str], None]) -> None:
        self._give_up = give_up
        self._noted: list[tuple[str, Process]] = []
        self._still: dict[Process, float] = {}
        """Those that stand still, and since when."""
        self._left = threading.Event()
        self._before: object = None
        self._caller = threading.current_thread()
        self._thread = threading.Thread(target=self._look, name="watch over Ray's start", daemon=True)
        self.ended = ""
        """The process that ended, by name, and how."""

    def note(self, name: str, process: Process) -> None:
        """Watch a process too."""
        self._noted.append((name, process))

    def __enter__(self) -> Self:
        self._caller = threading.current_thread()
        if self._in_main_thread:
            self._before = signal.signal(signal.SIGALRM, self._interrupt)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._thread.join()
        if self._in_main_thread:
            signal.signal(signal.SIGALRM, signal.SIG_DFL if self._before is None else self._before)  # type: ignore[arg-type]
        self.ended = self.ended or ("" if error is None else self._gone(0.0))
        if self.ended and not isinstance(error, DaemonEnded):
            raise DaemonEnded(self.ended) from error

    @property
    def _in_main_thread(self) -> bool:
        return self._caller is threading.main_thread()

    def _interrupt(self, _: int, __: FrameType | None) -> None:
        if self.ended and not self._left.is_set():
            raise DaemonEnded(self.ended)

    def _gone(self, patience_s: float) -> str:
        """A process that ended, or has stood still for so long: its name, and which of the two."""
        found = ((name, self._wrong_with(process, patience_s)) for name, process in tuple(self._noted))
        return next((f"{name} {wrong}" for name, wrong in found if wrong), "")

    def _wrong_with(self, process: Process, patience_s: float) -> str:
        if not is_alive(process):
            return "ended unexpectedly"
        if not is_stopped(process[0]):
            self._still.pop(process, None)
            return ""
        still_s = time.monotonic() - self._still.setdefault(process, time.monotonic())
        return f"has stood still for {still_s:.0f} s" if still_s >= patience_s else ""

    def _look(self) -> None:
        while not self._left.wait(LOOK_S):
            self.ended = self._gone(STILL_S)
            if self.ended:
                break
        else:
            return
        if self._in_main_thread and self._caller.ident is not None:
            signal.pthread_kill(self._caller.ident, signal.SIGALRM)
        if not self._left.wait(GRACE_S):
            self._give_up(self.ended)
