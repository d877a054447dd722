"""Who is in guest mode: which save areas are in use, and for how long.

A vCPU runs from its VMRUN until it exits. One that the host's own scheduler entered
exits when that says so; one that the operation ``VmRun`` put on a hardware thread
exits when the thread executes another VMRUN, because for that it must be back in the
host. Either exits when it is preempted. A save area is in use as long as its
vCPU runs: nobody changes its RMP entry, and no other thread enters with it (APM volume 2,
15.36.12; ``spec/firmware/rmp.md``, section 5). That of a VM without SNP is so too, as Linux tells of
control blocks: its core stores registers there at an exit, and asks the RMP at VMRUN alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from node.rmp import ReverseMapTable

Who = tuple[str, int]
"""A VM and the number of its vCPU."""
NOWHERE = -1
"""In place of the address of a save area that nobody has asked for, nor for any page near."""
_NO_PAGE = (None, NOWHERE)


class RunningVcpus:
    """The vCPUs in guest mode on one host. ``rmp`` is the table of the moment, None on a part without."""

    def __init__(self, rmp: Callable[[], ReverseMapTable | None]) -> None:
        self._rmp = rmp
        self._areas: dict[Who, int] = {}
        """Save areas in use."""
        self._scheduled: set[Who] = set()
        """Whom the host's scheduler runs, if they are not out for a while."""
        self.threads: dict[int, Who] = {}
        """Whom ``VmRun`` put where."""
        self.preempted: set[Who] = set()
        """Of the scheduler's those that are out until it enters them again."""

    def schedule(self, who: Who, area: int) -> None:
        """The host's scheduler enters a vCPU with a save area."""
        if self.threads:
            self._off_thread(who)
        self._scheduled.add(who)
        self.preempted.discard(who)
        self._use(who, area)

    def take(self, who: Who, thread: int, area: int) -> None:
        """A thread, which is free, enters a vCPU by VMRUN."""
        if self.threads:
            self._off_thread(who)
        self.threads[thread] = who
        self.preempted.discard(who)
        self._use(who, area)

    def thread_of(self, who: Who) -> int | None:
        """Where ``VmRun`` put a vCPU that still runs there."""
        return next((thread for thread, one in self.threads.items() if one == who), None)

    def is_scheduled(self, who: Who) -> bool:
        """Whether the host's scheduler has entered a vCPU, and it has not exited since."""
        return who in self._scheduled and who not in self.preempted

    def runs_on(self, thread: int) -> bool:
        """Whether a vCPU runs where ``VmRun`` put it, on this thread."""
        return thread in self.threads

    def vacate(self, thread: int) -> None:
        """A thread is about to execute VMRUN: what ran there by ``VmRun`` has exited."""
        who = self.threads.pop(thread, None)
        if who is not None:
            self.preempt(who)

    def preempt(self, who: Who) -> None:
        """A vCPU exits and is not entered at once; one that does not run is left alone."""
        if who in self._scheduled:
            self.preempted.add(who)
        self._off_thread(who)
        self._free(who)

    def leave(self, who: Who) -> None:
        """A vCPU is off its core for good; one that is already is left alone."""
        if who in self._areas or who in self._scheduled:  # Who is on a thread uses an area.
            self._scheduled.discard(who)
            self.preempted.discard(who)
            if self.threads:
                self._off_thread(who)
            self._free(who)

    def forget(self, vm: str) -> None:
        """A VM's control blocks go: what ``VmRun`` entered with them has exited."""
        for thread, who in list(self.threads.items()):
            if who[0] == vm:
                self.vacate(thread)

    def found(self, who: Who, area: int) -> None:
        """Where a vCPU has its save area that was entered with one that nobody had asked for."""
        if self._areas.get(who) == NOWHERE:
            self._use(who, area)

    def _off_thread(self, who: Who) -> None:
        for thread, one in self.threads.items():
            if one == who:  # And on no other.
                del self.threads[thread]
                break

    def _use(self, who: Who, area: int) -> None:
        before = self._areas.get(who)
        if before == area:
            return
        if before is not None:
            self._free(who)
        self._areas[who] = area
        if area in _NO_PAGE:
            return
        rmp = self._rmp()
        if rmp is not None:
            rmp.checks.enter(area)

    def _free(self, who: Who) -> None:
        area = self._areas.pop(who, None)
        if area in _NO_PAGE:
            return
        rmp = self._rmp()
        if not (rmp is None or area in self._areas.values()):
            rmp.checks.leave(area)
