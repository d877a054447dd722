"""DBG_DECRYPT, DBG_ENCRYPT and COPY of the SEV interface: a guest's memory out, in, and to another place."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from psp import command_buffers as buffers
from psp.commands import LegacyCommand
from psp.host_memory import HostMemory
from psp.legacy_guest import LegacyGuest, guest_in_state
from psp.policy import LegacyPolicy
from psp.status import PspError, Status
from psp.system_bus import LARGE_PAGE_BYTES, SystemBus

_GRANULE_BYTES = 16
_AT_ONCE_BYTES = LARGE_PAGE_BYTES


class LegacyDebug:
    """Handlers of the debug commands, and of COPY."""

    def __init__(self, bus: SystemBus, memory: HostMemory, guests: Mapping[int, LegacyGuest]) -> None:
        self._bus = bus
        self._memory = memory
        self._guests = guests

    def decrypt(self, debug: buffers.Debug) -> None:
        """DBG_DECRYPT: what the guest has at ``source``, in plaintext to ``destination``."""
        guest = self._checked(debug, LegacyCommand.DBG_DECRYPT)
        _copy(debug, lambda spa, length: self._bus.read_guest(spa, length, guest.asid), self._bus.write)

    def encrypt(self, debug: buffers.Debug) -> None:
        """DBG_ENCRYPT: plaintext at ``source`` to ``destination``, as the guest will read it."""
        guest = self._checked(debug, LegacyCommand.DBG_ENCRYPT)
        _copy(debug, self._bus.read, lambda spa, data: self._bus.write_guest(spa, data, guest.asid))

    def copy(self, copy: buffers.Copy) -> None:
        """COPY: what the guest has at ``source`` to ``destination``, encrypted for that address.

        Ranges that meet are INVALID_ADDRESS; what real firmware says of them is not published.
        """
        guest = guest_in_state(self._guests, copy.handle, LegacyCommand.COPY)
        _check_blocks(copy.source, copy.destination, copy.length)
        if abs(copy.source - copy.destination) < copy.length:
            raise PspError(Status.INVALID_ADDRESS)
        if not guest.asid:
            raise PspError(Status.INACTIVE)
        self._memory.check_present(copy.source, copy.length)
        self._memory.check_writable(copy.destination, copy.length)
        _copy(
            copy,
            lambda spa, length: self._bus.read_guest(spa, length, guest.asid),
            lambda spa, data: self._bus.write_guest(spa, data, guest.asid),
        )

    def _checked(self, debug: buffers.Debug, command: LegacyCommand) -> LegacyGuest:
        guest = guest_in_state(self._guests, debug.handle, command)
        if guest.policy & LegacyPolicy.NODBG:
            raise PspError(Status.POLICY_FAILURE)
        _check_blocks(debug.source, debug.destination, debug.length)
        if not guest.asid:
            raise PspError(Status.INACTIVE)
        self._memory.check_present(debug.source, debug.length)
        self._memory.check_writable(debug.destination, debug.length)
        return guest


def _check_blocks(source: int, destination: int, length: int) -> None:
    if length == 0 or length % _GRANULE_BYTES:
        raise PspError(Status.INVALID_LENGTH)
    if source % _GRANULE_BYTES or destination % _GRANULE_BYTES:
        raise PspError(Status.INVALID_ADDRESS)


def _copy(
    ordered: buffers.Debug | buffers.Copy, read: Callable[[int, int], bytes], write: Callable[[int, bytes], None]
) -> None:
    for at in range(0, ordered.length, _AT_ONCE_BYTES):
        write(ordered.destination + at, read(ordered.source + at, min(_AT_ONCE_BYTES, ordered.length - at)))
