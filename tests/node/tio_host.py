"""A host that drives SEV-TIO by operations alone, and a guest's messages: just enough to bring a card to a guest.

It carries what firmware and card say to each other through the card's mailbox, and sees all of it.
"""

from __future__ import annotations

import struct

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from rmp_laboratory import COMMAND_PAGE, FIRMWARE, Laboratory, gctx
from trusted_cards import DEVICE_ID, GPU, STREAM, enable_streams, filled, set_up_streams

from node import operations as op
from node.card_slot import CardSlot
from psp import tsm
from psp.commands import SnpCommand
from psp.guest_context import GuestContext
from psp.status import Status
from psp.system_bus import PAGE_BYTES, RmpEntry
from tio.doe import DataObject, parse_data_object
from tio.pci import Command, Register
from tio.pci.doe_mailbox import MailboxControl, MailboxRegister, MailboxStatus
from tio.tdisp import InterfaceId

FIRST = 48 << 20
CONTEXT, TDI, REQUEST, RESPONSE, SCRATCH, OUTPUT, MESSAGE, ANSWER = range(FIRST, FIRST + 8 * PAGE_BYTES, PAGE_BYTES)
LENT = (CONTEXT, TDI, REQUEST, SCRATCH, OUTPUT, ANSWER)


class TioHost:
    """``seen`` is all that it carried."""

    def __init__(self, lab: Laboratory, slot: CardSlot = GPU) -> None:
        self.seen = bytearray()
        self.exchanges = 0
        self._lab = lab
        self._slot = slot
        there = filled(lab, slot).card
        self._mailbox = there.space.extended_at(there.mailbox)

    # Firmware.

    def give(self, command: SnpCommand, order: tsm.TioOrder) -> Status:
        """Give a command once."""
        (answer,) = self._lab.host(op.PspCommand(command, COMMAND_PAGE, order.pack()))
        assert isinstance(answer, op.PspAnswer), answer
        return Status(answer.status)

    def ask(self, command: SnpCommand, kind: type[tsm.TioOrder], **fields: object) -> None:
        """A command that needs no device, and succeeds."""
        assert self.give(command, kind(**({"length": kind.SIZE} | fields))) == Status.SUCCESS  # type: ignore[arg-type]

    def run(self, command: SnpCommand, kind: type[tsm.SpdmOrder], **fields: object) -> Status:
        """Give a command until it is done, and play each exchange that it asks for."""
        ours = {
            "length": kind.SIZE, "request": REQUEST, "response": RESPONSE, "scratch": SCRATCH, "output": OUTPUT,
            "device": CONTEXT,
        }  # fmt: skip
        order = kind(**(ours | fields))  # type: ignore[arg-type]
        for _ in range(200):
            status = self.give(command, order)
            if status is not Status.SPDM_REQUEST:
                return status
            self._carry()
        raise AssertionError("expected an end")

    def _carry(self) -> None:
        (page,) = self._lab.host(op.HostRead(REQUEST, PAGE_BYTES))
        assert isinstance(page, bytes)
        size = tsm.BufferHeader.SIZE
        payload = page[size : size + tsm.BufferHeader.parse(page[:size]).payload]
        packet = tsm.parse_message(tsm.ObjectId.REQUEST, payload)
        answer = self._exchange(DataObject(1, 1 + packet.secured, packet.payload))
        self.seen += packet.payload + answer.payload
        head = tsm.MessageObject(tsm.ObjectId.RESPONSE, 16 + len(answer.payload), data_type=answer.object_type)
        whole = head.pack() + answer.payload
        whole = whole.ljust(tsm.padded(len(whole)), b"\0")
        self._lab.host(op.HostWrite(RESPONSE, tsm.BufferHeader(PAGE_BYTES, len(whole)).pack() + whole))

    def _exchange(self, asked: DataObject) -> DataObject:
        """Two batches: the object and the head of its answer; the rest of that."""
        card, at = self._slot.requester, self._mailbox
        self.exchanges += 1
        *_, status, head = self._lab.host(
            op.ConfigOut(card, at + MailboxRegister.WRITE_DATA, asked.pack()),
            op.ConfigWrite(card, at + MailboxRegister.CONTROL, MailboxControl.GO),
            op.ConfigRead(card, at + MailboxRegister.STATUS),
            op.ConfigIn(card, at + MailboxRegister.READ_DATA, 2),
        )
        assert isinstance(status, int)
        assert isinstance(head, bytes)
        assert status & (MailboxStatus.READY | MailboxStatus.ERROR) == MailboxStatus.READY
        words = struct.unpack("<II", head)[1]
        (rest,) = self._lab.host(op.ConfigIn(card, at + MailboxRegister.READ_DATA, words - 2))
        assert isinstance(rest, bytes)
        return parse_data_object(head + rest)

    # The way to a guest.

    def connect(self) -> None:
        """From TIO_INIT to a link that is Secure."""
        lab = self._lab
        for spa in (REQUEST, RESPONSE, SCRATCH, OUTPUT):
            assert lab.host(op.HostWrite(spa, tsm.BufferHeader(PAGE_BYTES).pack())) == (None,)
        for spa in LENT:
            assert lab.host(op.RmpUpdate(spa, PAGE_BYTES, FIRMWARE)) == (0,)
        self.ask(SnpCommand.TIO_INIT, tsm.TioInit)
        (capabilities,) = lab.host(op.ConfigRead(self._slot.root_port, Register.LINK_CAPABILITIES))
        assert isinstance(capabilities, int)
        self.ask(
            SnpCommand.TIO_DEV_CREATE, tsm.DeviceCreate, device=CONTEXT, requester=self._slot.requester,
            root_port=capabilities >> 24,
        )  # fmt: skip
        set_up_streams(lab, self._slot)
        streams = bytes((STREAM,)).ljust(8, b"\0")
        found = self.run(SnpCommand.TIO_DEV_CONNECT, tsm.DeviceConnect, tc_mask=1, stream_ids=streams)
        assert found is Status.SUCCESS
        enable_streams(lab, self._slot)

    def bind(self, vm: str = "one") -> None:
        """Lock the TDI for a guest, and start it."""
        master = Command.MEMORY_SPACE | Command.BUS_MASTER
        self._lab.host(op.ConfigWrite(self._slot.requester, Register.COMMAND, master, 2))
        interface = InterfaceId(self._slot.requester).pack()
        self.ask(SnpCommand.TIO_TDI_CREATE, tsm.TdiCreate, device=CONTEXT, tdi=TDI, interface_id=interface)
        for run_flags in (0, tsm.RUN):
            done = self.run(
                SnpCommand.TIO_TDI_BIND, tsm.TdiBind, tdi=TDI, gctx=gctx(vm), guest_device_id=DEVICE_ID,
                run_flags=run_flags,
            )  # fmt: skip
            assert done is Status.SUCCESS

    def unbind(self, vm: str = "one", flags: int = 0) -> Status:
        """Take it from the guest."""
        return self.run(SnpCommand.TIO_TDI_UNBIND, tsm.TdiOrder, tdi=TDI, gctx=gctx(vm), flags=flags)

    # The guest's messages, which the host carries too.

    def guest_asks(self, kind: int, payload: bytes, vm: str = "one") -> bytes:
        """What firmware answers to a guest's next message."""
        guest = self._guest(vm)
        sequence = guest.message_counts[0] + 1
        bound = struct.pack("<BBHBBHIB35s", 1, 1, 0x60, kind, 1, len(payload), 0, 0, bytes(35))
        seal = Cipher(algorithms.AES256(guest.vmpck(0)), modes.GCM(struct.pack("<QI", sequence, 0))).encryptor()
        seal.authenticate_additional_data(bound)
        hidden = seal.update(payload) + seal.finalize()
        message = seal.tag + bytes(16) + struct.pack("<QQ", sequence, 0) + bound + hidden
        self._lab.host(op.HostWrite(MESSAGE, message.ljust(PAGE_BYTES, b"\0")))
        where = {"tdi": TDI, "gctx": gctx(vm), "message": MESSAGE, "answer": ANSWER}
        assert self.run(SnpCommand.TIO_GUEST_REQUEST, tsm.TioGuestRequest, **where) is Status.SUCCESS
        (answer,) = self._lab.host(op.HostRead(ANSWER, PAGE_BYTES))
        assert isinstance(answer, bytes)
        (length,) = struct.unpack_from("<H", answer, 0x36)
        nonce = struct.pack("<QI", sequence + 1, 0)
        opening = Cipher(algorithms.AES256(guest.vmpck(0)), modes.GCM(nonce, answer[:16])).decryptor()
        opening.authenticate_additional_data(answer[0x30:0x60])
        return opening.update(answer[0x60 : 0x60 + length]) + opening.finalize()

    def _guest(self, vm: str) -> GuestContext:
        return self._lab.board.psp.snp.guests.pages.read(gctx(vm))

    def take_back(self, spa: int) -> None:
        """A page of MMIO is the host's again."""
        assert self._lab.host(op.RmpUpdate(spa, PAGE_BYTES, RmpEntry())) == (0,)
