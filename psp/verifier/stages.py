"""The stages after the chain: each demands what it must of a report, in the order of its reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from psp.verifier import report as abi
from psp.verifier.chain import TrustedKey
from psp.verifier.expectations import Expectations
from psp.verifier.product_line import PRODUCT_LINES
from psp.verifier.reasons import Reason, Trail
from psp.verifier.report import Report
from psp.verifier.report_data import binds, nonce_of
from psp.verifier.tcb_version import TcbLayout, at_most, spelled

_NO_DIGEST = bytes(48)


@dataclass(frozen=True, slots=True)
class Agent:
    """What a migration agent has proved itself to be: its report id, or why it is not believed."""

    asked_for: bool = False
    report_id: bytes | None = None
    why_not: str = ""


def check_binding(report: Report, key: TrustedKey, expected: Expectations, trail: Trail) -> None:
    """The certificate is of the key, the chip and the TCB that the report speaks of."""
    endorsed = key.endorsement
    vlek = endorsed.chip_id is None
    trail.demand(Reason.CHIP_KEY_MASKED, report.signing_key != abi.NO_KEY)
    trail.demand(Reason.SIGNING_KEY, report.signing_key == (abi.VLEK if vlek else abi.VCEK), report.signing_key)
    trail.demand(Reason.VLEK_REFUSED, expected.vlek_allowed or not vlek)
    trail.compare(Reason.CSP_ID, expected.csp_id, endorsed.csp_id)
    _check_product(report, key, expected, trail)
    trail.demand(Reason.REPORTED_TCB_MISMATCH, report.reported_tcb == endorsed.tcb, report.reported_tcb.hex())
    if endorsed.chip_id is None:
        trail.leave_out(Reason.CHIP_ID_MASKED)
        trail.demand(Reason.CHIP_ID_MISMATCH, not any(report.chip_id), report.chip_id.hex())
        return
    masked = not any(report.chip_id)
    trail.demand(Reason.CHIP_ID_MASKED, expected.masked_chip_id_allowed or not masked)
    same = report.chip_id == endorsed.chip_id.ljust(len(report.chip_id), b"\0")
    trail.demand(Reason.CHIP_ID_MISMATCH, masked or same, report.chip_id.hex())


def _check_product(report: Report, key: TrustedKey, expected: Expectations, trail: Trail) -> None:
    line = key.line
    if report.cpuid is None:
        trail.leave_out(Reason.PRODUCT_MISMATCH)
    else:
        family, model, _ = report.cpuid
        of_line = any(line.holds(product, family, model) for product in line.models)
        trail.demand(Reason.PRODUCT_MISMATCH, of_line, f"family {family:#x}, model {model:#x}")
    if expected.product is None:
        trail.leave_out(Reason.PRODUCT_UNEXPECTED)
        return
    asked = PRODUCT_LINES[expected.product]
    fits = asked is line and (report.cpuid is None or line.holds(expected.product, *report.cpuid[:2]))
    trail.demand(Reason.PRODUCT_UNEXPECTED, fits, f"one of {line.name}'s line")


def check_signature(report: Report, key: TrustedKey, trail: Trail) -> None:
    """The firmware of that chip wrote the report."""
    try:
        signature = utils.encode_dss_signature(report.r, report.s)
        key.public_key.verify(signature, report.signed, ec.ECDSA(hashes.SHA384()))
        holds = True
    except InvalidSignature:
        holds = False
    trail.demand(Reason.REPORT_SIGNATURE, holds)


def check_policy(report: Report, expected: Expectations, shown: Agent, trail: Trail) -> None:
    """The guest is the one expected, under a policy that protects it; ``shown`` is what its agent proved."""
    policy, platform = report.policy, report.platform_info
    trail.demand(Reason.POLICY_DEBUG, expected.debug_allowed or not policy & abi.POLICY_DEBUG, f"{policy:#x}")
    agent = policy & abi.POLICY_MIGRATE_MA
    allowed = expected.migration_allowed or shown.asked_for
    trail.demand(Reason.POLICY_MIGRATION, allowed or not agent, f"{policy:#x}")
    known = expected.migration_agents
    if shown.asked_for:
        trail.demand(Reason.MIGRATION_AGENT_UNPROVED, shown.report_id is not None, shown.why_not)
        proved = frozenset({shown.report_id or b""})
        known = proved if known is None else known & proved
    else:
        trail.leave_out(Reason.MIGRATION_AGENT_UNPROVED)
    if known is None or not agent:
        trail.leave_out(Reason.MIGRATION_AGENT_UNLISTED)
    else:
        # None is bound yet, or ever was: such a guest may have become what it is by itself.
        _demand_one_of(Reason.MIGRATION_AGENT_UNLISTED, known, report.report_id_ma, trail)
    _demand_bits(Reason.POLICY_BIT_MISSING, expected.policy_set, policy, trail)
    _demand_bits(Reason.POLICY_BIT_FORBIDDEN, expected.policy_clear, ~policy, trail)
    trail.compare(Reason.POLICY_UNEXPECTED, expected.policy, policy)
    _demand_bits(Reason.PLATFORM_BIT_MISSING, expected.platform_set, platform, trail)
    _demand_bits(Reason.PLATFORM_BIT_FORBIDDEN, expected.platform_clear, ~platform, trail)
    trail.compare(Reason.VMPL_UNEXPECTED, expected.vmpl, report.vmpl)
    trail.compare(Reason.MEASUREMENT_UNEXPECTED, expected.measurement, report.measurement)
    trail.compare(Reason.HOST_DATA_UNEXPECTED, expected.host_data, report.host_data)
    trail.compare(Reason.FAMILY_ID_UNEXPECTED, expected.family_id, report.family_id)
    trail.compare(Reason.IMAGE_ID_UNEXPECTED, expected.image_id, report.image_id)
    if expected.min_guest_svn:
        trail.demand(Reason.GUEST_SVN_LOW, report.guest_svn >= expected.min_guest_svn, report.guest_svn)
    else:
        trail.leave_out(Reason.GUEST_SVN_LOW)
    _demand_one_of(Reason.CHIP_UNLISTED, expected.chip_ids, report.chip_id, trail)


def check_tcb(report: Report, key: TrustedKey, expected: Expectations, trail: Trail) -> None:
    """The firmware makes sense, and is new enough."""
    layout = key.line.layout
    current, committed, launch = report.current_tcb, report.committed_tcb, report.launch_tcb
    reported = report.reported_tcb
    trail.demand(Reason.TCB_REPORTED_ABOVE_COMMITTED, at_most(reported, committed), reported.hex())
    trail.demand(Reason.TCB_COMMITTED_ABOVE_CURRENT, at_most(committed, current), committed.hex())
    trail.demand(Reason.TCB_LAUNCH_ABOVE_CURRENT, at_most(launch, current), launch.hex())
    version = report.committed_version
    trail.demand(Reason.FIRMWARE_COMMITTED_ABOVE_CURRENT, version <= report.current_version, _dotted(version))
    provisional = committed != current or version != report.current_version
    if expected.provisional_allowed:
        trail.leave_out(Reason.FIRMWARE_PROVISIONAL)
    else:
        trail.demand(Reason.FIRMWARE_PROVISIONAL, not provisional, f"{committed.hex()} below {current.hex()}")
    _demand_floor(Reason.TCB_LOW, expected.min_tcb, layout, reported, trail)
    if expected.pinned_tcb is None:
        trail.leave_out(Reason.TCB_UNEXPECTED)
    else:
        levels = layout.split(reported)
        trail.demand(Reason.TCB_UNEXPECTED, expected.pinned_tcb.items() <= levels.items(), spelled(levels))
    _demand_floor(Reason.LAUNCH_TCB_LOW, expected.min_launch_tcb, layout, launch, trail)
    if expected.min_firmware is None:
        trail.leave_out(Reason.FIRMWARE_LOW)
    else:
        trail.demand(Reason.FIRMWARE_LOW, version >= expected.min_firmware, _dotted(version))
    _demand_bits(Reason.MITIGATION_MISSING, expected.mitigations, report.current_mitigations, trail)


def check_freshness(report: Report, expected: Expectations, now: int, trail: Trail) -> None:
    """The report was made for whoever asks, and for this channel."""
    data = report.report_data
    trail.compare(Reason.REPORT_DATA_UNEXPECTED, expected.report_data, data)
    trail.compare(Reason.NONCE_UNEXPECTED, expected.nonce, nonce_of(data))
    if expected.channel_key is None:
        trail.leave_out(Reason.CHANNEL_UNEXPECTED)
    else:
        trail.demand(Reason.CHANNEL_UNEXPECTED, binds(data, expected.channel_key), data[len(nonce_of(data)) :].hex())
    if expected.nonce_expires is None:
        trail.leave_out(Reason.NONCE_EXPIRED)
    else:
        trail.demand(Reason.NONCE_EXPIRED, now <= expected.nonce_expires, f"{now - expected.nonce_expires} s late")


def check_id_keys(report: Report, expected: Expectations, trail: Trail) -> None:
    """The guest's image was signed by somebody trusted."""
    id_key, author_key = report.id_key_digest, report.author_key_digest
    trail.demand(Reason.AUTHOR_KEY_FLAG, report.author_key_present == (author_key != _NO_DIGEST))
    for missing, untrusted, trusted, found in (
        (Reason.ID_KEY_MISSING, Reason.ID_KEY_UNTRUSTED, expected.id_key_digests, id_key),
        (Reason.AUTHOR_KEY_MISSING, Reason.AUTHOR_KEY_UNTRUSTED, expected.author_key_digests, author_key),
    ):
        if trusted is None:
            trail.leave_out(missing)
        else:
            trail.demand(missing, found != _NO_DIGEST)
        _demand_one_of(untrusted, trusted, found, trail)


def _demand_bits(reason: Reason, wanted: int, found: int, trail: Trail) -> None:
    if wanted:
        trail.demand(reason, wanted & found == wanted, f"{wanted & ~found:#x} not so")
    else:
        trail.leave_out(reason)


def _demand_floor(
    reason: Reason, floor: Mapping[str, int] | None, layout: TcbLayout, found: bytes, trail: Trail
) -> None:
    if floor is None:
        trail.leave_out(reason)
    else:
        trail.demand(reason, layout.reaches(found, floor), spelled(layout.split(found)))


def _demand_one_of(reason: Reason, known: frozenset[bytes] | None, found: bytes, trail: Trail) -> None:
    if known is None:
        trail.leave_out(reason)
    else:
        trail.demand(reason, found in known, found.hex())


def _dotted(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))
