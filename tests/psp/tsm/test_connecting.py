"""TIO_INIT to TIO_DEV_CONNECT: a device is connected by packets that its host carries and learns nothing from."""

from __future__ import annotations

import hashlib

import pytest
from device_bench import CONTEXT, PORT, RID, STATUS, STREAM, connected, new_bench

from psp import tsm
from psp.commands import SnpCommand
from psp.status import Status
from tio.ide import StreamState, memory_write
from tio.spdm import ResponderSettings
from tio.spdm.algorithms import BaseHash
from tio.spdm.capabilities import Capability
from tio.spdm.certificate_chain import pack_chain
from tio.spdm.device_personality import TEE_IO_CAPABILITIES


def test_a_device_is_connected_and_both_ends_of_its_link_hold_the_same_keys() -> None:
    bench = connected()
    root, card = bench.trusted_io.ports[0, PORT].port, bench.card.port
    assert root.streams[STREAM].state is card.streams[STREAM].state is StreamState.SECURE
    for sender, receiver in ((card, root), (root, card)):
        packets = sender.streams[STREAM].send([memory_write(RID, 0x1000, b"\x5a" * 64)])
        (arrived,) = receiver.receive(packets)
        assert (arrived.packet.payload, arrived.tee, arrived.stream_id) == (b"\x5a" * 64, True, STREAM)
        assert b"\x5a" * 16 not in b"".join(one.payload for one in packets)


def test_no_key_of_the_link_is_in_host_memory_or_in_what_the_host_carried() -> None:
    bench = connected()
    keys = bench.trusted_io.ports[0, PORT].keys
    assert len(keys) == 6
    assert len(set(keys)) == 6
    memory = b"".join(bench.machine.bus.pages.values())
    for key in keys:
        for form in (key, key[::-1]):
            assert form not in memory
            assert form not in bench.seen


@pytest.mark.parametrize(
    ("wants", "status"),
    [
        ((True, True), Status.ERR_IN_DEV_CONN),
        ((True, False), Status.ERR_IN_DEV_CONN),
        ((False, True), Status.SPDM_ERROR),
        ((False, False), Status.SUCCESS),
    ],
)
def test_keys_go_through_a_session_that_only_authenticates_where_neither_firmware_nor_device_minds(
    wants: tuple[bool, bool], status: Status
) -> None:
    capabilities = TEE_IO_CAPABILITIES & ~Capability.ENCRYPT
    bench = new_bench(settings=ResponderSettings(capabilities=capabilities), wants_encryption=wants)
    bench.create()
    assert bench.connect() == status
    # Firmware that minds goes no further than to capabilities. Where the device alone does, no key is ever sent: the
    # question before the first, which stream's port is whose, has no answer.
    keys = bench.trusted_io.ports[0, PORT].keys
    found = sum(key[::-1] in bench.seen for key in keys)
    assert (len(keys), found) == ((6, 6) if status is Status.SUCCESS else (0, 0))
    assert (len(bench.statuses) == 2) is wants[0]


def test_its_status_says_who_it_is_and_what_it_showed() -> None:
    bench = connected()
    found = bench.device_status()
    assert (found.length, found.state, found.flags) == (0xA0, tsm.DeviceState.CONNECTED, 0)
    assert (found.requester, found.segment, found.tc_mask, found.certificate_slot) == (RID, 0, 1, 0)
    assert found.stream_ids == bytes((STREAM,)).ljust(8, b"\0")
    chain = pack_chain(BaseHash.SHA_384.value, bench.card.identity.certificates)
    assert found.certificates_digest == hashlib.sha384(chain).digest()
    assert found.measurements_digest not in (bytes(48), found.certificates_digest)
    assert found.more_flags == 1
    # P-384, AES-256-GCM, ECDSA P-384, SHA-384, the key schedule of SPDM.
    assert found.algorithms.to_bytes(8, "little") == bytes((1, 1, 2, 1, 0, 0, 0, 0))
    assert (found.tdi_count, found.bound_tdi_count, found.pending) == (0, 0, 0)


def test_a_device_that_was_created_is_not_connected() -> None:
    bench = new_bench()
    assert bench.create() == Status.SUCCESS
    found = bench.device_status()
    assert (found.state, found.tc_mask, found.certificates_digest) == (tsm.DeviceState.CREATED, 0, bytes(48))


def test_tio_status_says_what_buffers_must_be() -> None:
    bench = new_bench(tio_init=False)
    bench.lend(STATUS)
    for expected in (1, 3):
        assert bench.ask(SnpCommand.TIO_STATUS, tsm.TioStatus, address=STATUS) == Status.SUCCESS
        found = tsm.TioStatusRecord.parse(bench.machine.bus.read(STATUS, 64))
        assert (found.length, found.flags) == (64, expected)
        sizes = [
            (found.request_min, found.request_max), (found.scratch_min, found.scratch_max),
            (found.output_min, found.output_max), (found.response_min, found.response_max),
        ]  # fmt: skip
        assert all(0 < least <= most for least, most in sizes)
        assert found.device_context_bytes == found.tdi_context_bytes == 4096
        if expected == 1:
            assert bench.ask(SnpCommand.TIO_INIT, tsm.TioInit) == Status.SUCCESS


def test_a_pending_command_shows_in_the_status() -> None:
    bench = new_bench()
    bench.create()
    bench.lay_buffers()
    order = bench.order(tsm.DeviceConnect, tc_mask=1, stream_ids=b"\1".ljust(8, b"\0"))
    assert bench.give(SnpCommand.TIO_DEV_CONNECT, order) == Status.SPDM_REQUEST
    found = bench.device_status()
    assert (found.flags, found.pending, found.pending_interface) == (1, 0xD4, bytes(12))


def test_what_is_put_out_first_is_get_version_as_the_standard_has_it() -> None:
    bench = new_bench()
    bench.create()
    bench.lay_buffers()
    order = bench.order(tsm.DeviceConnect, tc_mask=1, stream_ids=b"\1".ljust(8, b"\0"))
    bench.give(SnpCommand.TIO_DEV_CONNECT, order)
    payload, secured = bench.asked()
    assert (payload, secured) == (bytes.fromhex("10840000"), False)


def test_a_device_is_disconnected_and_connected_again_with_other_keys() -> None:
    bench = connected()
    before = bench.device_status()
    order = bench.order(tsm.DeviceOrder)
    assert bench.run(SnpCommand.TIO_DEV_DISCONNECT, order) == Status.SUCCESS
    assert bench.device_status().state == tsm.DeviceState.CREATED
    assert bench.trusted_io.ports[0, PORT].port.streams[STREAM].state is StreamState.INSECURE
    assert bench.card.port.streams[STREAM].state is StreamState.INSECURE
    assert bench.connect() == Status.SUCCESS
    bench.enable_streams()
    assert bench.trusted_io.ports[0, PORT].is_secure(STREAM)
    assert len(set(bench.trusted_io.ports[0, PORT].keys)) == 12
    assert bench.device_status().certificates_digest == before.certificates_digest


def test_a_device_that_is_disconnected_is_reclaimed_and_its_context_is_none_any_more() -> None:
    bench = connected()
    assert bench.ask(SnpCommand.TIO_DEV_RECLAIM, tsm.DeviceReclaim, device=CONTEXT) == Status.INVALID_DEV_STATE
    assert bench.run(SnpCommand.TIO_DEV_DISCONNECT, bench.order(tsm.DeviceOrder)) == Status.SUCCESS
    assert bench.ask(SnpCommand.TIO_DEV_RECLAIM, tsm.DeviceReclaim, device=CONTEXT) == Status.SUCCESS
    assert bench.ask(SnpCommand.TIO_DEV_RECLAIM, tsm.DeviceReclaim, device=CONTEXT) == Status.INVALID_DEV_CTX
    assert bench.create() == Status.SUCCESS
