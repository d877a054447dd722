"""The secure processor: a mailbox in front of two firmware interfaces.

The order of checks of every command: known, built, platform state, buffer in
memory, buffer writable where fields return, reserved bytes zero, then the handler's
own. That reserved bytes are INVALID_PARAM is the laboratory's where no text says it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from psp import command_buffers as buffers
from psp.asid_flush import AsidFlush
from psp.asid_ranges import AsidRanges
from psp.commands import COMMANDS, LegacyCommand, LegacyPlatformState, SnpCommand, is_snp
from psp.core_permits import CorePermits
from psp.firmware_pages import FirmwarePages
from psp.firmware_update import FirmwareUpdate
from psp.host_memory import HostMemory
from psp.installed_firmware import FirmwareLevel, InstalledFirmware
from psp.legacy import LegacyFirmware
from psp.legacy_guest import ShortBuffer
from psp.mailbox import Mailbox
from psp.product_line import PRODUCT_LINES, ProductLine
from psp.ring_buffer import RingBuffers
from psp.snp import SnpFirmware
from psp.status import PspError, Status
from psp.system_bus import SystemBus

_GENOA = PRODUCT_LINES["Genoa"]
_GENOAS = FirmwareLevel((1, 55, 40), 0x5417_0000_0000_000A)
"""As a public report of a Genoa has it."""


@dataclass(frozen=True, slots=True)
class LaunchRecord:
    """The laboratory's own view of a guest inside the firmware; no hardware interface returns it."""

    digest: bytes
    policy: int
    asid: int
    state: int
    tcb: int | None = None
    """LAUNCH_TCB; None of a guest that has none."""


class SecurityProcessor:
    """One host's secure processor. ``octets`` gives random bytes for (purpose, counter, length)."""

    def __init__(
        self,
        bus: SystemBus,
        octets: Callable[[str, int, int], bytes],
        level: FirmwareLevel = _GENOAS,
        line: ProductLine = _GENOA,
    ) -> None:
        self._octets = octets
        self._drawn: dict[str, int] = {}
        self._pages = pages = FirmwarePages()
        self._legacy_memory = HostMemory(bus, pages, Status.INVALID_ADDRESS)
        self._snp_memory = HostMemory(bus, pages, Status.INVALID_PAGE_STATE)
        flush, ranges, permits = AsidFlush(bus), AsidRanges(bus), CorePermits(bus)
        self.firmware = InstalledFirmware(level)
        """What runs on it, for both interfaces."""
        self.asid_ranges = ranges
        """Which ASIDs it gives to guests of each kind, as SNP_INIT_EX has split them."""
        self.legacy = LegacyFirmware(
            bus, self._legacy_memory, flush, ranges, permits, self._random, self.firmware, line
        )
        self.snp = SnpFirmware(
            bus,
            self._snp_memory,
            flush,
            ranges,
            permits,
            self._random,
            self.firmware,
            self._legacy_is_up,
            lambda: self.legacy.keys.chip,
        )
        self._offer_updates(line)
        self.mailbox = Mailbox(self._execute)
        self.legacy.handlers[LegacyCommand.RING_BUFFER] = self._ring_buffer

    def submit(self, command: int, buffer_spa: int = 0) -> Status:
        """Ring the mailbox for one command and return its status."""
        return self.mailbox.submit(command, buffer_spa)

    def submit_launch_updates(self, contents: Sequence[bytes], buffer_spa: int) -> int:
        """Ring the mailbox for SNP_LAUNCH_UPDATE once for each content of one buffer, which is not read from memory.

        How many of the first were carried out, all with SUCCESS; as if the rest had not been asked for.
        """
        row = COMMANDS[SnpCommand.LAUNCH_UPDATE]
        if self.snp.state not in row.states or self.mailbox.ring is not None:
            return 0
        try:
            self._snp_memory.check_present(buffer_spa, buffers.SnpLaunchUpdate.SIZE)
        except PspError:
            return 0
        done = self.snp.launch_runs.update(contents)
        if done:
            self.mailbox.served(buffer_spa)
        return done

    def launch_record(self, gctx_spa: int) -> LaunchRecord:
        """An SNP guest by its context page. Raises PspError(INVALID_GUEST) if there is none."""
        context = self.snp.guests.pages.read(gctx_spa)
        return LaunchRecord(context.digest, context.policy, context.asid, context.state, context.launch_tcb)

    def legacy_launch_record(self, handle: int) -> LaunchRecord:
        """A SEV guest by its handle; KeyError if there is none."""
        guest = self.legacy.guests[handle]
        return LaunchRecord(guest.digest.value, guest.policy, guest.asid, guest.state)

    def _legacy_is_up(self) -> bool:
        return self.legacy.state is not LegacyPlatformState.UNINIT

    def _offer_updates(self, line: ProductLine) -> None:
        """The commands that reach across both interfaces."""
        update = FirmwareUpdate(
            line, self.firmware, lambda: self.snp.state, self._legacy_is_up, self.snp.configuration.commit_firmware
        )
        self.legacy.handlers[LegacyCommand.DOWNLOAD_FIRMWARE] = partial(update.download, self._legacy_memory)
        self.snp.handlers[SnpCommand.DOWNLOAD_FIRMWARE_EX] = partial(update.download_ex, self._snp_memory)

    def _random(self, purpose: str, length: int) -> bytes:
        count = self._drawn.get(purpose, 0)
        self._drawn[purpose] = count + 1
        return self._octets(purpose, count, length)

    def _ring_buffer(self, order: buffers.RingBuffer) -> None:
        self.mailbox.ring = RingBuffers(order, self._legacy_memory, self._execute)
        self.mailbox.write_address(0, 0)  # both queues are empty

    def _execute(self, command: int, spa: int) -> Status:
        row = COMMANDS.get(command)
        if row is None:
            return Status.INVALID_COMMAND
        if not row.supported:
            return Status.UNSUPPORTED
        interface: LegacyFirmware | SnpFirmware
        interface, memory = (
            (self.snp, self._snp_memory) if is_snp(command) else (self.legacy, self._legacy_memory)
        )
        layout, data = row.layout, b""
        try:
            if interface.state not in row.states:
                return Status.INVALID_PLATFORM_STATE
            buffer = None
            if layout is not None:
                data = memory.read(spa, layout.SIZE)
                if row.writes_buffer:
                    memory.check_writable(spa, layout.SIZE)
                if not layout.reserved_is_zero(data):
                    return Status.INVALID_PARAM
                buffer = layout.parse(data)
            answer = interface.handlers[command](buffer)
        except ShortBuffer as short:
            memory.write(spa, short.answer.pack(onto=data))
            return short.status
        except PspError as error:
            return error.status
        if answer is not None:
            memory.write(spa, answer.pack(onto=data))
        return Status.SUCCESS
