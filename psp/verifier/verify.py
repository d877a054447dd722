"""Whether to believe a report: the stages one after another, the first that fails decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from psp.verifier import report as abi
from psp.verifier import stages
from psp.verifier.certificate import Certificate, RevocationList, parse_certificate, parse_revocation_list
from psp.verifier.chain import Certificates, TrustedKey, check_chain
from psp.verifier.der import DerError
from psp.verifier.expectations import Expectations
from psp.verifier.product_line import AMD_ROOTS
from psp.verifier.reasons import Reason, Rejected, Trail
from psp.verifier.report import Report, parse_report

_Parsed = TypeVar("_Parsed", Certificate, RevocationList)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What somebody sent: a report, and certificates in DER that may prove its key. None is one that is missing."""

    report: bytes = field(repr=False)
    ark: bytes | None = field(repr=False)
    ask: bytes | None = field(repr=False)
    """Or ASVK, if a VLEK signed."""
    leaf: bytes | None = field(repr=False)
    """VCEK or VLEK."""
    crls: tuple[bytes, ...] = field(default=(), repr=False)
    """Revocation lists, each of which counts."""
    passed_over: tuple[str, ...] = ()
    """What lay beside these and is judged by nobody, a line each."""
    agent_report: bytes | None = field(default=None, repr=False)
    """Its migration agent's own, signed with the same key."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A report that is believed: what it says, whose key signed it, what was checked and what was not asked for."""

    report: Report
    key: TrustedKey
    passed: tuple[Reason, ...]
    left_out: tuple[Reason, ...]


def verify(
    evidence: Evidence,
    expected: Expectations,
    now: int,
    roots: Mapping[str, frozenset[str]] = AMD_ROOTS,
) -> Verdict:
    """Believe a report, or raise Rejected with the one reason why not; no bytes raise anything else.

    ``now`` is seconds since 1970. ``roots`` maps product lines to the SHA-256 of the
    SubjectPublicKeyInfo of the keys trusted as their root.
    """
    trail = Trail()
    report = parse_report(evidence.report, trail)
    chain = _parse_chain(evidence, trail)
    key = check_chain(chain, roots, now, trail, crl_demanded=expected.crl_demanded)
    _check_report(report, key, expected, now, trail, lambda: _agent_of(report, key, evidence, expected, now))
    return Verdict(report, key, tuple(trail.passed), tuple(trail.left_out))


def reports_judged(evidence: Evidence, expected: Expectations) -> int:
    """How many reports ``verify`` looks at if the first is good, under one chain: a guest's, and maybe its agent's."""
    try:
        report = parse_report(evidence.report, Trail())
    except Rejected:
        return 1
    return 2 if evidence.agent_report is not None and _has_agent(report, expected) else 1


def _check_report(
    report: Report, key: TrustedKey, expected: Expectations, now: int, trail: Trail,
    agent: Callable[[], stages.Agent] = stages.Agent,
) -> None:  # fmt: skip
    """The stages after the chain. ``agent`` is asked only about a report that the key signed."""
    stages.check_binding(report, key, expected, trail)
    stages.check_signature(report, key, trail)
    stages.check_policy(report, expected, agent(), trail)
    stages.check_tcb(report, key, expected, trail)
    stages.check_freshness(report, expected, now, trail)
    stages.check_id_keys(report, expected, trail)


def _has_agent(report: Report, expected: Expectations) -> bool:
    return expected.migration_agent is not None and bool(report.policy & abi.POLICY_MIGRATE_MA)


def _agent_of(
    report: Report, key: TrustedKey, evidence: Evidence, expected: Expectations, now: int
) -> stages.Agent:  # fmt: skip
    """The migration agent of a guest that may be moved, where one is to prove itself: by the key that is believed."""
    if not _has_agent(report, expected):
        return stages.Agent()
    if evidence.agent_report is None:
        return stages.Agent(asked_for=True, why_not="none")
    assert expected.migration_agent is not None
    trail = Trail()
    try:
        shown = parse_report(evidence.agent_report, trail)
        trail.demand(Reason.CRL_MISSING, evidence.crls or not expected.migration_agent.crl_demanded)
        _check_report(shown, key, expected.migration_agent, now, trail)
    except Rejected as rejected:
        return stages.Agent(asked_for=True, why_not=f"one with {rejected.reason.name}")
    return stages.Agent(asked_for=True, report_id=shown.report_id)


def root_of(ark: bytes) -> Mapping[str, frozenset[str]]:
    """Trust in a laboratory's root: what ``verify`` takes, from an ARK in DER that came from somebody trusted.

    Raises DerError for anything but a certificate.
    """
    parsed = parse_certificate(ark)
    return {parsed.subject.common_name.removeprefix("ARK-"): frozenset({parsed.key_digest})}


def _parse_chain(evidence: Evidence, trail: Trail) -> Certificates:
    ark = _certificate(evidence.ark, Reason.ARK_MISSING, Reason.ARK_MALFORMED, trail)
    ask = _certificate(evidence.ask, Reason.ASK_MISSING, Reason.ASK_MALFORMED, trail)
    leaf = _certificate(evidence.leaf, Reason.LEAF_MISSING, Reason.LEAF_MALFORMED, trail)
    if not evidence.crls:
        trail.leave_out(Reason.CRL_MALFORMED)
    crls = [_parsed(parse_revocation_list, one, Reason.CRL_MALFORMED, trail) for one in evidence.crls]
    return Certificates(ark, ask, leaf, tuple(crls))


def _certificate(data: bytes | None, missing: Reason, malformed: Reason, trail: Trail) -> Certificate:
    trail.demand(missing, data is not None)
    assert data is not None
    return _parsed(parse_certificate, data, malformed, trail)


def _parsed(parse: Callable[[bytes], _Parsed], data: bytes, malformed: Reason, trail: Trail) -> _Parsed:
    parsed, problem = None, ""
    try:
        parsed = parse(data)
    except DerError as error:
        problem = str(error)
    trail.demand(malformed, parsed is not None, problem)
    assert parsed is not None
    return parsed
