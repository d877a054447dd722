"""A guest's judgement of a device that it is to trust: whose it is, what runs on it, and what its interface is.

What the hypervisor hands over is believed as far as the firmware's digests go; what is in it is judged by what the
guest brought along: a root, what the device must have measured, how it must be locked. Each check is a switch, so that
what it is good for can be seen. Source: ``spec/tio/tio-overview.md``, sections 4 and 6.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass
from enum import Enum

from node.tio_evidence import CERTIFICATES, MEASUREMENTS, REPORT
from psp.certificate_table import CertificateTableError, contents_of
from psp.tsm.guest_messages import TdiInfoResponse, TdiInfoStatus
from psp.tsm.status_records import DIGEST_BYTES, DIGEST_FRESH, DIGEST_VALID
from tio.device_identity import CardKind, device_of
from tio.spdm.algorithms import BaseAsym, BaseHash
from tio.spdm.certificate_chain import TrustAnchors, leaf_key, parse_chain
from tio.spdm.evidence import measured_blocks, nonce_of
from tio.spdm.faults import SpdmFault
from tio.spdm.measurement import ReferenceValue, first_unlike
from tio.tdisp.messages import LockFlags
from tio.tdisp.report import InterfaceInfo, InterfaceReport, ReportError, parse_report

_NAMES = {CERTIFICATES: "certificates", MEASUREMENTS: "measurements", REPORT: "report"}
_HASHES = {0: (BaseHash.SHA_256, hashlib.sha256), 1: (BaseHash.SHA_384, hashlib.sha384)}
_ASYMS = {0: BaseAsym.RSASSA_3072, 1: BaseAsym.ECDSA_P256, 2: BaseAsym.ECDSA_P384}


class DeviceDoubt(Enum):
    """Why a guest does not trust a device."""

    UNBOUND = "the firmware knows of no such device of this guest's"
    NO_EVIDENCE = "the hypervisor hands over no evidence, or none that can be read"
    ANOTHER_CHAIN = "certificates are not those that the firmware saw"
    ANOTHER_RECORD = "measurements are not those that the firmware saw"
    ANOTHER_REPORT = "the interface report is not the one that the firmware saw"
    STRANGER = "no certificate of a device that the guest wants"
    FIRMWARE = "the device runs something else"
    STALE = "the device was not measured with the guest's nonce since it was locked"
    LOCK = "the interface is not locked as the guest wants it"
    INTERFACE = "the interface is not what the guest can use"


class DeviceUntrusted(Exception):
    """A guest does not trust a device."""

    def __init__(self, doubt: DeviceDoubt, why: str = "") -> None:
        super().__init__(f"{doubt.value}{': ' if why else ''}{why}")
        self.doubt = doubt


@dataclass(frozen=True, slots=True)
class DevicePolicy:
    """What a guest asks of a device. ``root`` is in DER, ``measured`` what it must have measured.

    ``serial`` names one device, if it must be that one, and ``now`` is the time at which certificates must be valid;
    None judges no validity, for a guest's clock is the hypervisor's to set.

    Without ``checks_certificates`` anybody's device will do (row 72), without ``checks_identity`` any other one
    (row 78), without ``checks_measurements`` one that runs something else (row 73), without ``checks_fresh`` one that
    was measured long ago (row 85). Without ``checks_report`` a report of another lock will do, without ``checks_lock``
    nobody asks the firmware what was locked; of ``lock_flags`` then the report is all that says anything.
    """

    kind: CardKind
    root: bytes
    measured: tuple[ReferenceValue, ...] = ()
    serial: str = ""
    now: dt.datetime | None = None
    lock_flags: LockFlags = LockFlags(0)  # noqa: RUF009 - a flag is frozen
    checks_certificates: bool = True
    checks_identity: bool = True
    checks_measurements: bool = True
    checks_fresh: bool = True
    checks_report: bool = True
    checks_lock: bool = True


def judge(policy: DevicePolicy, info: TdiInfoResponse, table: bytes, nonce: bytes) -> InterfaceReport:
    """The report of an interface that may be trusted. ``table`` is what the hypervisor handed over.

    ``nonce`` is what the guest wanted the device to be measured with. Raises DeviceUntrusted with the first doubt.
    """
    if info.status != TdiInfoStatus.BOUND:
        raise DeviceUntrusted(DeviceDoubt.UNBOUND, f"status {info.status}")
    try:
        found = contents_of(table, _NAMES)
        chain, measurements, report = (found[one] for one in (CERTIFICATES, MEASUREMENTS, REPORT))
    except (CertificateTableError, KeyError) as error:
        raise DeviceUntrusted(DeviceDoubt.NO_EVIDENCE, str(error)) from None
    algorithms = info.algorithms.to_bytes(8, "little")
    if algorithms[3] not in _HASHES or algorithms[2] not in _ASYMS:
        raise DeviceUntrusted(DeviceDoubt.NO_EVIDENCE, f"algorithms {algorithms.hex()}")
    base_hash, digest = _HASHES[algorithms[3]]
    for blob, expected, doubt, matters in (
        (chain, info.certificates_digest, DeviceDoubt.ANOTHER_CHAIN, True),
        (measurements, info.measurements_digest, DeviceDoubt.ANOTHER_RECORD, True),
        (report, info.report_digest, DeviceDoubt.ANOTHER_REPORT, policy.checks_report),
    ):
        if matters and digest(blob).digest().ljust(DIGEST_BYTES, b"\0") != expected:
            raise DeviceUntrusted(doubt)
    _judge_chain(policy, chain, base_hash, _ASYMS[algorithms[2]])
    _judge_measurements(policy, info, measurements, nonce)
    return _judge_interface(policy, info, report)


def _judge_chain(policy: DevicePolicy, raw: bytes, base_hash: BaseHash, asym: BaseAsym) -> None:
    if not (policy.checks_certificates or policy.checks_identity):
        return
    try:
        chain = parse_chain(raw, base_hash.value)
        if policy.checks_certificates:
            leaf_key(chain, TrustAnchors((policy.root,), policy.now), base_hash.value, asym)
        told = device_of(chain.leaf)
    except SpdmFault as fault:
        raise DeviceUntrusted(DeviceDoubt.STRANGER, str(fault)) from None
    if not policy.checks_identity:
        return
    if told is None or told[0] is not policy.kind or policy.serial not in ("", told[1]):
        raise DeviceUntrusted(DeviceDoubt.STRANGER, f"expected {policy.kind.value} {policy.serial}, found {told}")


def _judge_measurements(policy: DevicePolicy, info: TdiInfoResponse, evidence: bytes, nonce: bytes) -> None:
    if not (policy.checks_measurements or policy.checks_fresh):
        return
    if not info.measurement_flags & DIGEST_VALID:
        raise DeviceUntrusted(DeviceDoubt.STALE, "nothing was measured")
    if policy.checks_fresh and not (info.measurement_flags & DIGEST_FRESH and nonce_of(evidence) == nonce):
        raise DeviceUntrusted(DeviceDoubt.STALE)
    if not policy.checks_measurements:
        return
    try:
        unlike = first_unlike(policy.measured, measured_blocks(evidence))
    except SpdmFault as fault:
        raise DeviceUntrusted(DeviceDoubt.NO_EVIDENCE, str(fault)) from None
    if unlike is not None:
        raise DeviceUntrusted(DeviceDoubt.FIRMWARE, f"measurement {unlike.index}")


def _judge_interface(policy: DevicePolicy, info: TdiInfoResponse, raw: bytes) -> InterfaceReport:
    if policy.checks_lock and policy.lock_flags & ~info.lock_flags:
        raise DeviceUntrusted(DeviceDoubt.LOCK, f"flags {info.lock_flags:#x}")
    try:
        report = parse_report(raw)
    except ReportError as error:
        raise DeviceUntrusted(DeviceDoubt.NO_EVIDENCE, str(error)) from None
    if not report.info & InterfaceInfo.DMA_WITHOUT_PASID or not report.ranges:
        raise DeviceUntrusted(DeviceDoubt.INTERFACE, f"info {report.info:#x}, {len(report.ranges)} ranges")
    if policy.lock_flags & LockFlags.NO_FW_UPDATE and not report.info & InterfaceInfo.NO_FW_UPDATE:
        raise DeviceUntrusted(DeviceDoubt.LOCK, "the device may be updated")
    return report
