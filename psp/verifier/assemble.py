"""Which of many certificates belong to a report: a chain to try, chosen by names and never trusted for that."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from psp.verifier.amd_extensions import read_endorsement
from psp.verifier.certificate import Certificate, RevocationList, parse_certificate, parse_revocation_list
from psp.verifier.der import DerError
from psp.verifier.product_line import LINES
from psp.verifier.report import VCEK, VLEK
from psp.verifier.verify import Evidence

_SIGNING_KEYS = {"SEV-VCEK": VCEK, "SEV-VLEK": VLEK}
_SEQUENCE = rb"\x30(?:[\x00-\x7f]|\x81.|\x82..|\x83...)"
_BEGINS_AS_LIST = re.compile(rb"-----BEGIN X509 CRL-----|" + 2 * _SEQUENCE + rb"[\x02\x30]", re.DOTALL)
"""PEM's word for one; or what is signed begins with a version or an algorithm, where a certificate has its [0]."""
_CHIP_ID, _REPORTED_TCB, _KEY_INFO = slice(0x1A0, 0x1E0), slice(0x180, 0x188), 0x048


@dataclass(frozen=True, slots=True)
class _Found:
    der: bytes
    certificate: Certificate


def assemble(report: bytes, blocks: Iterable[tuple[str, bytes]]) -> Evidence:
    """Evidence from a report and named blocks of DER, such as the files of a folder.

    Of several VCEKs it takes the one that fits the report best. A block that cannot be
    read is taken for a list if it begins like one, else for what its name begins with (ark, ask,
    asvk, vcek, vlek, crl) or ends with (.crl), so that the verifier says what is wrong with it.
    Every list of the root counts. What plays no part is named in ``passed_over``.
    """
    found: list[_Found] = []
    lists: list[tuple[str, bytes, RevocationList]] = []
    passed_over: list[str] = []
    broken: dict[str, list[bytes]] = {}
    for name, der in blocks:
        try:
            found.append(_Found(der, parse_certificate(der)))
            continue
        except DerError:
            pass
        try:
            lists.append((name, der, parse_revocation_list(der)))
        except DerError:
            role = _role(name, der)
            broken.setdefault(role, []).append(der)
            if not role:
                passed_over.append(f"{name}: neither a certificate nor a revocation list")
    leaf = _best_leaf(report, found)
    ask = _issuer(leaf, found, "SEV-")
    ark = _issuer(ask, found, "ARK-")
    crls = []
    for name, der, one in lists:
        if ark and one.issuer.der == ark.certificate.subject.der:
            crls.append(der)
        else:
            passed_over.append(f'{name}: a revocation list of "{one.issuer.common_name}"')
    crls += broken.get("crl", [])
    return Evidence(
        report,
        ark.der if ark else _first(broken, "ark"),
        ask.der if ask else _first(broken, "ask"),
        leaf.der if leaf else _first(broken, "leaf"),
        tuple(crls or [der for _, der, _ in lists[:1]]),
        tuple(passed_over),
    )


def _first(broken: Mapping[str, Sequence[bytes]], role: str) -> bytes | None:
    return next(iter(broken.get(role, ())), None)


def _role(name: str, der: bytes) -> str:
    start = name.lower()
    if _BEGINS_AS_LIST.match(der) or start.endswith(".crl"):
        return "crl"
    for word, role in (("ark", "ark"), ("ask", "ask"), ("asvk", "ask"), ("crl", "crl"), ("v", "leaf")):
        if start.startswith(word):
            return role
    return ""


def _best_leaf(report: bytes, found: list[_Found]) -> _Found | None:
    leaves = [one for one in found if one.certificate.subject.common_name in _SIGNING_KEYS]
    return max(leaves, key=lambda one: _fit(report, one.certificate), default=None)


def _fit(report: bytes, leaf: Certificate) -> tuple[bool, bool, bool]:
    """Whether the kind of key, the chip and the TCB are those that the report names."""
    key_info = report[_KEY_INFO] if len(report) > _KEY_INFO else 0
    kind = _SIGNING_KEYS[leaf.subject.common_name]
    line = LINES.get(leaf.issuer.common_name.rpartition("-")[2])
    try:
        endorsed = read_endorsement(leaf.extensions, line, vlek=kind == VLEK) if line else None
    except DerError:
        endorsed = None
    if endorsed is None:
        return False, False, False
    same_chip = endorsed.chip_id is not None and report[_CHIP_ID].startswith(endorsed.chip_id)
    return kind == key_info >> 2 & 7, same_chip, report[_REPORTED_TCB] == endorsed.tcb


def _issuer(of: _Found | None, found: list[_Found], start: str) -> _Found | None:
    """Who signed it, by name; else whoever might have."""
    named = [one for one in found if one.certificate.subject.common_name.startswith(start)]
    issuers = [one for one in named if one.certificate.subject.common_name not in _SIGNING_KEYS]
    if of is not None:
        for one in issuers:
            if one.certificate.subject.der == of.certificate.issuer.der:
                return one
    return issuers[0] if issuers else None
