"""Firmware as TSM on a board: the host carries packets by configuration requests, the guest accepts, the GPU works."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from rmp_laboratory import FIRMWARE, GUEST_SPA, Laboratory, gctx, give, laboratory, page_of
from trusted_cards import (
    ALLOWED,
    CANARY,
    CARDS,
    DATA,
    FENCE,
    GPU,
    MMIO_GPA,
    PAGES,
    RING,
    STREAM,
    attach,
    bar,
    enable_streams,
    filled,
    set_up_streams,
    trusted_io,
    work,
)

from node import operations as op
from node.card_slot import CardSlot
from node.platform import Platform
from psp import command_buffers, tsm
from psp.commands import SnpCommand as C
from psp.guest_message import MessageHeader, MessageKey, MessageType
from psp.status import Status
from psp.system_bus import PAGE_BYTES
from tio.doe import DataObject
from tio.pci import Command, Register
from tio.pci.doe_mailbox import exchange
from tio.tdisp import InterfaceId, TdiState

BASE = 48 << 20
CONTEXT, TDI, REQUEST, RESPONSE, SCRATCH, OUTPUT, MESSAGE, ANSWER = range(BASE, BASE + 8 * PAGE_BYTES, PAGE_BYTES)
DEVICE_ID = 0x20


@dataclass
class Host:
    """A host's driver of TIO for one card, and its guest's of messages."""

    lab: Laboratory
    slot: CardSlot = GPU

    def lend(self, *pages: int) -> None:
        for one in pages:
            assert self.lab.host(op.RmpUpdate(one, PAGE_BYTES, FIRMWARE)) == (0,)

    def carry(self) -> None:
        """What lies in the request buffer goes to the card's mailbox, and its answer into the response buffer."""
        (data,) = self.lab.host(op.HostRead(REQUEST, PAGE_BYTES))
        assert isinstance(data, bytes)
        header = tsm.BufferHeader.parse(data)
        packet = tsm.parse_message(tsm.ObjectId.REQUEST, data[header.SIZE : header.SIZE + header.payload])
        card = filled(self.lab, self.slot).card
        at = card.space.extended_at(card.mailbox)

        def load(offset: int) -> int:
            (value,) = self.lab.host(op.ConfigRead(self.slot.requester, at + offset))
            assert isinstance(value, int)
            return value

        def store(offset: int, value: int) -> None:
            self.lab.host(op.ConfigWrite(self.slot.requester, at + offset, value))

        answer = exchange(load, store, DataObject(1, 1 + packet.secured, packet.payload))
        assert answer is not None
        said = tsm.MessageObject(tsm.ObjectId.RESPONSE, 16 + len(answer.payload), data_type=answer.object_type).pack()
        whole = (said + answer.payload).ljust(tsm.padded(16 + len(answer.payload)), b"\0")
        self.lab.host(op.HostWrite(RESPONSE, tsm.BufferHeader(PAGE_BYTES, len(whole)).pack() + whole))

    def run(self, command: C, kind: type[tsm.SpdmOrder], **fields: object) -> Status:
        """Give a command until it is done."""
        ours = {"request": REQUEST, "response": RESPONSE, "scratch": SCRATCH, "output": OUTPUT, "device": CONTEXT}
        order = kind(**({"length": kind.SIZE} | ours | fields))  # type: ignore[arg-type]
        while (status := self.lab.firmware(command, order)) is Status.SPDM_REQUEST:
            self.carry()
        return status

    def ask(self, kind: int, payload: bytes) -> bytes:
        """The answer to a message of the guest's."""
        guest = self.lab.board.psp.snp.guests.pages.read(gctx("one"))
        key, number = MessageKey(guest.vmpck(0)), guest.message_counts[0] + 1
        self.lab.host(op.HostWrite(MESSAGE, key.seal(0, number, kind, 1, payload)))
        status = self.run(
            C.TIO_GUEST_REQUEST, tsm.TioGuestRequest, tdi=TDI, gctx=gctx("one"), message=MESSAGE, answer=ANSWER
        )
        assert status is Status.SUCCESS
        (page,) = self.lab.host(op.HostRead(ANSWER, PAGE_BYTES))
        assert isinstance(page, bytes)
        return key.unseal(MessageHeader.checked(page), page)

    def bind(self, **fields: object) -> Status:
        return self.run(C.TIO_TDI_BIND, tsm.TdiBind, tdi=TDI, gctx=gctx("one"), guest_device_id=DEVICE_ID, **fields)


def connected() -> Host:
    """A board whose firmware has connected its GPU, with the streams enabled."""
    lab = laboratory("Turin", Platform(cards=CARDS), init_flags=command_buffers.SNP_INIT_TIO)
    for gpa in (RING, FENCE, DATA):
        give(lab, page_of(gpa), offset=gpa)
    host = Host(lab)
    lab.host(op.ConfigWrite(GPU.requester, Register.COMMAND, Command.MEMORY_SPACE | Command.BUS_MASTER, 2))
    attach(lab, PAGES)
    set_up_streams(lab)
    for page in (REQUEST, SCRATCH, OUTPUT, RESPONSE):
        lab.host(op.HostWrite(page, tsm.BufferHeader(PAGE_BYTES).pack()))
    host.lend(CONTEXT, TDI, REQUEST, SCRATCH, OUTPUT, ANSWER)
    assert lab.firmware(C.TIO_INIT, tsm.TioInit(16)) is Status.SUCCESS
    create = tsm.DeviceCreate(32, 0, CONTEXT, GPU.requester, GPU.port)
    assert lab.firmware(C.TIO_DEV_CREATE, create) is Status.SUCCESS
    streams = bytes((STREAM,)).ljust(8, b"\0")
    assert host.run(C.TIO_DEV_CONNECT, tsm.DeviceConnect, tc_mask=1, stream_ids=streams) is Status.SUCCESS
    enable_streams(lab)
    create_tdi = tsm.TdiCreate(48, 0, CONTEXT, TDI, InterfaceId(GPU.requester).pack())
    assert lab.firmware(C.TIO_TDI_CREATE, create_tdi) is Status.SUCCESS
    return host


def test_a_guest_works_on_a_card_that_firmware_attested_keyed_and_bound_and_no_more_after_it_is_unbound() -> None:
    host = connected()
    lab = host.lab
    assert host.bind() is Status.SUCCESS
    assert filled(lab).card.tdi.state is TdiState.CONFIG_LOCKED
    assert host.run(C.TIO_TDI_REPORT, tsm.TdiOrder, tdi=TDI, gctx=gctx("one")) is Status.SUCCESS
    (data,) = lab.host(op.HostRead(OUTPUT, PAGE_BYTES))
    assert isinstance(data, bytes)
    head = tsm.ResultObject.parse(data[64:])
    report = data[64 + head.SIZE : 64 + head.length]
    told = host.ask(MessageType.TIO_TDI_INFO_REQ, tsm.TdiInfoRequest(DEVICE_ID).pack())
    info = tsm.TdiInfoResponse.parse(told)
    assert (info.status, info.report_digest) == (tsm.TdiInfoStatus.BOUND, hashlib.sha384(report).digest())
    assert host.bind(run_flags=tsm.RUN) is Status.SUCCESS
    # The host maps the registers; the guest has firmware look, and says what its device may reach.
    pages = 4
    spa = bar(lab)
    for at in range(0, pages * PAGE_BYTES, PAGE_BYTES):
        assert lab.host(op.NestedMap("one", MMIO_GPA + at, spa + at, PAGE_BYTES, large=False)) == (None,)
        assert lab.host(op.RmpUpdate(spa + at, PAGE_BYTES, page_of(MMIO_GPA + at))) == (0,)
    asked = tsm.MmioValidateRequest(DEVICE_ID, MMIO_GPA, pages, 0, tsm.ValidateFlags.VALIDATED, 0)
    accepted = tsm.MmioValidateResponse.parse(host.ask(MessageType.TIO_MMIO_VALIDATE_REQ, asked.pack()))
    assert (accepted.status, accepted.flags) == (tsm.MmioValidateStatus.SUCCESS, tsm.ValidateFlags.CHANGED)
    entry = tsm.SdteWriteRequest(DEVICE_ID, ALLOWED.pack())
    answer = host.ask(MessageType.TIO_SDTE_WRITE_REQ, entry.pack())
    assert struct.unpack_from("<HH", answer) == (DEVICE_ID, tsm.SdteWriteStatus.SUCCESS)
    assert work(lab)
    (ciphertext,) = lab.host(op.HostRead(GUEST_SPA + DATA, PAGE_BYTES))
    assert isinstance(ciphertext, bytes)
    assert CANARY not in ciphertext
    assert host.run(C.TIO_TDI_UNBIND, tsm.TdiOrder, tdi=TDI, gctx=gctx("one")) is Status.SUCCESS
    assert not work(lab)
    assert host.run(C.TIO_DEV_DISCONNECT, tsm.DeviceOrder) is Status.SUCCESS
    assert trusted_io(lab).root_port(0, GPU.port) is not None
    assert not filled(lab).root_port.is_secure(STREAM)
