"""The firmware as TEE security manager: which TIO command is whose, and when any of them may come.

A machine without trusted I/O answers UNSUPPORTED to all of them. That TIO_STATUS before SNP_INIT_EX has switched TIO
on, other commands before TIO_INIT, and a second TIO_INIT are INVALID_PLATFORM_STATE is the laboratory's choice.
"""

from __future__ import annotations

from collections.abc import Callable

from psp.asid_ranges import AsidRanges
from psp.byte_layout import ByteLayout
from psp.commands import SnpCommand
from psp.guest_requests import GuestRequests
from psp.host_memory import HostMemory
from psp.snp_guests import SnpGuests
from psp.status import PspError, Status
from psp.system_bus import SystemBus
from psp.tsm import tio_buffers as buffers
from psp.tsm.contexts import DEVICE_CONTEXT_BYTES, TDI_CONTEXT_BYTES, Contexts
from psp.tsm.device_commands import DeviceCommands
from psp.tsm.exchange_buffer import OUTPUT, REQUEST, RESPONSE, SCRATCH
from psp.tsm.fence_commands import FenceCommands
from psp.tsm.guest_channel import GuestChannel
from psp.tsm.spdm_loop import SpdmLoop
from psp.tsm.status_records import TIO_ENABLED, TIO_INIT_DONE, TioStatusRecord
from psp.tsm.tdi_commands import TdiCommands
from psp.tsm.trusted_io import TrustedIo

_ALGORITHMS = 0b10_11_111_11_11
"""Two groups, two ciphers, three signatures, two hashes and the key schedule, a bit each: how the word is laid out is
the laboratory's guess."""


class TeeSecurityManager:
    """State of TIO. ``enabled`` is what SNP_INIT_EX was given."""

    def __init__(
        self,
        bus: SystemBus,
        memory: HostMemory,
        guests: SnpGuests,
        ranges: AsidRanges,
        requests: GuestRequests,
        random: Callable[[str, int], bytes],
    ) -> None:
        self.enabled = False
        self.initialised = False
        self._bus = bus
        self._memory = memory
        self.contexts = Contexts(bus, memory, random)
        loop = SpdmLoop(memory, self.contexts.overlaps)
        tdis = TdiCommands(bus, memory, self.contexts, loop, guests, self._trusted_io, random)
        self.tdi_switches = tdis.switches
        guests.before_decommission = tdis.guest_ends
        channel = GuestChannel(bus, self.contexts, loop, requests, self._trusted_io)
        self.message_switches = channel.switches
        fences = FenceCommands(memory, self.contexts, guests, ranges, self._trusted_io)
        self._devices = devices = DeviceCommands(memory, self.contexts, loop, self._trusted_io, random, tdis.unlock)
        self.device_switches = devices.switches
        self.handlers: dict[int, Callable[..., ByteLayout | None]] = {
            command: self._checked(command, handler)
            for command, handler in (
                (SnpCommand.TIO_STATUS, self._status),
                (SnpCommand.TIO_INIT, self._init),
                (SnpCommand.TIO_DEV_CREATE, devices.create),
                (SnpCommand.TIO_DEV_RECLAIM, devices.reclaim),
                (SnpCommand.TIO_DEV_CONNECT, devices.connect),
                (SnpCommand.TIO_DEV_DISCONNECT, devices.disconnect),
                (SnpCommand.TIO_DEV_STATUS, devices.status),
                (SnpCommand.TIO_DEV_MEASUREMENTS, devices.measurements),
                (SnpCommand.TIO_DEV_CERTIFICATES, devices.certificates),
                (SnpCommand.TIO_ROLL_KEY, devices.roll_key),
                (SnpCommand.TIO_TDI_CREATE, tdis.create),
                (SnpCommand.TIO_TDI_RECLAIM, tdis.reclaim),
                (SnpCommand.TIO_TDI_BIND, tdis.bind),
                (SnpCommand.TIO_TDI_UNBIND, tdis.unbind),
                (SnpCommand.TIO_TDI_REPORT, tdis.report),
                (SnpCommand.TIO_TDI_STATUS, tdis.status),
                (SnpCommand.TIO_TDI_INFO, tdis.info),
                (SnpCommand.TIO_GUEST_REQUEST, channel.request),
                (SnpCommand.TIO_ASID_FENCE_CLEAR, fences.clear),
                (SnpCommand.TIO_ASID_FENCE_STATUS, fences.status),
            )
        }

    def shut_down(self) -> None:
        """What SNP_SHUTDOWN leaves: no devices, no keys, and pages that can be taken back."""
        for device in list(self.contexts.devices.values()):
            self._devices.forget(device, reclaim=True)
        self.enabled = self.initialised = False

    # What every command goes through.

    def _checked(self, command: SnpCommand, handler: Callable[..., None]) -> Callable[[buffers.TioOrder], None]:
        needs_init, flags = command not in _BEFORE_INIT, _FLAGS.get(command, 0)

        def checked(order: buffers.TioOrder) -> None:
            if self._bus.trusted_io is None:
                raise PspError(Status.UNSUPPORTED)
            if not self.enabled or (needs_init and not self.initialised):
                raise PspError(Status.INVALID_PLATFORM_STATE)
            if order.length != order.SIZE:
                raise PspError(Status.INVALID_LENGTH)
            if order.flags & ~flags:
                raise PspError(Status.INVALID_PARAM)
            handler(order)

        return checked

    def _trusted_io(self) -> TrustedIo:
        trusted_io = self._bus.trusted_io
        assert trusted_io is not None, "expected a machine with trusted I/O"
        return trusted_io

    # The platform.

    def _status(self, order: buffers.TioStatus) -> None:
        self._memory.check_writable(order.address, TioStatusRecord.SIZE)
        record = TioStatusRecord(
            TioStatusRecord.SIZE,
            TIO_ENABLED | TIO_INIT_DONE * self.initialised,
            REQUEST.least_bytes,
            REQUEST.most_bytes,
            SCRATCH.least_bytes,
            SCRATCH.most_bytes,
            OUTPUT.least_bytes,
            OUTPUT.most_bytes,
            RESPONSE.least_bytes,
            RESPONSE.most_bytes,
            DEVICE_CONTEXT_BYTES,
            TDI_CONTEXT_BYTES,
            _ALGORITHMS,
        )
        self._memory.write(order.address, record.pack())

    def _init(self, _: buffers.TioInit) -> None:
        if self.initialised:
            raise PspError(Status.INVALID_PLATFORM_STATE)
        self.initialised = True


_FLAGS = {
    SnpCommand.TIO_DEV_DISCONNECT: buffers.FORCE,
    SnpCommand.TIO_TDI_UNBIND: buffers.FORCE,
    SnpCommand.TIO_DEV_MEASUREMENTS: buffers.RAW_BIT_STREAM,
}
"""Flags that mean something, by command."""
_BEFORE_INIT = frozenset({SnpCommand.TIO_STATUS, SnpCommand.TIO_INIT})
