"""A device with one TDI behind keys of one session, for tests."""

from __future__ import annotations

import hashlib
from itertools import count

from tio.ide import Direction, IdePort, IdeStream, KeyMessage, KeyResponder, ObjectId, PortRegisters, SubStream
from tio.ide.key_messages import KeySlot
from tio.tdisp import (
    ErrorCode,
    InterfaceId,
    InterfaceInfo,
    InterfaceReport,
    LockFlags,
    LockRequest,
    Message,
    MmioRange,
    RangeAttributes,
    Request,
    Response,
    Tdi,
    TdispResponder,
    parse_message,
)
from tio.tdisp.messages import error_of

ALL_FLAGS = ~LockFlags(0)
SESSION, OTHER_SESSION, STREAM = 1, 2, 5
IDENTITY = InterfaceId(0x0100)
RANGES = (
    MmioRange(0x1000, 4, RangeAttributes(0), 0),
    MmioRange(0x1004, 2, RangeAttributes.IS_NON_TEE_MEM, 0),
    MmioRange(0x2000, 1, RangeAttributes.MSIX_TABLE, 2),
    MmioRange(0x3000, 8, RangeAttributes.IS_MEM_ATTR_UPDATABLE, 4),
)


class Card:
    """The function: what it was told."""

    def __init__(self) -> None:
        self.wrong: str | None = None
        self.calls: list[str] = []

    def objection(self, _: LockFlags) -> str | None:
        return self.wrong

    def report(self) -> InterfaceReport:
        return InterfaceReport(InterfaceInfo.DMA_WITHOUT_PASID, RANGES, 0x8003, 0, 0x11, b"a card")

    def begin(self) -> None:
        self.calls.append("begin")

    def scrub(self) -> None:
        self.calls.append("scrub")


class Device:
    """The card behind its DSM; ``ask`` is a TSM's request of a session."""

    def __init__(self, supported: LockFlags = ALL_FLAGS) -> None:
        self.card = Card()
        numbers = count()
        self.tdi = Tdi(self.card, lambda length: hashlib.sha256(b"%d" % next(numbers)).digest()[:length], supported)
        self.port = IdePort()
        self.stream = self.port.streams[STREAM] = IdeStream(STREAM)
        self.keys = KeyResponder({0: (PortRegisters(), self.port)})
        self.dsm = TdispResponder({IDENTITY: self.tdi}, self.keys, self.port.streams)

    def give_keys(self, session: int = SESSION) -> None:
        for object_id in (ObjectId.KEY_PROG, ObjectId.K_SET_GO):
            for way in Direction:
                for sub_stream in SubStream:
                    key = bytes((way, sub_stream)) * 16 if object_id is ObjectId.KEY_PROG else b""
                    asked = KeyMessage(object_id, STREAM, KeySlot(0, way, sub_stream), 0, 0, key, 1)
                    self.keys.answer(session, asked.pack())
        self.stream.enable()

    def ask(
        self, code: int, payload: bytes = b"", session: int = SESSION, interface: bytes = IDENTITY.pack()
    ) -> Message:
        answer = parse_message(self.dsm.answer(session, Message(code, interface, payload).pack()))
        assert answer.interface == interface
        return answer

    def refusal(self, code: int, payload: bytes = b"", session: int = SESSION) -> ErrorCode | None:
        """The error that a request gets; None if it is served."""
        answer = self.ask(code, payload, session)
        return error_of(answer.payload).code if answer.code == Response.TDISP_ERROR else None

    def lock(self, flags: int = 0, offset: int = 0, session: int = SESSION) -> bytes:
        """The nonce."""
        answer = self.ask(Request.LOCK_INTERFACE_REQUEST, LockRequest(flags, STREAM, offset).pack(), session)
        assert answer.code == Response.LOCK_INTERFACE_RESPONSE
        return answer.payload

    def run(self, flags: int = 0) -> None:
        assert self.refusal(Request.START_INTERFACE_REQUEST, self.lock(flags)) is None


def locked(flags: int = 0, offset: int = 0) -> tuple[Device, bytes]:
    device = Device()
    device.give_keys()
    return device, device.lock(flags, offset)


def running(flags: int = 0) -> Device:
    device = Device()
    device.give_keys()
    device.run(flags)
    return device
