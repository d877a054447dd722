"""Devices differ in versions, algorithms, sizes and speed; firmware connects those that SEV-TIO has numbers for."""

from __future__ import annotations

import hashlib

import pytest
from device_bench import OUTPUT, SCATTER, new_bench
from toy_machine import PAGE

from psp import tsm
from psp.commands import SnpCommand
from psp.status import Status
from psp.tsm.measurement_blob import parse_measurement_blob
from tio.device_identity import Firmware
from tio.spdm import ResponderSettings
from tio.spdm.algorithms import Aead, BaseHash, DheGroup
from tio.spdm.capabilities import Capability
from tio.spdm.codes import Request, Version
from tio.spdm.device_personality import TEE_IO_CAPABILITIES
from tio.spdm.negotiation import Offer

SMALL = Offer(hashes=(BaseHash.SHA_256,), dhe=(DheGroup.SECP_256_R1,), aead=(Aead.AES_128_GCM,))
KINDS = {
    "1.2": (ResponderSettings(versions=(Version.V1_2,)), (1, 1, 2, 1)),
    "1.3": (ResponderSettings(versions=(Version.V1_3,)), (1, 1, 2, 1)),
    "the smaller algorithms": (ResponderSettings(offer=SMALL), (0, 0, 2, 0)),
    "slow": (ResponderSettings(slow=frozenset({Request.KEY_EXCHANGE, Request.GET_MEASUREMENTS})), (1, 1, 2, 1)),
    "small pieces": (
        ResponderSettings(
            capabilities=TEE_IO_CAPABILITIES | Capability.CHUNK, data_transfer_bytes=0x100, max_message_bytes=0x4000
        ),
        (1, 1, 2, 1),
    ),
    "a handshake in the clear": (
        ResponderSettings(capabilities=TEE_IO_CAPABILITIES | Capability.HANDSHAKE_IN_THE_CLEAR), (1, 1, 2, 1)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_a_device_of_this_kind_is_connected(name: str) -> None:
    settings, algorithms = KINDS[name]
    bench = new_bench(settings=settings)
    bench.create()
    assert bench.connect() == Status.SUCCESS
    assert bench.device_status().algorithms.to_bytes(8, "little") == bytes(algorithms) + bytes(4)
    bench.lay_buffers()
    assert bench.run(SnpCommand.TIO_DEV_CERTIFICATES, bench.order(tsm.DeviceOrder)) == Status.SUCCESS
    blob = bench.result()[1]
    short = algorithms[3] == 0
    expected = hashlib.sha256(blob).digest() + bytes(16) if short else hashlib.sha384(blob).digest()
    assert bench.device_status().certificates_digest == expected


@pytest.mark.parametrize(
    "settings",
    [
        ResponderSettings(offer=Offer(hashes=(BaseHash.SHA3_384,))),
        ResponderSettings(offer=Offer(dhe=(DheGroup.FFDHE_2048,))),
        ResponderSettings(offer=Offer(aead=(Aead.CHACHA20_POLY1305,))),
        ResponderSettings(capabilities=Capability.CERT | Capability.CHAL | Capability.MEAS_SIG),
        ResponderSettings(capabilities=TEE_IO_CAPABILITIES & ~(Capability.MEAS_SIG | Capability.MEAS_FRESH)),
        ResponderSettings(capabilities=TEE_IO_CAPABILITIES & ~Capability.ENCRYPT),
    ],
    ids=["hash", "group", "cipher", "no sessions", "no measurements", "no encryption"],
)
def test_a_device_without_what_tio_needs_is_not_connected(settings: ResponderSettings) -> None:
    bench = new_bench(settings=settings)
    bench.create()
    assert bench.connect() in {Status.SPDM_ERROR, Status.ERR_IN_DEV_CONN}
    assert bench.device_status().state == tsm.DeviceState.CREATED


def test_long_measurements_come_in_chunks_and_go_out_into_more_than_a_page() -> None:
    bench = new_bench(settings=KINDS["small pieces"][0])
    bench.card.firmware = Firmware(version="v" * 6000)
    bench.create()
    assert bench.connect() == Status.SUCCESS
    bench.lay_buffers()
    order = bench.order(tsm.DeviceMeasurements, nonce=b"\7" * 32)
    command = SnpCommand.TIO_DEV_MEASUREMENTS
    assert bench.run(command, order) == Status.EXPAND_BUFFER_LENGTH_REQUEST
    size = tsm.BufferHeader.parse(bench.machine.bus.read(OUTPUT, 64)).capacity
    bench.lay_buffers(output_bytes=size)
    pages = [OUTPUT + at for at in range(0, size, PAGE)]
    bench.machine.bus.write(SCATTER, tsm.pack_list([tsm.data_page(one) for one in pages]))
    order = bench.order(tsm.DeviceMeasurements, nonce=b"\7" * 32, output=tsm.scatter_page(SCATTER))
    assert bench.give(command, order) == Status.SUCCESS
    found = parse_measurement_blob(bench.result_in(pages))
    assert found.nonce == b"\7" * 32
    assert b"v" * 6000 in {one.value for one in found.blocks}
