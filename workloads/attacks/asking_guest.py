"""A small SNP guest whose code asks for a report, through firmware, and shows it to the victim's owner."""

from __future__ import annotations

from dataclasses import dataclass, field

from node.operations import HostRead, RmpUpdate, Wbinvd
from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.system_bus import PAGE_BYTES, RmpEntry
from workloads.attacks.owner_operations import GuestAsks, GuestShows
from workloads.attacks.small_guest import SmallGuest, Steps
from workloads.attacks.target import Target

SECRET_OFFSET, SECRET_BYTES = 2048, 64
"""Where in the page of its code it keeps what its owner sends."""
_FIRMWARE, _HYPERVISOR = RmpEntry(assigned=True, immutable=True), RmpEntry()


@dataclass(slots=True)
class AskingGuest:
    """The guest, and two frames for its messages. ``shown`` is the last report that went over the network."""

    guest: SmallGuest
    request: int
    response: int
    shown: bytes = field(default=b"", init=False)

    @classmethod
    def of(cls, target: Target) -> AskingGuest:
        """One in the target's spare frames."""
        request, response = target.spare[3:5]
        return cls(SmallGuest.of(target), request, response)

    def ask(self, vmpl: int = 0) -> Steps:
        """From the owner's nonce to its secret, if it sends it."""
        guest = self.guest
        yield (GuestAsks(guest.code, guest.secrets, guest.asid, self.request, vmpl),)
        yield from self.carry()
        yield from self.show(vmpl)

    def carry(self) -> Steps:
        """SNP_GUEST_REQUEST, as a hypervisor passes a request on."""
        yield (RmpUpdate(self.response, PAGE_BYTES, _FIRMWARE),)
        asked = buffers.SnpGuestRequest(self.guest.context, self.request, self.response)
        yield self.guest.call(SnpCommand.GUEST_REQUEST, asked)
        yield self.guest.call(SnpCommand.PAGE_RECLAIM, buffers.SnpPageReclaim(self.response))
        yield (RmpUpdate(self.response, PAGE_BYTES, _HYPERVISOR),)

    def show(self, vmpl: int = 0) -> Steps:
        """Let the code see what came back."""
        guest = self.guest
        (seen,) = yield (GuestShows(guest.code, guest.secrets, guest.asid, self.response, vmpl),)
        self.shown = seen if isinstance(seen, bytes) else b""

    def debug(self, target: Target) -> Steps:
        """SNP_DBG_DECRYPT of the page that has the secret, and read what comes out."""
        page = target.spare[5]
        yield (Wbinvd(), RmpUpdate(page, PAGE_BYTES, _FIRMWARE))
        yield self.guest.call(SnpCommand.DBG_DECRYPT, buffers.SnpDebug(self.guest.context, self.guest.code, page))
        yield self.guest.call(SnpCommand.PAGE_RECLAIM, buffers.SnpPageReclaim(page))
        yield (RmpUpdate(page, PAGE_BYTES, _HYPERVISOR), HostRead(page + SECRET_OFFSET, SECRET_BYTES))


