"""SNP_DBG_DECRYPT and SNP_DBG_ENCRYPT: whole pages of a guest whose policy allows it (SEV-SNP firmware ABI).

The guest's side must be a page that the RMP gives to its ASID, and what the
firmware writes for the host a Firmware page. Which states the specification
asks of the pages could not be read.
"""

from __future__ import annotations

from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.host_memory import HostMemory
from psp.policy import SnpPolicy
from psp.snp_guests import SnpGuests
from psp.status import PspError, Status
from psp.system_bus import PAGE_BYTES, SystemBus


class SnpDebugging:
    """Handlers of the debug commands."""

    def __init__(self, bus: SystemBus, memory: HostMemory, guests: SnpGuests) -> None:
        self._bus = bus
        self._memory = memory
        self._guests = guests

    def decrypt(self, debug: buffers.SnpDebug) -> None:
        """SNP_DBG_DECRYPT: give out a guest's page in plaintext."""
        asid = self._asid(debug, SnpCommand.DBG_DECRYPT)
        _check_owner(self._bus, debug.source, asid)
        self._memory.check_writable(debug.destination, PAGE_BYTES)
        self._bus.write(debug.destination, self._bus.read_guest(debug.source, PAGE_BYTES, asid))

    def encrypt(self, debug: buffers.SnpDebug) -> None:
        """SNP_DBG_ENCRYPT: replace a guest's page by the plaintext that the host has laid down."""
        asid = self._asid(debug, SnpCommand.DBG_ENCRYPT)
        self._memory.check_present(debug.source, PAGE_BYTES)
        _check_owner(self._bus, debug.destination, asid)
        self._bus.write_guest(debug.destination, self._bus.read(debug.source, PAGE_BYTES), asid)

    def _asid(self, debug: buffers.SnpDebug, command: SnpCommand) -> int:
        """The key that the guest's page lies under."""
        context = self._guests.in_state(debug.gctx, command)
        if not context.policy & SnpPolicy.DEBUG:
            raise PspError(Status.POLICY_FAILURE)
        asid = self._guests.active_asid(context)
        if debug.source % PAGE_BYTES or debug.destination % PAGE_BYTES:
            raise PspError(Status.INVALID_ADDRESS)
        return asid


def _check_owner(bus: SystemBus, spa: int, asid: int) -> None:
    if spa >= bus.dram_bytes or not bus.rmp_covers(spa):
        raise PspError(Status.INVALID_ADDRESS)
    entry = bus.rmp_entry(spa)
    if not entry.assigned or entry.asid != asid:
        raise PspError(Status.INVALID_PAGE_OWNER)
