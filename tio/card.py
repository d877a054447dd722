"""A card with its security module: SPDM identity, IDE streams and TDIs of one function, in front of a real device.

Whoever has it in a slot hands in ``upstream`` and brings packets to ``receive`` (``tio.root_port``); whoever has it on
a wire carries data objects to ``responder``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tio.card_dma import CardDma
from tio.card_link import CardLink, Upstream, Wire
from tio.completer import Completer
from tio.device_identity import CardKind, DeviceIdentity, Firmware, device_identity, measured
from tio.device_security_module import DeviceSecurityModule
from tio.doe import DataObject, ObjectType, parse_data_object
from tio.ide import Failure, IdePort, IdeStream, KeyResponder, Packet, PortRegisters, StreamChecks, WriteRun
from tio.ide.capability import IdeCapability
from tio.ide.stream import ALL_CHECKS
from tio.pci import Command, ConfigurationSpace, Device, DoeMailbox, Identity, MsixPlace, PciFunction, Region, Register
from tio.spdm import PCI_DOE, Binding, Personality, Responder, ResponderSettings
from tio.spdm.connection_messages import PCI_SIG_STANDARD, PCI_SIG_VENDOR, VendorDefinedRequest
from tio.spdm.key_agreement import Random
from tio.tdisp import InterfaceId, RangeAttributes, Tampering, Tdi, TdispResponder

_VENDOR = 0x1AF4
_DEVICES = {
    CardKind.GPU: Identity(_VENDOR, 0x5E01, 0x03_0200),
    CardKind.NIC: Identity(_VENDOR, 0x5E02, 0x02_0000),
    CardKind.NVME: Identity(_VENDOR, 0x5E03, 0x01_0802),
}
_REGISTER_BYTES, _MSIX_BYTES, _VECTORS = 0x4000, 0x2000, 16
_STREAM_BLOCKS = 4
_BARS = {0: _REGISTER_BYTES, 4: _MSIX_BYTES}
_MEMORY_BAR, _BAR_OFFSET = 2, 0x10
STREAM_PORT = 1
"""Index of the port on which IDE streams end; 0 is the mailbox's own."""


class Card:
    """One card. ``device`` is what its registers and memory reach; ``random`` hands in what a DRBG would draw.

    ``dma`` is the port through which ``device`` reaches memory, where it does. ``programmed``: it comes set up, for
    who has no host to do so. ``checks`` are ``IdePort``'s, ``scrubs`` is ``Tdi``'s.
    """

    def __init__(
        self,
        kind: CardKind,
        device: Device,
        random: Random,
        *,
        seed: int = 1,
        serial: str = "0001",
        firmware: Firmware | None = None,
        requester_id: int = 0x0100,
        streams: Sequence[int] = (1,),
        memory_bytes: int = 0,
        settings: ResponderSettings | None = None,
        dma: CardDma | None = None,
        programmed: bool = False,
        checks: StreamChecks = ALL_CHECKS,
        scrubs: bool = True,
    ) -> None:
        self.kind = kind
        self.identity: DeviceIdentity = device_identity(kind, serial, seed)
        self.firmware = firmware or Firmware()
        bars = _BARS | ({_MEMORY_BAR: memory_bytes} if memory_bytes else {})
        msix = MsixPlace(_VECTORS, 4, 0, 0x1000)
        self.mailbox = DoeMailbox((ObjectType.CMA_SPDM, ObjectType.SECURED_CMA_SPDM), self._exchanged)
        self.port = IdePort(checks=checks)
        self.ide = IdeCapability(self.port, max(_STREAM_BLOCKS, len(streams)), is_device=True)
        self.ide.tampered = self._stream_touched
        for number, stream_id in enumerate(streams):
            self.ide.set_up(number, stream_id)
        extended = (self.mailbox, self.ide)
        self.space = ConfigurationSpace(_DEVICES[kind], bars, tee_io=True, msix=msix, extended=extended)
        regions = [
            Region(0, 0, _REGISTER_BYTES),
            Region(4, 0, 0x1000, RangeAttributes.MSIX_TABLE),
            Region(4, 0x1000, 0x1000, RangeAttributes.MSIX_PBA),
        ]
        if memory_bytes:
            regions.append(Region(_MEMORY_BAR, 0, memory_bytes))
        self.function = PciFunction(self.space, device, regions, kind.value.encode(), requester_id)
        self.tdi = self.function.tdi = Tdi(self.function, random, scrubs=scrubs)
        self._device = device
        self._completer = Completer({requester_id & 0xFF: self.function})
        self._link = CardLink(self.port, self._completer)
        self.dma = dma
        if dma is not None:
            dma.attach(self._link, self.function)
        place = requester_id & 0xFF, requester_id >> 8
        ports = {
            0: (PortRegisters(*place), IdePort()),
            STREAM_PORT: (PortRegisters(*place, registers=self.ide.dump), self.port),
        }
        keys = KeyResponder(ports)
        tdis = TdispResponder({InterfaceId(requester_id): self.tdi}, keys, self.port.streams, STREAM_PORT)
        self.dsm = DeviceSecurityModule(keys, tdis)
        self._random = random
        self._settings = settings or ResponderSettings()
        self._behind_mailbox = self.responder(PCI_DOE)
        if programmed:
            self._program()

    @property
    def upstream(self) -> Upstream:
        """Where packets go that the card sends by itself."""
        return self._link.upstream

    @upstream.setter
    def upstream(self, upstream: Upstream) -> None:
        self._link.upstream = upstream

    def receive(self, packets: Iterable[Packet | WriteRun]) -> Wire:
        """Take packets that came down the link: what goes up for them."""
        return self._link.receive(packets)

    def configuration_read(self, requester: int, offset: int, width: int) -> int:
        """A register of a function, as a request that nobody looks at finds it; ones where there is no function."""
        space = self._completer.space(requester)
        return (1 << 8 * width) - 1 if space is None else space.read(offset, width)

    def configuration_write(self, requester: int, offset: int, value: int, width: int) -> None:
        """Store to a register of a function, likewise."""
        space = self._completer.space(requester)
        if space is not None:
            space.write(offset, value, width, requester >> 8)

    def reset(self) -> None:
        """Conventional reset: as when it was switched on. Sessions, keys, locks and what it was told are gone."""
        for stream in self.port.streams.values():
            stream.fail(Failure.RESET)
        self.tdi.reset()
        self.dsm.reset()
        self.ide.reset()
        self.space.reset()
        self.space.bus = None
        self.function.msix.reset()
        self.mailbox.reset()
        self._behind_mailbox = self.responder(PCI_DOE)
        self._device.reset()

    def responder(self, binding: Binding) -> Responder:
        """A fresh responder of this card, as of a mailbox that was reset."""
        personality = Personality(
            {0: self.identity.slot},
            lambda: measured(self.kind, self.firmware),
            vendor=self._vendor_defined,
            ended=self.dsm.end_session,
        )
        return Responder(personality, self._settings, binding, self._random)

    def _exchanged(self, asked: DataObject) -> DataObject | None:
        """The answer to a data object in the card's own mailbox."""
        packet = PCI_DOE.unwrap(asked.pack())
        return parse_data_object(PCI_DOE.wrap(self._behind_mailbox.answer(packet)))

    def _program(self) -> None:
        """Stand in a slot whose host has set it up: BARs one after another, memory and bus mastering on."""
        address = 0xC0_0000_0000
        for index, size in self.space.bars.items():
            address = -(-address // size) * size
            self.space.write(_BAR_OFFSET + 4 * index, address & 0xFFFF_FFFF)
            self.space.write(_BAR_OFFSET + 4 * index + 4, address >> 32)
            address += size
        self.space.write(Register.COMMAND, Command.MEMORY_SPACE | Command.BUS_MASTER, 2)

    def update_firmware(self, firmware: Firmware) -> None:
        """Run other firmware from now on; what a lock thinks of that is the lock's."""
        older = firmware.security_version < self.firmware.security_version
        self.firmware = firmware
        self.tdi.tamper(Tampering.SVN_ROLLBACK if older else Tampering.FIRMWARE_UPDATE)

    def _stream_touched(self, stream: IdeStream) -> None:
        """The host is about to change how a stream is set up: locks that hold it break."""
        lock = self.tdi.lock
        if lock is not None and lock.stream is stream:
            self.tdi.tamper(Tampering.IDE_CONTROL)

    def _vendor_defined(self, session_id: int | None, request: VendorDefinedRequest) -> bytes | None:
        if (request.standard, request.vendor) != (PCI_SIG_STANDARD, PCI_SIG_VENDOR):
            return None
        return self.dsm.answer(session_id, request.payload)
