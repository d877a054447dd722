"""A guest works on a GPU that nobody between them is trusted with: sealed work through memory that the host sees."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from slot import BARS, CARD, DATA, FENCE, GPU_MEMORY, RESULT, RING, Slot, draw

from tio.doe import DataObject
from tio.gpu import COMMAND_BYTES, MAILBOX_AT, Gpu, GpuCommand, GpuOpcode, GpuRegister, GpuStatus
from tio.gpu_card import gpu_card
from tio.gpu_channel import (
    TAG_BYTES,
    VENDOR,
    ChannelCode,
    ChannelKeeper,
    ChannelStatus,
    GpuChannel,
    Unsealed,
    close_request,
    open_request,
    status_of,
)
from tio.pci import DeviceControl, Register
from tio.pci.doe_mailbox import exchange
from tio.spdm import PCI_DOE, PeerRefused, Requester, RequesterSettings, SpdmFault, TrustAnchors
from tio.spdm.capabilities import Capability
from tio.spdm.connection_messages import PCI_SIG_STANDARD, PCI_SIG_VENDOR
from tio.steps import carry

KEYS = tuple(hashlib.sha256(bytes((use,))).digest() for use in range(3))
CANARY = b"a tenant's model, which neither host nor link may see"
SEALED_AT = 0x20000


class Guest:
    """A guest whose device its host assigned without TDISP: all memory here is shared."""

    def __init__(self, *, opens: bool = True) -> None:
        card, self.gpu = gpu_card(draw, GPU_MEMORY, requester_id=CARD)
        self.slot = Slot(card)
        self.slot.watch()
        self.channel = GpuChannel(KEYS)
        self.sequence = 0
        if opens:  # as a session does it, which has a test of its own
            self.gpu.set_channel(GpuChannel(KEYS))
        self.slot.open_ring(tee=False, entries=64)

    def submit(self, command: GpuCommand) -> GpuStatus:
        """Seal a command, have it done, believe its fence. Raises Unsealed."""
        octets = self.slot.memory.octets
        sealed = self.channel.command(command.pack())
        octets[SEALED_AT : SEALED_AT + len(sealed)] = sealed
        self.slot.submit([GpuCommand(GpuOpcode.SEALED, command.sequence, SEALED_AT, 0, 0)], tee=False)
        return self.believe()

    def believe(self) -> GpuStatus:
        fence = bytes(self.slot.memory.octets[FENCE : FENCE + 8 + TAG_BYTES])
        self.channel.check_fence(fence[:8], fence[8:])
        self.sequence, status = struct.unpack("<II", fence[:8])
        return GpuStatus(status)

    def copy_in(self, data: bytes, destination: int, tamper: Callable[[bytearray], None] | None = None) -> GpuStatus:
        sealed = self.channel.bring_in(data)
        self.slot.memory.octets[DATA : DATA + len(sealed)] = sealed
        if tamper is not None:
            tamper(self.slot.memory.octets)
        return self.submit(GpuCommand(GpuOpcode.COPY_IN, 1, DATA, destination, len(data)))

    def copy_out(self, source: int, length: int) -> bytes:
        """Raises Unsealed."""
        command = GpuCommand(GpuOpcode.COPY_OUT, 2, source, RESULT, length)
        sealed = self.channel.command(command.pack())
        octets = self.slot.memory.octets
        octets[SEALED_AT : SEALED_AT + len(sealed)] = sealed
        self.slot.submit([GpuCommand(GpuOpcode.SEALED, 2, SEALED_AT, 0, 0)], tee=False)
        data = self.channel.read_out(bytes(octets[RESULT : RESULT + length + TAG_BYTES]))
        assert self.believe() is GpuStatus.DONE
        return data

    def everything_the_host_saw(self) -> bytes:
        return bytes(self.slot.memory.octets) + self.slot.on_the_wire()


def attested(slot: Slot, **settings: Any):
    """What carries a requester's steps by loads and stores of the GPU's own mailbox, the requester, and its session."""
    one = Requester(RequesterSettings(anchors=TrustAnchors((slot.card.identity.root,)), **settings), PCI_DOE, draw)

    def asked(packet):
        wrapped = PCI_DOE.wrap(packet)
        found = exchange(
            lambda offset: slot.root.load(BARS[0] + MAILBOX_AT + offset, 4, tee=False),
            lambda offset, value: slot.root.store(BARS[0] + MAILBOX_AT + offset, value, 4, tee=False),
            DataObject(1, wrapped[2], wrapped[8:]),
        )
        assert found is not None
        return PCI_DOE.unwrap(found.pack())

    def do(steps):
        return carry(steps, asked)

    do(one.connect())
    do(one.digests())
    do(one.certificates())
    do(one.challenge())
    return do, one, do(one.open_session())


def test_a_guest_attests_its_gpu_opens_a_channel_in_the_session_and_its_host_learns_nothing() -> None:
    guest = Guest(opens=False)
    slot = guest.slot
    do, one, session = attested(slot)
    do(one.measurements(slot=0, session=session))
    answer = do(one.vendor_defined(open_request(KEYS), PCI_SIG_STANDARD, VENDOR, session))
    assert status_of(answer, ChannelCode.OPEN) is ChannelStatus.DONE
    slot.open_ring(tee=False, entries=64)
    drawn = np.random.default_rng(11).integers(0, 1 << 16, (2, 6, 6))
    product = [sum(map(int.__mul__, row, column)) for row in drawn[0].tolist() for column in drawn[1].T.tolist()]
    assert guest.copy_in(drawn.astype("<i4").tobytes() + CANARY, 0) is GpuStatus.DONE
    assert guest.submit(GpuCommand(GpuOpcode.MULTIPLY, 2, 0, 0x1000, 144, 6, 6, 6)) is GpuStatus.DONE
    assert guest.copy_out(0x1000, 144) == struct.pack("<36I", *[value % (1 << 32) for value in product])
    assert guest.copy_out(288, len(CANARY)) == CANARY
    seen = guest.everything_the_host_saw()
    assert CANARY not in seen
    assert not any(key in seen for key in KEYS)
    answer = do(one.vendor_defined(close_request(), PCI_SIG_STANDARD, VENDOR, session))
    assert status_of(answer, ChannelCode.CLOSE) is ChannelStatus.DONE
    assert not guest.gpu.memory.any()
    do(one.vendor_defined(open_request(KEYS), PCI_SIG_STANDARD, VENDOR, session))
    guest.gpu.memory[:] = 1
    do(one.end_session(session))
    assert not guest.gpu.memory.any()


def test_without_a_channel_the_host_reads_what_is_copied() -> None:
    """The positive control."""
    guest = Guest(opens=False)
    guest.slot.memory.octets[DATA : DATA + len(CANARY)] = CANARY
    command = GpuCommand(GpuOpcode.COPY_IN, 1, DATA, 0, len(CANARY))
    assert guest.slot.submit([command], tee=False) == (1, GpuStatus.DONE)
    assert CANARY in guest.slot.on_the_wire()
    assert guest.slot.root.load(BARS[2], 4, tee=False) == int.from_bytes(CANARY[:4], "little")


# What the host tries.


def test_a_host_reads_no_device_memory_while_a_channel_is_open() -> None:
    guest = Guest()
    guest.copy_in(CANARY, 0)
    slot = guest.slot
    assert slot.root.load(BARS[2], 8, tee=False) == (1 << 64) - 1
    slot.root.store(BARS[2], 0, 8, tee=False)
    for command in (
        GpuCommand(GpuOpcode.COPY_OUT, 9, 0, RESULT, len(CANARY)),
        GpuCommand(GpuOpcode.COPY_IN, 9, RESULT, 0, 16),
        GpuCommand(GpuOpcode.MULTIPLY, 9, 0, 0, 0, 1, 1, 1),
    ):
        assert slot.submit([command], tee=False) == (9, GpuStatus.NOT_SEALED)
        assert guest.believe() is GpuStatus.NOT_SEALED  # the device says itself that somebody tried
    assert guest.copy_out(0, len(CANARY)) == CANARY


def flip(at: int) -> Callable[[bytearray], None]:
    def flipped(octets: bytearray) -> None:
        octets[at] ^= 1

    return flipped


def test_a_bit_changed_in_data_closes_the_channel_and_clears_the_device() -> None:
    for at in (DATA, DATA + len(CANARY), DATA + len(CANARY) + TAG_BYTES - 1):
        guest = Guest()
        guest.copy_in(CANARY, 0x100)
        with pytest.raises(Unsealed):
            guest.copy_in(CANARY, 0, flip(at))
        assert guest.slot.memory.octets[FENCE + 4] == GpuStatus.NOT_OPENED
        assert not guest.gpu.memory.any()
        assert guest.slot.root.load(BARS[0] + GpuRegister.RING_ENTRIES, 4, tee=False) == 0


@pytest.mark.parametrize("what", ["command", "data"])
def test_what_was_sealed_before_opens_nothing_again(what: str) -> None:
    guest = Guest()
    slot = guest.slot
    guest.copy_in(CANARY, 0)
    old = bytes(slot.memory.octets[SEALED_AT : SEALED_AT + COMMAND_BYTES + TAG_BYTES])
    if what == "command":
        slot.memory.octets[SEALED_AT : SEALED_AT + len(old)] = old
        slot.submit([GpuCommand(GpuOpcode.SEALED, 1, SEALED_AT, 0, 0)], tee=False)
    else:
        data = bytes(slot.memory.octets[DATA : DATA + len(CANARY) + TAG_BYTES])

        def put_back(octets: bytearray) -> None:
            octets[DATA : DATA + len(data)] = data

        with pytest.raises(Unsealed):
            guest.copy_in(b"something else of the same length".ljust(len(CANARY)), 0, put_back)
    assert slot.memory.octets[FENCE + 4] == GpuStatus.NOT_OPENED
    assert not guest.gpu.memory.any()


def test_a_fence_that_the_host_wrote_is_not_believed() -> None:
    guest = Guest()
    guest.copy_in(CANARY, 0)
    guest.slot.memory.octets[FENCE : FENCE + 8] = struct.pack("<II", 2, GpuStatus.DONE)
    with pytest.raises(Unsealed):
        guest.believe()


def test_a_reset_by_the_host_ends_the_session_of_the_mailbox() -> None:
    guest = Guest(opens=False)
    slot = guest.slot
    do, one, session = attested(slot)
    do(one.vendor_defined(open_request(KEYS), PCI_SIG_STANDARD, VENDOR, session))
    guest.gpu.memory[:] = 1
    slot.root.configuration_write(CARD, Register.DEVICE_CONTROL, DeviceControl.FUNCTION_LEVEL_RESET, 2)
    assert not guest.gpu.memory.any()
    slot.set_up()
    with pytest.raises(SpdmFault):
        do(one.vendor_defined(open_request(KEYS), PCI_SIG_STANDARD, VENDOR, session))
    do, one, session = attested(slot)
    answer = do(one.vendor_defined(open_request(KEYS), PCI_SIG_STANDARD, VENDOR, session))
    assert status_of(answer, ChannelCode.OPEN) is ChannelStatus.DONE


def test_a_session_of_the_mailbox_gives_neither_keys_nor_locks() -> None:
    """Key management and TDISP are the card's own mailbox's alone."""
    guest = Guest(opens=False)
    do, one, session = attested(guest.slot)
    for protocol in (b"\0", b"\1"):
        with pytest.raises(PeerRefused):
            do(one.vendor_defined(protocol + bytes(20), PCI_SIG_STANDARD, PCI_SIG_VENDOR, session))


def test_a_session_that_only_authenticates_opens_no_channel() -> None:
    guest = Guest(opens=False)
    do, one, session = attested(guest.slot, capabilities=RequesterSettings().capabilities & ~Capability.ENCRYPT)
    with pytest.raises(PeerRefused):
        do(one.vendor_defined(open_request(KEYS), PCI_SIG_STANDARD, VENDOR, session))
    entry = GpuCommand(GpuOpcode.SEALED, 5, DATA, 0, 0)
    assert guest.slot.submit([entry], tee=False) == (5, GpuStatus.NOT_SEALED)


def test_a_reset_by_the_host_ends_channel_and_data() -> None:
    guest = Guest()
    guest.copy_in(CANARY, 0)
    guest.slot.root.configuration_write(CARD, Register.DEVICE_CONTROL, DeviceControl.FUNCTION_LEVEL_RESET, 2)
    assert not guest.gpu.memory.any()
    assert guest.gpu._channel is None


def test_sealed_entries_are_refused_without_a_channel() -> None:
    guest = Guest(opens=False)
    entry = GpuCommand(GpuOpcode.SEALED, 5, DATA, 0, 0)
    assert guest.slot.submit([entry], tee=False) == (5, GpuStatus.NOT_SEALED)


def test_a_sealed_entry_that_seals_another_is_unknown() -> None:
    guest = Guest()
    assert guest.submit(GpuCommand(GpuOpcode.SEALED, 3, SEALED_AT, 0, 0)) is GpuStatus.UNKNOWN_OPCODE


# Messages.


def test_the_channel_belongs_to_the_session_that_opened_it() -> None:
    heard: list[GpuChannel | None] = []
    keeper = ChannelKeeper(heard.append)

    def ask(session: int | None, message: bytes) -> ChannelStatus | None:
        answer = keeper.answer(session, message)
        return None if answer is None else status_of(answer, ChannelCode(message[0]))

    assert ask(None, open_request(KEYS)) is None
    assert ask(1, close_request()) is ChannelStatus.IN_USE
    assert ask(1, open_request(KEYS)) is ChannelStatus.DONE
    assert ask(2, open_request(KEYS)) is ChannelStatus.IN_USE
    assert ask(2, close_request()) is ChannelStatus.IN_USE
    assert ask(1, open_request(KEYS)) is ChannelStatus.DONE  # new keys
    keeper.end_session(2)
    assert (len(heard), heard[-1] is None) == (2, False)
    keeper.end_session(1)
    assert heard[-1] is None
    assert ask(2, open_request(KEYS)) is ChannelStatus.DONE
    keeper.lost()
    assert ask(1, open_request(KEYS)) is ChannelStatus.DONE


@pytest.mark.parametrize(
    "message",
    [
        open_request(KEYS)[:-1], open_request(KEYS) + b"\0", open_request((KEYS[0], KEYS[0], KEYS[1])),
        b"\x01\x02\0\0" + bytes(96), b"\x01\x01\x01\0" + bytes(96), b"\x02\x01\0\0\0", b"\x02\x02\0\0",
    ],
)  # fmt: skip
def test_a_malformed_message_opens_and_closes_nothing(message: bytes) -> None:
    heard: list[GpuChannel | None] = []
    keeper = ChannelKeeper(heard.append)
    answer = keeper.answer(1, message)
    assert answer is not None
    assert status_of(answer, ChannelCode(message[0])) is ChannelStatus.MALFORMED
    assert heard == []
    assert [keeper.answer(1, octets) for octets in (b"", b"\x01", b"\x03\x01\0\0", b"\0" * 100)] == [None] * 4


def test_a_record_is_gcm_with_a_count_of_its_own_for_each_use() -> None:
    """As another part of the library opens it."""
    channel = GpuChannel(KEYS)
    for count in (1, 2):
        for key, seal in zip(KEYS, (channel.command, channel.bring_in, channel.take_out), strict=True):
            sealed = seal(CANARY)
            gcm = modes.GCM(count.to_bytes(12, "little"), sealed[-TAG_BYTES:])
            opener = Cipher(algorithms.AES(key), gcm).decryptor()
            assert opener.update(sealed[:-TAG_BYTES]) + opener.finalize() == CANARY


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=8)), max_size=6), st.integers(0, 3))
def test_whatever_the_host_writes_between_no_wrong_data_arrives(writes: list, place: int) -> None:
    octets = bytearray(1 << 18)

    class Ram:
        def read(self, address: int, length: int) -> bytes:
            return bytes(octets[address : address + length])

        def write(self, address: int, data: bytes) -> None:
            octets[address : address + len(data)] = data

    gpu, guest = Gpu(Ram(), 1 << 12), GpuChannel(KEYS)
    gpu.set_channel(GpuChannel(KEYS))
    for register, value in ((GpuRegister.RING_BASE, RING), (GpuRegister.FENCE_BASE, FENCE)):
        gpu.store(0, register, value, 8)
    gpu.store(0, GpuRegister.RING_ENTRIES, 4, 4)
    sealed = guest.bring_in(CANARY)
    octets[DATA : DATA + len(sealed)] = sealed
    command = guest.command(GpuCommand(GpuOpcode.COPY_IN, 1, DATA, 0, len(CANARY)).pack())
    octets[SEALED_AT : SEALED_AT + len(command)] = command
    octets[RING : RING + 64] = GpuCommand(GpuOpcode.SEALED, 1, SEALED_AT, 0, 0).pack()
    first, size = ((RING, 64), (SEALED_AT, 80), (DATA, 80), (0, 1 << 16))[place]
    for offset, data in writes:
        at = first + offset % size
        octets[at : at + len(data)] = data
    gpu.store(0, GpuRegister.DOORBELL, 1, 4)
    assert gpu.memory[: len(CANARY)].tobytes() in (CANARY, bytes(len(CANARY)))
