"""A guest's judgement of a device: each thing that can be wrong with it is one doubt, and nothing else is."""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.device_policy import DeviceDoubt, DevicePolicy, DeviceUntrusted, judge
from node.tio_evidence import CERTIFICATES, MEASUREMENTS, REPORT
from psp.certificate_table import table_of
from psp.tsm.guest_messages import TdiInfoResponse, TdiInfoStatus
from psp.tsm.status_records import DIGEST_FRESH, DIGEST_VALID
from tio.device_identity import CardKind, Firmware, device_identity, measured
from tio.spdm.algorithms import BaseHash
from tio.spdm.certificate_chain import pack_chain
from tio.tdisp.messages import LockFlags
from tio.tdisp.report import InterfaceInfo, InterfaceReport, MmioRange
from workloads.device_policies import policy_for

SHA_384 = BaseHash.SHA_384.value
NONCE = bytes(range(32))
ALGORITHMS = int.from_bytes(bytes((1, 1, 2, 1)), "little")
"""P-384, AES-256-GCM, ECDSA P-384, SHA-384."""
REPORTED = InterfaceReport(InterfaceInfo.DMA_WITHOUT_PASID, (MmioRange(0x1000, 4, 0, 0),))
GPU = policy_for(CardKind.GPU)

UNCHANGING = replace(REPORTED, info=REPORTED.info | InterfaceInfo.NO_FW_UPDATE)


def chain_of(kind: CardKind = CardKind.GPU, serial: str = "0007", seed: int = 1) -> bytes:
    return pack_chain(SHA_384, device_identity(kind, serial, seed).certificates)


def evidence_of(firmware: Firmware = Firmware(), nonce: bytes = NONCE, *, raw: bool = False) -> bytes:  # noqa: B008
    """SPDM 1.2: GET_MEASUREMENTS for all, signed, with a nonce and slot 0; MEASUREMENTS (DSP0274, 10.11)."""
    blocks = measured(CardKind.GPU, firmware)
    record = b"".join([one.pack(SHA_384, raw=raw) for one in blocks])
    asked = bytes((0x12, 0xE0, 1 | raw << 1, 0xFF)) + nonce + bytes(1)
    head = bytes((0x12, 0x60, 0, 0, len(blocks))) + len(record).to_bytes(3, "little")
    return asked + head + record + bytes(32) + bytes(2) + bytes(96)


def shown(
    chain: bytes | None = None, evidence: bytes | None = None, report: bytes | None = None, **said: int
) -> tuple[TdiInfoResponse, dict]:
    """What an honest firmware and hypervisor say of a device."""
    blobs = {
        CERTIFICATES: chain_of() if chain is None else chain,
        MEASUREMENTS: evidence_of() if evidence is None else evidence,
        REPORT: REPORTED.pack() if report is None else report,
    }
    digests = [hashlib.sha384(one).digest() for one in blobs.values()]
    flags = said.pop("measurement_flags", DIGEST_VALID | DIGEST_FRESH)
    info = TdiInfoResponse(0x40, said.pop("status", 0), flags, said.pop("lock_flags", 0), ALGORITHMS, *digests)
    return info, blobs


def doubt_of(policy: DevicePolicy, info: TdiInfoResponse, blobs: dict, nonce: bytes = NONCE) -> DeviceDoubt | None:
    try:
        judge(policy, info, table_of(blobs), nonce)
    except DeviceUntrusted as doubted:
        return doubted.doubt
    return None


def test_a_proper_device_is_trusted_and_its_report_comes_back() -> None:
    info, blobs = shown()
    assert judge(GPU, info, table_of(blobs), NONCE) == REPORTED


@pytest.mark.parametrize("raw", [False, True])
def test_a_proper_device_is_trusted_whether_digests_are_asked_for_or_bits(raw: bool) -> None:
    """Which of both a device is asked for is the hypervisor's choice, in the request that the firmware sends on."""
    assert doubt_of(GPU, *shown(evidence=evidence_of(raw=raw))) is None
    assert doubt_of(GPU, *shown(evidence=evidence_of(Firmware("1.1"), raw=raw))) is DeviceDoubt.FIRMWARE


@pytest.mark.parametrize("raw", [False, True])
def test_firmware_whose_bits_are_the_digest_of_proper_firmware_is_other_firmware(raw: bool) -> None:
    forged = Firmware(image=hashlib.sha384(Firmware().bits(CardKind.GPU)).digest())
    firmware_alone = replace(GPU, measured=tuple([one for one in GPU.measured if one.index == 2]))
    assert doubt_of(firmware_alone, *shown(evidence=evidence_of(forged, raw=raw))) is DeviceDoubt.FIRMWARE
    assert doubt_of(firmware_alone, *shown(evidence=evidence_of(raw=raw))) is None


WRONG = {
    "unbound": (GPU, shown(status=TdiInfoStatus.UNBOUND), DeviceDoubt.UNBOUND),
    "another maker": (GPU, shown(chain_of(seed=2)), DeviceDoubt.STRANGER),
    "expired": (replace(GPU, now=dt.datetime(2075, 1, 2, tzinfo=dt.UTC)), shown(), DeviceDoubt.STRANGER),
    "another kind": (GPU, shown(chain_of(CardKind.NIC)), DeviceDoubt.STRANGER),
    "another than the one it wants": (replace(GPU, serial="0008"), shown(), DeviceDoubt.STRANGER),
    "other firmware": (GPU, shown(evidence=evidence_of(Firmware("1.1"))), DeviceDoubt.FIRMWARE),
    "never measured": (GPU, shown(measurement_flags=0), DeviceDoubt.STALE),
    "measured before it was locked": (GPU, shown(measurement_flags=DIGEST_VALID), DeviceDoubt.STALE),
    "measured for somebody else": (GPU, shown(evidence=evidence_of(nonce=bytes(32))), DeviceDoubt.STALE),
    "locked without what the guest wants": (
        replace(GPU, lock_flags=LockFlags.NO_FW_UPDATE), shown(), DeviceDoubt.LOCK,
    ),
    "locked, but the device says it may be updated": (
        replace(GPU, lock_flags=LockFlags.NO_FW_UPDATE), shown(lock_flags=LockFlags.NO_FW_UPDATE), DeviceDoubt.LOCK,
    ),
    "locked without it, and the report says with it": (
        replace(GPU, lock_flags=LockFlags.NO_FW_UPDATE), shown(report=UNCHANGING.pack()), DeviceDoubt.LOCK,
    ),
    "a report of another lock": (GPU, (shown()[0], shown(report=UNCHANGING.pack())[1]), DeviceDoubt.ANOTHER_REPORT),
    "no DMA without PASID": (GPU, shown(report=replace(REPORTED, info=0).pack()), DeviceDoubt.INTERFACE),
    "no memory": (GPU, shown(report=replace(REPORTED, ranges=()).pack()), DeviceDoubt.INTERFACE),
    "no report": (GPU, shown(report=b"x"), DeviceDoubt.NO_EVIDENCE),
    "no measurements": (GPU, shown(evidence=evidence_of()[:40]), DeviceDoubt.NO_EVIDENCE),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_whatever_is_wrong_is_one_doubt(name: str) -> None:
    policy, (info, blobs), doubt = WRONG[name]
    assert doubt_of(policy, info, blobs) is doubt


@pytest.mark.parametrize(
    ("which", "doubt"),
    [
        (CERTIFICATES, DeviceDoubt.ANOTHER_CHAIN),
        (MEASUREMENTS, DeviceDoubt.ANOTHER_RECORD),
        (REPORT, DeviceDoubt.ANOTHER_REPORT),
    ],
)
@given(st.data())
@settings(max_examples=25)
def test_a_hypervisor_substitutes_no_byte_of_any_blob(which: object, doubt: DeviceDoubt, data: st.DataObject) -> None:
    info, blobs = shown()
    at = data.draw(st.integers(0, len(blobs[which]) - 1))
    changed = bytearray(blobs[which])
    changed[at] ^= data.draw(st.integers(1, 255))
    assert doubt_of(GPU, info, blobs | {which: bytes(changed)}) is doubt


@pytest.mark.parametrize("table", [b"", bytes(4096), b"\xff" * 4096])
def test_a_table_that_is_none_is_no_evidence(table: bytes) -> None:
    info, _ = shown()
    with pytest.raises(DeviceUntrusted) as doubted:
        judge(GPU, info, table, NONCE)
    assert doubted.value.doubt is DeviceDoubt.NO_EVIDENCE


DOORS = {
    "checks_certificates": {"another maker", "expired"},
    "checks_identity": {"another kind", "another than the one it wants"},
    "checks_measurements": {"other firmware", "no measurements"},
    "checks_fresh": {"measured before it was locked", "measured for somebody else"},
    "checks_report": {"a report of another lock"},
    "checks_lock": {"locked without it, and the report says with it"},
}
"""What each alone keeps out. Without any of them a device need not even have been measured."""


def test_each_check_is_a_switch_and_opens_its_own_door_alone() -> None:
    for check, opened in DOORS.items():
        loose = {check: False}
        for name, (policy, (info, blobs), doubt) in WRONG.items():
            expected = None if name in opened else doubt
            assert doubt_of(replace(policy, **loose), info, blobs) is expected, (check, name)
    assert doubt_of(replace(GPU, **dict.fromkeys(DOORS, False)), *WRONG["never measured"][1]) is None
