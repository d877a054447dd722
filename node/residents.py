"""Whose program lives behind which key.

What a core executes is what lies in memory as its guest's key shows it. A VM's program is not in memory here, so this
says for it: it runs where its own key is in use, whatever ASID holds that, and nowhere else. A control block
that names another guest's ASID or save area runs that guest's code on hardware; here nothing runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from node.vmcb import Vmcb


_NO_KEY = b""
"""The mark of guests without one."""
_UNSETTLED = b"?"
"""In place of the mark of a VM that never settled; no key has one so short."""


class Residents:
    """VMs that have begun to run on a host. ``mark_of`` tells the key of an ASID from every other; None without one."""

    def __init__(self, mark_of: Callable[[int], bytes | None]) -> None:
        self._mark_of = mark_of
        self._marks: dict[str, bytes | None] = {}
        """None for a VM whose first control block named a key where another lives."""

    def settle(self, vmcb: Vmcb) -> None:
        """A VM is about to run for the first time."""
        mark = self._mark(vmcb)
        taken = mark != _NO_KEY and any(mark == other for vm, other in self._marks.items() if vm != vmcb.vm)
        self._marks[vmcb.vm] = None if taken else mark

    def at_home(self, vmcb: Vmcb) -> bool:
        """Whether a VM's program is what runs with a control block; of one that never settled nobody says."""
        mark = self._marks.get(vmcb.vm, _UNSETTLED)
        if mark is None or mark is _UNSETTLED:
            return mark is not None
        return mark == (self._mark_of(vmcb.asid) if vmcb.encrypted else _NO_KEY)

    def leave(self, vm: str) -> None:
        """A VM is gone from the host."""
        self._marks.pop(vm, None)

    def _mark(self, vmcb: Vmcb) -> bytes | None:
        return self._mark_of(vmcb.asid) if vmcb.encrypted else _NO_KEY
