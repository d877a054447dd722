"""A card with its security module: SPDM identity, IDE streams and the TDIs of its functions, before real devices.

Whoever has it in a slot hands in ``upstream`` and brings packets to ``receive`` (``tio.root_port``); whoever has it on
a wire carries data objects to ``responder``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from enum import Enum
from functools import cached_property

from tio.card_dma import CardDma
from tio.card_functions import Behind, CardFunctions, TdiSettings
from tio.card_link import CardLink, Upstream, Wire
from tio.completer import Completer
from tio.device_identity import CardKind, DeviceIdentity, Firmware, device_identity, measured
from tio.device_security_module import DeviceSecurityModule
from tio.doe import DataObject, ObjectType, parse_data_object
from tio.ide import Failure, IdePort, IdeStream, KeyResponder, Packet, PortRegisters, Run, StreamChecks
from tio.ide.capability import IdeCapability
from tio.ide.stream import ALL_CHECKS
from tio.pci import Command, ConfigurationSpace, Device, DoeMailbox, PciFunction, Register
from tio.spdm import PCI_DOE, Binding, Personality, Responder, ResponderSettings
from tio.spdm.algorithms import Aead
from tio.spdm.connection_messages import PCI_SIG_STANDARD, PCI_SIG_VENDOR, VendorDefinedRequest
from tio.spdm.device_personality import Vendor, VendorSession
from tio.spdm.key_agreement import Random
from tio.tdisp import InterfaceId, Tampering, Tdi, TdispResponder

_STREAM_BLOCKS = 4
_BAR_OFFSET = 0x10
_SESSION_ID_BITS = 32
STREAM_PORT = 1
"""Index of the port on which IDE streams end; 0 is the mailbox's own."""


class CardFault(Enum):
    """What can be wrong with a card, for whoever tries its host."""

    INTERNAL = "an integrity error inside: locked interfaces go to ERROR"
    SILENT = "it answers nothing that comes down, and takes nothing"
    POISONED = "what its functions write is marked as wrong"


class Card:
    """One card. ``device`` is what its registers and memory reach; ``random`` hands in what a DRBG would draw.

    ``dma`` is the port through which ``device`` reaches memory, where it does; ``virtual`` is what lies behind the VFs
    that a host can make. ``programmed``: it comes set up, for who has no host to do so.

    ``wants_encryption``: its security module answers in sessions that encrypt, and in no others (PCI Express base
    specification, 6.33.3 and 11.3). ``wants_aes_256``: and only under AES-256-GCM, as the sheet on TDISP has it. That
    is off, because SEV-TIO's status words have a number for AES-128-GCM.
    ``reset_ends_session``: a function-level reset of the physical function, which has mailbox and IDE registers, ends
    the session that came through it and the streams. Sources only say that no other function's does.
    A card whose ``tdi`` has no ``tee_io`` is a plain one of PCIe: it proves through its mailbox who it is, and has
    neither IDE registers nor interfaces.
    ``reorder_check`` and ``rekey_flush`` are ``StreamSettings``', ``tag_fence`` and ``checks`` are ``IdePort``'s.
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
        virtual: Sequence[Behind] = (),
        tdi: TdiSettings | None = None,
        reset_ends_session: bool = False,
        reorder_check: bool = False,
        rekey_flush: bool = False,
        tag_fence: bool = False,
        wants_encryption: bool = True,
        wants_aes_256: bool = False,
        programmed: bool = False,
        checks: StreamChecks = ALL_CHECKS,
    ) -> None:
        self.kind = kind
        self.firmware = firmware or Firmware()
        self.debug = False
        self.dma = dma
        self._seed, self._serial, self._random = seed, serial, random
        self._settings = settings or ResponderSettings()
        self._reset_ends_session = reset_ends_session
        self._wants_encryption, self._wants_aes_256 = wants_encryption, wants_aes_256
        self.mailbox = DoeMailbox((ObjectType.CMA_SPDM, ObjectType.SECURED_CMA_SPDM), self._exchanged)
        self.port = IdePort(tag_fence=tag_fence, checks=checks)
        self.ide = IdeCapability(
            self.port, max(_STREAM_BLOCKS, len(streams)), is_device=True, reorder_check=reorder_check,
            rekey_flush=rekey_flush,
        )  # fmt: skip
        self.ide.tampered = self._stream_touched
        settings_of_tdi = tdi or TdiSettings()
        self._tee_io = settings_of_tdi.tee_io
        self._streams = tuple(streams) if self._tee_io else ()
        self.functions = CardFunctions(
            kind,
            Behind(device, dma),
            virtual,
            requester_id=requester_id,
            memory_bytes=memory_bytes,
            extended=(self.mailbox, self.ide) if self._tee_io else (self.mailbox,),
            random=random,
            settings=settings_of_tdi,
        )
        self._set_streams_up()
        heard = self.functions.physical.reset_heard
        self.functions.physical.reset_heard = lambda: self._physical_reset(heard)
        self._completer = Completer(self.functions.by_number)
        self._link = CardLink(self.port, self._completer)
        self.functions.attach(self._link)
        place = requester_id & 0xFF, requester_id >> 8
        ports = {
            0: (PortRegisters(*place), IdePort()),
            STREAM_PORT: (PortRegisters(*place, registers=self.ide.dump), self.port),
        }
        self._keys = KeyResponder(ports)
        interfaces = {InterfaceId(one.requester_id): one.tdi for one in self.functions.all if one.tdi is not None}
        tdis = TdispResponder(interfaces, self._keys, self.port.streams, STREAM_PORT)
        self.dsm = DeviceSecurityModule(self._keys, tdis)
        self._behind_mailbox: Responder | None = None
        if programmed:
            self._program()

    # What stands for the first function.

    @property
    def function(self) -> PciFunction:
        """The physical function."""
        return self.functions.physical

    @property
    def space(self) -> ConfigurationSpace:
        """Its configuration space."""
        return self.function.space

    @property
    def tdi(self) -> Tdi:
        """Its interface."""
        assert self.function.tdi is not None
        return self.function.tdi

    @cached_property
    def identity(self) -> DeviceIdentity:
        """Certificates and key, made when somebody asks for them."""
        return device_identity(self.kind, self._serial, self._seed)

    # On its link.

    @property
    def upstream(self) -> Upstream:
        """Where packets go that the card sends by itself."""
        return self._link.upstream

    @upstream.setter
    def upstream(self, upstream: Upstream) -> None:
        self._link.upstream = upstream

    def receive(self, packets: Iterable[Packet | Run]) -> Wire:
        """Take packets that came down the link: what goes up for them."""
        return self._link.receive(packets)

    def configuration_read(self, requester: int, offset: int, width: int) -> int:
        """A register of a function, as a request that nobody looks at finds it; ones where there is no function."""
        space = None if self._link.silent else self._completer.space(requester)
        return (1 << 8 * width) - 1 if space is None else space.read(offset, width)

    def configuration_write(self, requester: int, offset: int, value: int, width: int) -> None:
        """Store to a register of a function, likewise."""
        space = None if self._link.silent else self._completer.space(requester)
        if space is not None:
            space.write(offset, value, width, requester >> 8)

    def reset(self) -> None:
        """Conventional reset: sessions, keys, streams and interfaces are gone, registers as the card came."""
        self.debug = False
        self._end_sessions(Failure.RESET)
        self.port.forget_requests()
        self.functions.reset()
        self.ide.reset()
        self._set_streams_up()
        self.mailbox.reset()

    # Its security module.

    def responder(self, binding: Binding, connection: int = 0) -> Responder:
        """A fresh responder of this card, as of a mailbox that was reset.

        ``connection`` tells those apart that are there at once: what a session of one owns no session of another has,
        though it bore the same number.
        """
        first = connection << _SESSION_ID_BITS

        def vendor(session: VendorSession | None, request: VendorDefinedRequest) -> bytes | None:
            inside = None if session is None else replace(session, session_id=first + session.session_id)
            return self._vendor_defined(inside, request)

        def ended(session_id: int) -> None:
            self.dsm.end_session(first + session_id)

        return self.other_responder(binding, vendor if self._tee_io else _no_vendors, ended)

    def other_responder(self, binding: Binding, vendor: Vendor, ended: Callable[[int], None]) -> Responder:
        """One that proves the same and answers other messages of vendors; keys and interfaces are not among them."""
        personality = Personality(
            {0: self.identity.slot},
            lambda: measured(self.kind, self.firmware, debug=self.debug),
            vendor=vendor,
            ended=ended,
        )
        return Responder(personality, self._settings, binding, self._random)

    # What happens to it.

    def update_firmware(self, firmware: Firmware) -> None:
        """Run other firmware from now on; what a lock thinks of that is the lock's."""
        older = firmware.security_version < self.firmware.security_version
        self.firmware = firmware
        self.functions.tamper(Tampering.SVN_ROLLBACK if older else Tampering.FIRMWARE_UPDATE)

    def enable_debug(self) -> None:
        """Let somebody look inside: measurements say so, and no lock survives it."""
        self.debug = True
        self.functions.tamper(Tampering.DEBUG_MODE)

    def inject(self, fault: CardFault) -> None:
        """Have something be wrong from now on, or once where it happens once."""
        if fault is CardFault.INTERNAL:
            self.functions.tamper(Tampering.INTERNAL)
        else:
            self._link.silent |= fault is CardFault.SILENT
            self._link.poisons |= fault is CardFault.POISONED

    def heal(self) -> None:
        """Nothing is wrong any more."""
        self._link.silent = self._link.poisons = False

    # Within.

    def _set_streams_up(self) -> None:
        for number, stream_id in enumerate(self._streams):
            self.ide.set_up(number, stream_id)

    def _physical_reset(self, of_functions: Callable[[], None]) -> None:
        of_functions()
        if self._reset_ends_session:
            self._end_sessions(Failure.SESSION)

    def _end_sessions(self, why: Failure) -> None:
        """The card's own responder forgets its sessions; streams fail, whoever programmed them."""
        if self._behind_mailbox is not None:
            self._behind_mailbox.close()
            self._behind_mailbox = None
        self._keys.programmed_by.clear()
        for one in self.port.streams.values():
            one.fail(why)

    def _exchanged(self, asked: DataObject) -> DataObject | None:
        """The answer to a data object in the card's own mailbox."""
        if self._behind_mailbox is None:
            self._behind_mailbox = self.responder(PCI_DOE)
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

    def _stream_touched(self, stream: IdeStream) -> None:
        """The host is about to change how a stream is set up: locks that hold it break."""
        for one in self.functions.tdis:
            if one.lock is not None and one.lock.stream is stream:
                one.tamper(Tampering.IDE_CONTROL)

    def _vendor_defined(self, session: VendorSession | None, request: VendorDefinedRequest) -> bytes | None:
        if (request.standard, request.vendor) != (PCI_SIG_STANDARD, PCI_SIG_VENDOR):
            return None
        if session is None or (self._wants_encryption and not session.encrypted):
            return None
        if self._wants_aes_256 and session.cipher is not Aead.AES_256_GCM.value:
            return None
        return self.dsm.answer(session.session_id, request.payload)


def _no_vendors(_session: VendorSession | None, _request: VendorDefinedRequest) -> bytes | None:
    return None
