"""SNP_LAUNCH_UPDATE of many pages that follow each other, as a launch is made of: the same, in fewer steps.

What is the same for a whole run is done once: the context is read and written, entries
are looked up and replaced, memory is encrypted, and pages whose digests are known from the
launch before are not hashed again. Wherever anything is out of the ordinary nothing is done
here, and the commands come one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import takewhile

from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.host_memory import HostMemory
from psp.launch_digest import MEASURED_CONTENTS, NO_CONTENTS, LaunchDigest, PageType, page_digests
from psp.page_state import PageState, page_state
from psp.register_protection import is_asked_for
from psp.snp_guests import SnpGuests
from psp.status import PspError
from psp.system_bus import PAGE_BYTES, RmpEntry, SystemBus

_ZEROS = bytes(PAGE_BYTES)
_ORDINARY = frozenset({PageType.NORMAL, PageType.VMSA, PageType.ZERO, PageType.UNMEASURED})
"""Types whose contents the firmware neither checks nor makes of a context."""

Run = tuple[buffers.SnpLaunchUpdate, int]
"""The first of so many updates whose pages follow each other."""


class LaunchRuns:
    """The launch of runs of pages, for ``SnpLaunch``."""

    def __init__(self, bus: SystemBus, memory: HostMemory, guests: SnpGuests) -> None:
        self._bus = bus
        self._memory = memory
        self._guests = guests

    def update(self, contents: Sequence[bytes]) -> int:
        """How many of the first commands were carried out, all with SUCCESS; those left come one by one."""
        gctx, *_ = buffers.SnpLaunchUpdate.values(contents[0])
        if not buffers.SnpLaunchUpdate.reserved_of_all_are_zero(contents):
            contents = list(takewhile(buffers.SnpLaunchUpdate.reserved_is_zero, contents))
            if not contents:
                return 0
        try:
            context = self._guests.in_state(gctx, SnpCommand.LAUNCH_UPDATE)
            asid = self._guests.active_asid(context)
        except PspError:
            return 0
        digest, done = LaunchDigest(context.digest), 0
        for first, count in _runs(contents):
            entry = self._entry(first, count, asid)
            clocked = context.tsc_scale and first.page_type == PageType.VMSA
            if first.gctx != gctx or entry is None or clocked:
                break
            self._launch(first, count, entry, digest)
            done += count
        if done:
            self._guests.pages.write_packed(gctx, context.packed_with_digest(digest.value))
        return done

    def _entry(self, first: buffers.SnpLaunchUpdate, count: int, asid: int) -> RmpEntry | None:
        """The first page's entry, if the run is one that every single command would take."""
        spa, length = first.address, count * PAGE_BYTES
        if first.large or first.imi or first.page_type not in _ORDINARY or spa % PAGE_BYTES or not first.is_well_formed:
            return None
        if spa > self._bus.dram_bytes - length or not self._bus.rmp_covers(spa):
            return None
        if self._memory.pages.in_use(spa, length):
            return None
        entry = self._bus.rmp_run(spa, count)
        if entry is None or entry.large or entry.asid != asid or page_state(entry) is not PageState.PRE_GUEST:
            return None
        return None if first.page_type == PageType.VMSA and self._masks(spa, count) else entry

    def _masks(self, spa: int, count: int) -> bool:
        """Whether there is a save area among them that is not encrypted as it was measured."""
        return any(is_asked_for(self._bus.read(spa + at * PAGE_BYTES, PAGE_BYTES)) for at in range(count))

    def _launch(self, first: buffers.SnpLaunchUpdate, count: int, entry: RmpEntry, digest: LaunchDigest) -> None:
        spa, length, kind = first.address, count * PAGE_BYTES, PageType(first.page_type)
        permissions = first.vmpl_permissions
        digests = self._digests(spa, length) if kind in MEASURED_CONTENTS else (NO_CONTENTS,) * count
        digest.extend(kind, entry.gpa, digests, vmpl_permissions=permissions)
        if kind is PageType.ZERO:
            for page in range(spa, spa + length, PAGE_BYTES):
                self._bus.write_guest(page, _ZEROS, entry.asid)  # the same zeros, which memory keeps until it is read
        else:
            self._bus.encrypt_in_place(spa, length, entry.asid)
        validated = replace(
            entry,
            immutable=False,
            validated=True,
            vmsa=kind is PageType.VMSA,
            vmpl_permissions=(entry.vmpl_permissions[0], *permissions),
        )
        self._bus.rmp_set_pages(spa, length, validated)

    def _digests(self, spa: int, length: int) -> tuple[bytes, ...]:
        source = self._bus.source(spa, length)
        if source is None or source[1] % PAGE_BYTES:
            return page_digests.__wrapped__(self._bus.read(spa, length))
        whole, offset = source
        return page_digests(whole)[offset // PAGE_BYTES : (offset + length) // PAGE_BYTES]


def _runs(contents: Sequence[bytes]) -> Iterator[Run]:
    """Updates cut where the next is not the same of the next page."""
    values = buffers.SnpLaunchUpdate.values_of_all(contents)
    first, count = values[0], 0
    for one in values:
        gctx, flags, address, permissions = first
        if one != (gctx, flags, address + count * PAGE_BYTES, permissions):
            yield buffers.SnpLaunchUpdate(*first), count
            first, count = one, 0
        count += 1
    yield buffers.SnpLaunchUpdate(*first), count
