"""Which pages of a VM were written since its dirty log began, and when last."""

from __future__ import annotations

from psp.system_bus import PAGE_BYTES


class DirtyLog:
    """What the hypervisor learns of a guest's writes by write-protecting its pages (KVM's dirty logging)."""

    def __init__(self) -> None:
        self._last_ns: dict[int, int] = {}

    def mark(self, gpa: int, length: int, now_ns: int) -> None:
        """The guest, or a device for it, wrote a range."""
        for page in range(gpa // PAGE_BYTES, -(-(gpa + length) // PAGE_BYTES)):
            self._last_ns[page] = now_ns

    def written_since(self, time_ns: int) -> int:
        """Pages that were written at or after a time."""
        return sum([last >= time_ns for last in self._last_ns.values()])
