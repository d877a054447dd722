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
from tio.ide import IdePort, IdeStream, KeyResponder, Packet, PortRegisters, StreamSettings, WriteRun
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
_BARS = {0: _REGISTER_BYTES, 4: _MSIX_BYTES}
_MEMORY_BAR, _BAR_OFFSET = 2, 0x10
STREAM_PORT = 1
"""Index of the port on which IDE streams end; 0 is the mailbox's own."""


class Card:
    """One card. ``device`` is what its registers and memory reach; ``random`` hands in what a DRBG would draw.

    ``dma`` is the port through which ``device`` reaches memory, where it does. ``programmed``: it comes set up, for
    who has no host to do so.
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
    ) -> None:
        self.kind = kind
        self.identity: DeviceIdentity = device_identity(kind, serial, seed)
        self.firmware = firmware or Firmware()
        bars = _BARS | ({_MEMORY_BAR: memory_bytes} if memory_bytes else {})
        msix = MsixPlace(_VECTORS, 4, 0, 0x1000)
        self.mailbox = DoeMailbox((ObjectType.CMA_SPDM, ObjectType.SECURED_CMA_SPDM), self._exchanged)
        self.space = ConfigurationSpace(_DEVICES[kind], bars, tee_io=True, msix=msix, extended=(self.mailbox,))
        regions = [
            Region(0, 0, _REGISTER_BYTES),
            Region(4, 0, 0x1000, RangeAttributes.MSIX_TABLE),
            Region(4, 0x1000, 0x1000, RangeAttributes.MSIX_PBA),
        ]
        if memory_bytes:
            regions.append(Region(_MEMORY_BAR, 0, memory_bytes))
        self.function = PciFunction(self.space, device, regions, kind.value.encode(), requester_id)
        self.tdi = self.function.tdi = Tdi(self.function, random)
        self.port = IdePort()
        self._link = CardLink(self.port, Completer({requester_id & 0xFF: self.function}))
        if dma is not None:
            dma.attach(self._link, self.function)
        for stream_id in streams:
            self.port.streams[stream_id] = IdeStream(stream_id, StreamSettings(tee_limited=True))
        place = PortRegisters(requester_id & 0xFF, requester_id >> 8)
        keys = KeyResponder({0: (place, IdePort()), STREAM_PORT: (place, self.port)})
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

    def _vendor_defined(self, session_id: int | None, request: VendorDefinedRequest) -> bytes | None:
        if (request.standard, request.vendor) != (PCI_SIG_STANDARD, PCI_SIG_VENDOR):
            return None
        return self.dsm.answer(session_id, request.payload)
