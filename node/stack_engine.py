"""Stack engines: what a core's front end makes of PUSH, POP, CALL and RET (CVE-2025-29943, AMD-SB-3027).

It keeps the changes of RSP to itself and hands them on later. A bit of DE_CFG, which is the core's and not one
thread's, stops that: while it is set, changes do not reach RSP, and once it is cleared all of them do at one time.
Where the thread itself sets it, what is open is settled at its exit; so it takes the other thread of the core to
disturb a guest. What is published is this effect; how real engines come to it is not.
"""

from __future__ import annotations

from node.core_msrs import STACK_ENGINE_OFF, CoreMsrs, Msr

_WORD = (1 << 64) - 1


class StackEngines:
    """The engines of all threads of a host. With ``fixed`` microcode a thread's bit is its own."""

    def __init__(self, msrs: CoreMsrs, threads_per_core: int, *, fixed: bool) -> None:
        self._msrs = msrs
        self._threads_per_core = threads_per_core
        self._fixed = fixed
        self._open: dict[int, int] = {}
        """By thread: changes that have not reached RSP."""

    def moved(self, thread: int, rsp: int, by: int) -> int:
        """RSP as the thread has it after a push or pop of so many bytes."""
        if self._is_stopped(thread):
            self._open[thread] = self._open.get(thread, 0) + by
            return rsp
        return rsp + self._open.pop(thread, 0) + by & _WORD

    def _is_stopped(self, thread: int) -> bool:
        if self._fixed or self._msrs.values(Msr.DE_CFG) == (0,):
            return False
        first = thread // self._threads_per_core * self._threads_per_core
        others = [one for one in range(first, first + self._threads_per_core) if one != thread]
        return any(self._msrs.read(one, Msr.DE_CFG) & STACK_ENGINE_OFF for one in others)
