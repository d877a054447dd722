"""SNP_DBG_DECRYPT and SNP_DBG_ENCRYPT: whole pages of a guest whose policy allows it (SEV-SNP firmware ABI).

The guest's side must be a page that the RMP gives to its ASID, and what the
firmware writes for the host a Firmware page. Which states the specification
asks of the pages could not be read.
"""

from __future__ import annotations

from psp import command_buffers as buffers
from psp.host_memory import HostMemory
from psp.policy import SnpPolicy
from psp.status import PspError, Status
from psp.system_bus import PAGE_BYTES, SystemBus


def debug_decrypt(bus: SystemBus, memory: HostMemory, policy: int, asid: int, debug: buffers.SnpDebug) -> None:
    """Give out a guest's page in plaintext."""
    _check(policy, asid, debug)
    _check_owner(bus, debug.source, asid)
    memory.check_writable(debug.destination, PAGE_BYTES)
    bus.write(debug.destination, bus.read_guest(debug.source, PAGE_BYTES, asid))


def debug_encrypt(bus: SystemBus, memory: HostMemory, policy: int, asid: int, debug: buffers.SnpDebug) -> None:
    """Replace a guest's page by the plaintext that the host has laid down."""
    _check(policy, asid, debug)
    memory.check_present(debug.source, PAGE_BYTES)
    _check_owner(bus, debug.destination, asid)
    bus.write_guest(debug.destination, bus.read(debug.source, PAGE_BYTES), asid)


def _check(policy: int, asid: int, debug: buffers.SnpDebug) -> None:
    if not policy & SnpPolicy.DEBUG:
        raise PspError(Status.POLICY_FAILURE)
    if not asid:
        raise PspError(Status.INACTIVE)
    if debug.source % PAGE_BYTES or debug.destination % PAGE_BYTES:
        raise PspError(Status.INVALID_ADDRESS)


def _check_owner(bus: SystemBus, spa: int, asid: int) -> None:
    if not bus.rmp_covers(spa):
        raise PspError(Status.INVALID_ADDRESS)
    entry = bus.rmp_entry(spa)
    if not entry.assigned or entry.asid != asid:
        raise PspError(Status.INVALID_PAGE_OWNER)
