"""The IDE extended capability: places of bits by hand from the base specification and Linux' ``pci_regs.h``."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ide_ends import go, program

from tio.ide import Failure, IdePort, IdeStream, StreamState, SubStream, memory_read, memory_write
from tio.ide.capability import BLOCKS_AT, IdeCapability, address_words, control_word, requester_words

CONTROL, STATUS, RID_1, RID_2, ADDRESS_1 = 4, 8, 12, 16, 20
BLOCK_BYTES = 20 + 3 * 12
ENABLE, DEFAULT, TEE_LIMITED = 1, 1 << 22, 1 << 23


def at(block: int, register: int) -> int:
    return 12 + block * BLOCK_BYTES + register


def device(**more: bool) -> tuple[IdeCapability, IdePort]:
    port = IdePort()
    return IdeCapability(port, blocks=2, is_device=True, **more), port


def keyed(capability: IdeCapability, port: IdePort, stream_id: int, more: int = 0) -> IdeStream:
    """Stream in block 0, with its keys running, and enabled."""
    capability.store(at(0, CONTROL), stream_id << 24 | more)
    stream = port.streams[stream_id]
    program(stream, IdeStream(stream_id))
    go(stream)
    capability.store(at(0, CONTROL), stream_id << 24 | more | ENABLE)
    return stream


def test_what_a_port_can_do_and_where_its_blocks_are() -> None:
    """Selective, aggregation, IDE_KM; two streams as one less; TEE-Limited. AES-256-GCM is 0."""
    capability, _ = device()
    assert capability.load(4) == 1 << 24 | (2 - 1) << 16 | 1 << 6 | 1 << 4 | 1 << 1
    assert capability.size_bytes == BLOCKS_AT + 2 * BLOCK_BYTES
    assert [capability.load(at(block, 0)) for block in range(2)] == [3, 3]
    dump = capability.dump()
    assert (dump[0], dump[1], len(dump)) == (0x30 | 1 << 16, capability.load(4), capability.size_bytes // 4)


def test_words_as_a_host_writes_them() -> None:
    assert control_word(0xAB, enable=True, default=True, tee_limited=True, aggregation=8) == 0xABC0_00FD
    assert control_word(1, aggregation=2) == 0x0100_0054
    assert requester_words(0x0100, 0x01FF) == (0x0001_FF00, 0x0001_0001)
    assert address_words(0x12_3450_0000, 0x12_7FFF_FFFF) == (0x7FF3_4501, 0x12, 0x12)


def test_a_stream_is_there_once_its_block_is_written_and_goes_with_a_zero() -> None:
    capability, port = device()
    assert port.streams == {}
    capability.store(at(0, CONTROL), control_word(5, tee_limited=True, aggregation=4))
    stream = port.streams[5]
    assert stream.settings.tee_limited
    assert set(stream.settings.aggregation.values()) == {4}
    capability.store(at(0, CONTROL), 9 << 24 | 3 << 4)
    assert list(port.streams) == [9]
    assert port.streams[9].settings.aggregation == {SubStream.PR: 8, SubStream.NPR: 1, SubStream.CPL: 1}
    capability.store(at(0, CONTROL), 0)
    assert port.streams == {}


def test_two_blocks_never_have_the_same_stream() -> None:
    capability, port = device()
    capability.store(at(0, CONTROL), 5 << 24)
    first = port.streams[5]
    capability.store(at(1, CONTROL), 5 << 24 | ENABLE)
    assert port.streams == {5: first}
    assert not first.enabled
    capability.store(at(1, CONTROL), 0)
    assert port.streams == {5: first}


def test_status_is_2_while_the_stream_is_secure_and_0_else() -> None:
    capability, port = device()
    stream = keyed(capability, port, 5)
    assert capability.load(at(0, STATUS)) == 2
    stream.fail(Failure.MAC)
    assert capability.load(at(0, STATUS)) == 0
    assert capability.load(at(0, CONTROL)) & ENABLE


def test_the_enable_bit_cleared_ends_a_stream_and_its_keys() -> None:
    capability, port = device()
    stream = keyed(capability, port, 5)
    capability.store(at(0, CONTROL), 5 << 24)
    assert (stream.state, stream.failure) == (StreamState.INSECURE, Failure.DISABLED)
    assert not stream.has_any_key()
    assert port.streams == {5: stream}


def test_nothing_of_an_enabled_stream_changes_but_its_end() -> None:
    capability, port = device()
    capability.store(at(0, RID_1), 0x0002_0000)
    stream = keyed(capability, port, 5)
    for register, value in ((CONTROL, 9 << 24 | TEE_LIMITED | ENABLE), (RID_1, 0xFF00), (RID_2, 1), (ADDRESS_1, 1)):
        before = capability.load(at(0, register))
        capability.store(at(0, register), value)
        assert capability.load(at(0, register)) == before
    assert (stream.state, port.streams) == (StreamState.SECURE, {5: stream})
    # Cleared together with other fields, these are taken.
    capability.store(at(0, CONTROL), 9 << 24 | TEE_LIMITED)
    assert (stream.state, list(port.streams)) == (StreamState.INSECURE, [9])


def test_association_by_address_and_requester_holds_while_the_stream_is_enabled() -> None:
    port = IdePort()
    capability = IdeCapability(port, blocks=2)
    for register, value in zip((RID_1, RID_2), requester_words(0x0100, 0x0107), strict=True):
        capability.store(at(0, register), value)
    for number, value in enumerate(address_words(0xC0_0010_0000, 0xC0_002F_FFFF)):
        capability.store(at(0, ADDRESS_1 + 4 * number), value)
    mine, others = memory_write(0x0105, 0, bytes(4)), memory_write(0x0108, 0, bytes(4))
    edges = [memory_read(0, address, 4) for address in (0xC0_000F_FFFC, 0xC0_0010_0000, 0xC0_002F_FFFC, 0xC0_0030_0000)]
    assert port.stream_of(mine) is None
    capability.store(at(0, CONTROL), 5 << 24 | ENABLE)
    stream = port.streams[5]
    assert [port.stream_of(one) for one in (mine, others)] == [stream, None]
    assert [port.stream_of(one) is stream for one in edges] == [False, True, True, False]
    assert port.send([mine]) == []  # no keys, and not in the clear
    capability.store(at(0, CONTROL), 5 << 24)
    assert port.stream_of(mine) is None


def test_a_tee_limited_stream_is_for_trusted_packets_and_others_go_beside_it() -> None:
    capability, port = device()
    stream = keyed(capability, port, 5, TEE_LIMITED | DEFAULT)
    write = memory_write(0x0100, 0, bytes(4))
    assert port.stream_of(write) is stream
    assert port.stream_of(write, tee=False) is None
    assert port.send([write], tee=False) == [write]


def test_a_default_stream_takes_what_the_device_sends_and_claims_nothing_that_comes() -> None:
    capability, port = device()
    stream = keyed(capability, port, 5, DEFAULT)
    write = memory_write(0x0100, 0, bytes(4))
    assert port.stream_of(write) is stream
    assert [one.packet for one in port.receive([write])] == [write]
    assert stream.state is StreamState.SECURE
    root = IdePort()
    of_root = IdeCapability(root, blocks=1)
    of_root.store(at(0, CONTROL), 5 << 24 | DEFAULT | ENABLE)
    assert root.stream_of(write) is None


def test_whoever_holds_a_stream_hears_of_every_change_before_it_is_done() -> None:
    capability, port = device()
    heard = []
    capability.tampered = lambda stream: heard.append((stream.stream_id, stream.state))
    stream = keyed(capability, port, 5)
    heard.clear()
    fixed = (CONTROL, 5 << 24 | ENABLE), (CONTROL, 7 << 24 | ENABLE), (RID_1, 1 << 8), (STATUS, 1 << 31)
    for register, value in fixed:
        capability.store(at(0, register), value)
    assert heard == []
    capability.store(at(0, CONTROL), 5 << 24)
    assert heard == [(5, StreamState.SECURE)]
    capability.store(at(0, RID_1), 1 << 8)
    assert heard[1:] == [(5, StreamState.INSECURE)]
    assert stream.failure is Failure.DISABLED


def test_a_partner_is_told_of_a_stream_that_failed_and_its_host_sees_it() -> None:
    (one, port), (other, partner) = device(), device()
    stream, theirs = keyed(one, port, 5), keyed(other, partner, 5)
    assert port.fail_messages() == []
    stream.fail(Failure.MAC)
    told = port.fail_messages(0x0100)
    assert len(told) == 1
    assert port.fail_messages() == []
    assert partner.receive(told) == []
    assert (theirs.state, theirs.failure) == (StreamState.INSECURE, Failure.PARTNER)
    assert other.load(at(0, STATUS)) == 1 << 31
    assert partner.fail_messages() == []  # who hears it does not say it back
    other.store(at(0, STATUS), 1 << 31)
    assert other.load(at(0, STATUS)) == 0
    # Of what software did it is not told.
    again = keyed(other, partner, 6)
    again.disable()
    assert partner.fail_messages() == []


def test_a_conventional_reset_leaves_no_stream() -> None:
    capability, port = device()
    stream = keyed(capability, port, 5)
    capability.reset()
    assert (port.streams, port.associations, stream.state) == ({}, [], StreamState.INSECURE)
    assert capability.load(at(0, CONTROL)) == capability.load(at(0, RID_1)) == 0


@pytest.mark.parametrize("offset", [0, 4, 8, 12, 12 + 2 * BLOCK_BYTES, 13, 4094])
def test_what_is_read_only_or_nowhere_stays(offset: int) -> None:
    capability, port = device()
    before = capability.dump()
    capability.store(offset, 0xFFFF_FFFF)
    assert capability.dump() == before
    assert port.streams == {}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 31), st.integers(0, 0xFFFF_FFFF), st.booleans()), max_size=30))
def test_whatever_is_written_registers_streams_and_associations_agree(writes: list) -> None:
    capability, port = device()
    for word, value, plain in writes:
        # Often a control register, of few streams.
        if plain:
            capability.store(4 * word, value)
        else:
            capability.store(at(word % 2, CONTROL), (word % 3) << 24 | value & 0xC0_00FD)
        controls = [capability.load(at(block, CONTROL)) for block in range(2)]
        # A block that named another's stream has none, also when that is gone.
        assert set(port.streams) <= {one >> 24 for one in controls if one}
        assert {number: one.stream_id for number, one in port.streams.items()} == {one: one for one in port.streams}
        enabled = {one >> 24 for one in controls if one & ENABLE}
        assert {one.stream_id for one in port.associations} <= enabled & set(port.streams)
