"""What happens to a card as a whole: resets, other firmware, debug mode, and faults that somebody injects."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial

import pytest
from slot import BARS, CARD, DATA, SESSION, STREAM, Slot, draw, keys_of, running

from tio.card import STREAM_PORT, Card, CardFault
from tio.card_functions import TdiSettings
from tio.device_identity import CardKind, Firmware
from tio.device_security_module import ProtocolId
from tio.dma_port import DmaFault
from tio.gpu import Gpu
from tio.ide import Failure, StreamState
from tio.ide import key_programmer as keys
from tio.ide.key_messages import query
from tio.loose_device import LooseDevice
from tio.pci import DeviceControl, Register
from tio.spdm import PCI_DOE, PeerRefused, Requester, RequesterSettings, SpdmFault, TrustAnchors
from tio.spdm.algorithms import Aead
from tio.spdm.capabilities import Capability
from tio.spdm.connection_messages import PCI_SIG_STANDARD, PCI_SIG_VENDOR
from tio.spdm.negotiation import Offer
from tio.steps import carry
from tio.tdisp import InterfaceId, LockFlags, LockRequest, RangeAttributes, Tampering, TdispError, TdiState, requester

ONES = 0xFFFF_FFFF
MEMORY_AT = BARS[2]


def test_a_conventional_reset_leaves_nothing_of_keys_locks_and_registers() -> None:
    slot = running()
    slot.gpu.memory[:4] = 7
    stream = slot.card.port.streams[STREAM]
    slot.root.reset()
    assert slot.card.tdi.state is TdiState.CONFIG_UNLOCKED
    assert (stream.state, stream.failure, stream.has_any_key()) == (StreamState.INSECURE, Failure.RESET, False)
    assert not slot.gpu.memory.any()
    assert slot.card.space.bar_address(0) == 0
    assert slot.root.load(MEMORY_AT, 4, tee=False) == slot.root.load(MEMORY_AT, 4, tee=True) == ONES
    assert slot.root.configuration_read(CARD, Register.VENDOR_ID, 2) == 0x1AF4


def test_a_session_through_the_mailbox_does_not_outlive_a_conventional_reset() -> None:
    slot = Slot()
    one = Requester(RequesterSettings(anchors=TrustAnchors((slot.card.identity.root,))), PCI_DOE, draw)

    def do(steps):
        return carry(steps, slot.through_the_mailbox)

    do(one.connect())
    do(one.digests())
    do(one.certificates())
    session = do(one.open_session())
    do(one.heartbeat(session))
    slot.root.reset()
    with pytest.raises(SpdmFault):
        do(one.heartbeat(session))


def test_a_card_without_tee_io_proves_who_it_is_and_has_neither_streams_nor_interfaces() -> None:
    card = Card(CardKind.NVME, LooseDevice(), draw, requester_id=CARD, tdi=TdiSettings(tee_io=False))
    assert not card.space.read(Register.DEVICE_CAPABILITIES) & 1 << 30
    # One extended capability, the mailbox (0x2E), and none behind it.
    assert (card.space.read(0x100), card.functions.tdis, card.port.streams) == (0x1_002E, [], {})
    one = Requester(RequesterSettings(anchors=TrustAnchors((card.identity.root,))), PCI_DOE, draw)
    responder = card.responder(PCI_DOE)

    def do(steps):
        return carry(steps, responder.answer)

    for steps in (one.connect(), one.digests(), one.certificates()):
        do(steps)
    session = do(one.open_session())
    with pytest.raises(SpdmFault, match="UNSUPPORTED_REQUEST"):
        do(one.vendor_defined(b"\1\x10\x81" + bytes(14), PCI_SIG_STANDARD, PCI_SIG_VENDOR, session))


@pytest.mark.parametrize("encrypts", [True, False])
@pytest.mark.parametrize("wants", [True, False])
@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        # QUERY of the port with streams, and GET_TDISP_VERSION of the function: what would be answered begins so.
        (b"\0" + query(1), b"\0\1\0\1\0\1"),
        (b"\1\x10\x81\0\0" + CARD.to_bytes(4, "little") + bytes(8), b"\1\x10\x01"),
    ],
    ids=["IDE_KM", "TDISP"],
)
def test_a_security_module_hears_what_nobody_overhears_and_nothing_else(
    asked: bytes, answered: bytes, wants: bool, encrypts: bool
) -> None:
    card = Card(CardKind.NVME, LooseDevice(), draw, requester_id=CARD, wants_encryption=wants)
    own = RequesterSettings().capabilities & ~(Capability(0) if encrypts else Capability.ENCRYPT)
    one = Requester(RequesterSettings(capabilities=own), PCI_DOE, draw)
    responder = card.responder(PCI_DOE)

    def do(steps):
        return carry(steps, responder.answer)

    for steps in (one.connect(), one.digests(), one.certificates()):
        do(steps)
    session = do(one.open_session())
    for place in (session, None):
        steps = one.vendor_defined(asked, PCI_SIG_STANDARD, PCI_SIG_VENDOR, place)
        if place is session and (encrypts or not wants):
            assert do(steps).startswith(answered)
        else:
            with pytest.raises(PeerRefused, match="UNSUPPORTED_REQUEST"):
                do(steps)
    do(one.heartbeat(session))


@pytest.mark.parametrize(("wants", "cipher", "heard"), [
    (False, Aead.AES_128_GCM, True), (True, Aead.AES_128_GCM, False), (True, Aead.AES_256_GCM, True),
])  # fmt: skip
def test_a_security_module_may_want_the_longer_key(wants: bool, cipher: Aead, heard: bool) -> None:
    card = Card(CardKind.NVME, LooseDevice(), draw, requester_id=CARD, wants_aes_256=wants)
    one = Requester(RequesterSettings(offer=Offer(aead=(cipher,))), PCI_DOE, draw)
    responder = card.responder(PCI_DOE)

    def do(steps):
        return carry(steps, responder.answer)

    for steps in (one.connect(), one.digests(), one.certificates()):
        do(steps)
    steps = one.vendor_defined(b"\0" + query(1), PCI_SIG_STANDARD, PCI_SIG_VENDOR, do(one.open_session()))
    with contextlib.nullcontext() if heard else pytest.raises(PeerRefused, match="UNSUPPORTED_REQUEST"):
        assert do(steps)[:2] == b"\0\1"


@pytest.mark.parametrize("ends", [False, True])
def test_a_function_level_reset_ends_session_and_stream_only_where_the_card_is_such(ends: bool) -> None:
    card = Card(CardKind.NVME, LooseDevice(), draw, requester_id=CARD, reset_ends_session=ends)
    slot = running(card)
    slot.root.configuration_write(CARD, Register.DEVICE_CONTROL, DeviceControl.FUNCTION_LEVEL_RESET, 2)
    assert card.tdi.state is TdiState.ERROR
    assert (card.port.streams[STREAM].state is StreamState.INSECURE) is ends


@pytest.mark.parametrize(
    ("firmware", "flags", "why"),
    [
        (Firmware("1.1", 2), LockFlags.NO_FW_UPDATE, Tampering.FIRMWARE_UPDATE),
        (Firmware("1.1", 2), LockFlags(0), None),
        (Firmware("0.9", 0), LockFlags(0), Tampering.SVN_ROLLBACK),
    ],
)
def test_other_firmware_breaks_a_lock_that_forbids_it_and_older_firmware_every_one(
    firmware: Firmware, flags: LockFlags, why: Tampering | None
) -> None:
    slot = running(flags=flags)
    slot.card.update_firmware(firmware)
    assert slot.card.tdi.state is (TdiState.RUN if why is None else TdiState.ERROR)
    assert slot.card.tdi.why is why


def test_debug_mode_breaks_every_lock_and_is_measured() -> None:
    slot = running(flags=LockFlags(0))

    def mode() -> bytes:
        one = Requester(RequesterSettings(anchors=TrustAnchors((slot.card.identity.root,))), PCI_DOE, draw)
        responder = slot.card.responder(PCI_DOE)

        def do(steps):
            return carry(steps, responder.answer)

        do(one.connect())
        do(one.digests())
        do(one.certificates())
        return next(block.value for block in do(one.measurements(slot=0)) if block.index == 0xFE)

    before = mode()
    slot.card.enable_debug()
    assert (slot.card.tdi.state, slot.card.tdi.why) == (TdiState.ERROR, Tampering.DEBUG_MODE)
    # DMTF's device mode: operational modes, and what of debugging can be and is active.
    assert before == bytes.fromhex("04000000 04000000 00000000 00000000")
    assert mode() == bytes.fromhex("04000000 04000000 02000000 02000000")
    slot.card.reset()
    assert mode() == before


@pytest.mark.parametrize("scrubs", [True, False])
@pytest.mark.parametrize("how", ["stop", "error"])
def test_what_trusted_work_left_is_cleared_by_a_card_that_scrubs(scrubs: bool, how: str) -> None:
    """Row 84 of the matrix, ``tdi_scrub``."""
    gpu = Gpu(None, 1 << 16)  # type: ignore[arg-type]  # which never asks for memory here
    card = Card(
        CardKind.GPU, gpu, draw, memory_bytes=1 << 16, requester_id=CARD, tdi=TdiSettings(scrubs=scrubs)
    )
    slot = running(card)
    slot.root.store(MEMORY_AT, 0x5EC5E7, 4, tee=True)
    if how == "stop":
        slot.stop()
    else:
        card.dsm.end_session(SESSION)
        assert slot.root.load(MEMORY_AT, 4, tee=False) == ONES
        slot.stop()
    assert slot.root.load(MEMORY_AT, 4, tee=False) == (0 if scrubs else 0x5EC5E7)


def test_a_silent_card_is_a_timeout_and_comes_back() -> None:
    slot = running()
    slot.card.inject(CardFault.SILENT)
    assert slot.root.load(MEMORY_AT, 4, tee=True) == ONES
    slot.card.heal()
    # What it did not take is missing in the order of its stream.
    assert slot.root.load(MEMORY_AT, 4, tee=True) == ONES
    assert slot.card.tdi.state is TdiState.ERROR


def test_what_is_marked_as_wrong_reaches_no_memory() -> None:
    slot = running()
    slot.card.inject(CardFault.POISONED)
    slot.dma.write(DATA, b"wrong" * 200)
    assert slot.memory.octets[DATA : DATA + 1000] == bytes(1000)
    slot.card.heal()
    slot.dma.write(DATA, b"right")
    assert slot.memory.octets[DATA : DATA + 5] == b"right"


def test_an_error_inside_takes_the_interface_with_it() -> None:
    slot = running()
    slot.card.inject(CardFault.INTERNAL)
    assert (slot.card.tdi.state, slot.card.tdi.why) == (TdiState.ERROR, Tampering.INTERNAL)
    with pytest.raises(DmaFault):
        slot.dma.read(DATA, 4)


def test_a_card_is_made_without_certificates_until_somebody_asks() -> None:
    slot = Slot()
    assert "identity" not in vars(slot.card)


def test_a_guest_opens_the_devices_memory_to_its_host_and_takes_it_back_but_no_register() -> None:
    slot = running(flags=LockFlags(0))
    slot.root.store(MEMORY_AT, 7, 4, tee=True)
    registers, memory = slot.card.tdi.report().ranges
    assert (memory.range_id, memory.attributes) == (2, RangeAttributes.IS_MEM_ATTR_UPDATABLE)
    for non_tee in (RangeAttributes.IS_NON_TEE_MEM, RangeAttributes(0)):
        wanted = replace(memory, attributes=RangeAttributes.IS_MEM_ATTR_UPDATABLE | non_tee)
        slot.tdisp(requester.set_mmio_attribute(InterfaceId(CARD), wanted.pack()))
        assert slot.root.load(MEMORY_AT, 4, tee=True) == 7
        assert slot.root.load(MEMORY_AT, 4, tee=False) == (7 if non_tee else ONES)
    wanted = replace(registers, attributes=RangeAttributes.IS_NON_TEE_MEM)
    with pytest.raises(TdispError):
        slot.tdisp(requester.set_mmio_attribute(InterfaceId(CARD), wanted.pack()))
    assert slot.root.load(BARS[0], 4, tee=False) == ONES


def test_no_two_locks_of_a_card_have_a_nonce_in_common() -> None:
    slot = Slot()
    slot.give_keys()
    nonces = []
    for _ in range(3):
        nonces.append(slot.lock())
        for older in nonces[:-1]:
            with pytest.raises(TdispError, match="INVALID_NONCE"):
                slot.tdisp(requester.start_interface(InterfaceId(CARD), older))
        assert slot.card.tdi.state is TdiState.CONFIG_LOCKED
        if len(nonces) < 3:
            slot.stop()
            slot.give_keys()
    slot.tdisp(requester.start_interface(InterfaceId(CARD), nonces[-1]))
    assert slot.card.tdi.state is TdiState.RUN


def test_what_a_session_locked_no_session_of_another_connection_touches() -> None:
    """Randomness that is always the same gives both sessions one number; the card tells them apart all the same."""
    card = Card(CardKind.NVME, LooseDevice(), draw, requester_id=CARD, programmed=True)

    def connected(number: int):
        one = Requester(RequesterSettings(anchors=TrustAnchors((card.identity.root,))), PCI_DOE, draw)
        responder = card.responder(PCI_DOE, number)
        do = partial(carry, answer=responder.answer)
        for steps in (one.connect(), one.digests(), one.certificates()):
            do(steps)
        session = do(one.open_session())

        def ask(protocol: ProtocolId, message: bytes) -> bytes:
            asked = bytes((protocol,)) + message
            return do(one.vendor_defined(asked, PCI_SIG_STANDARD, PCI_SIG_VENDOR, session))[1:]

        return session, responder, ask

    (mine, responder, ask), (other, others_responder, others_ask) = connected(1), connected(2)
    assert mine.session_id == other.session_id
    carry(keys.program_keys(STREAM_PORT, STREAM, 0, keys_of()), partial(ask, ProtocolId.IDE_KM))
    lock = requester.lock_interface(InterfaceId(CARD), LockRequest(LockFlags(0), STREAM))
    carry(lock, partial(ask, ProtocolId.TDISP))
    with pytest.raises(TdispError):
        carry(requester.stop_interface(InterfaceId(CARD)), partial(others_ask, ProtocolId.TDISP))
    others_responder.close()
    assert card.tdi.state is TdiState.CONFIG_LOCKED
    responder.close()
    assert card.tdi.state is TdiState.ERROR
