"""Every reason to reject a report: a closed table, in the order in which they are looked for.

A bad report has exactly one: that of the first check that fails, in the first stage that
fails. Stages before SIGNATURE look at bytes that anybody may have written.
"""

from __future__ import annotations

from enum import Enum, unique
from typing import NamedTuple


class Stage(Enum):
    """What is decided, in this order."""

    PARSE = "parse"
    CHAIN = "chain"
    BINDING = "binding"
    SIGNATURE = "signature"
    POLICY = "policy"
    TCB = "TCB floor"
    FRESHNESS = "freshness"
    ID_KEYS = "id keys"


class Row(NamedTuple):
    """Stage, field, and what is demanded of it."""

    stage: Stage
    field: str
    demand: str


_P, _C, _B, _S = Stage.PARSE, Stage.CHAIN, Stage.BINDING, Stage.SIGNATURE
_O, _T, _F, _I = Stage.POLICY, Stage.TCB, Stage.FRESHNESS, Stage.ID_KEYS


@unique
class Reason(Enum):
    """The member's name is the code."""

    REPORT_LENGTH = Row(_P, "report", "1184 bytes")
    REPORT_VERSION = Row(_P, "report.version", "version 2 to 5")
    REPORT_POLICY_RESERVED = Row(_P, "report.policy", "bit 17 set and bits 63 to 26 zero")
    REPORT_VMPL = Row(_P, "report.vmpl", "0 to 3")
    REPORT_SIGNATURE_ALGORITHM = Row(_P, "report.signature_algo", "1, ECDSA P-384 with SHA-384")
    REPORT_PLATFORM_INFO = Row(_P, "report.platform_info", "no bits but 0 to 5 and 7")
    REPORT_KEY_INFO = Row(_P, "report.key_info", "signing key 0, 1 or 7, and bits 31 to 5 zero")
    REPORT_RESERVED_4C = Row(_P, "report[0x04c:0x050]", "zeros")
    REPORT_CPUID = Row(_P, "report.cpuid", "a known family and model; zeros in version 2")
    REPORT_RESERVED_18B = Row(_P, "report[0x18b:0x1a0]", "zeros")
    REPORT_CHIP_ID = Row(_P, "report.chip_id", "zeros behind the 8 bytes of Turin's ids")
    REPORT_RESERVED_1EB = Row(_P, "report[0x1eb]", "zero")
    REPORT_RESERVED_1EF = Row(_P, "report[0x1ef]", "zero")
    REPORT_TCB_RESERVED = Row(_P, "report TCB versions", "zeros in the bytes without a component")
    REPORT_RESERVED_1F8 = Row(_P, "report[0x1f8:0x208]", "zeros before version 5")
    REPORT_RESERVED_208 = Row(_P, "report[0x208:0x2a0]", "zeros")
    REPORT_SIGNATURE_PADDING = Row(_P, "report.signature", "zeros behind R and S of 48 bytes")
    ARK_MISSING = Row(_P, "ARK", "a certificate")
    ARK_MALFORMED = Row(_P, "ARK", "a certificate in strict DER")
    ASK_MISSING = Row(_P, "ASK", "a certificate")
    ASK_MALFORMED = Row(_P, "ASK", "a certificate in strict DER")
    LEAF_MISSING = Row(_P, "VCEK or VLEK", "a certificate")
    LEAF_MALFORMED = Row(_P, "VCEK or VLEK", "a certificate in strict DER")
    CRL_MALFORMED = Row(_P, "CRL", "a revocation list in strict DER")

    UNKNOWN_PRODUCT = Row(_C, "ARK.subject", "CN ARK-Milan, ARK-Genoa or ARK-Turin")
    ARK_KEY = Row(_C, "ARK.key", "RSA of 4096 bits with exponent 65537")
    ROOT_UNKNOWN = Row(_C, "ARK.key", "the key of a root that the verifier trusts")
    ARK_NAMES = Row(_C, "ARK.subject", "AMD's names, and the same issuer")
    ARK_PROFILE = Row(_C, "ARK.extensions", "a root that may sign certificates and lists, one CRL location")
    ARK_SIGNATURE = Row(_C, "ARK.signature", "its own key's, over all of it")
    ARK_NOT_YET_VALID = Row(_C, "ARK.not_before", "not after now")
    ARK_EXPIRED = Row(_C, "ARK.not_after", "not before now")
    ASK_NAMES = Row(_C, "ASK.subject", "AMD's names, SEV- or SEV-VLEK- and the ARK's product")
    ASK_ISSUER = Row(_C, "ASK.issuer", "the ARK's subject")
    ASK_KEY = Row(_C, "ASK.key", "RSA of 4096 bits with exponent 65537")
    ASK_PROFILE = Row(_C, "ASK.extensions", "a CA of path length 0 that may sign certificates, one CRL location")
    ASK_SIGNATURE = Row(_C, "ASK.signature", "the ARK's, over all of it")
    ASK_NOT_YET_VALID = Row(_C, "ASK.not_before", "not after now")
    ASK_EXPIRED = Row(_C, "ASK.not_after", "not before now")
    LEAF_NAMES = Row(_C, "VCEK.subject", "AMD's names, and the kind of key its issuer signs")
    LEAF_ISSUER = Row(_C, "VCEK.issuer", "the ASK's subject")
    LEAF_SIGNATURE = Row(_C, "VCEK.signature", "the ASK's, over all of it")
    LEAF_KEY = Row(_C, "VCEK.key", "a point of P-384")
    LEAF_PROFILE = Row(_C, "VCEK.extensions", "AMD's extensions, each once and none else")
    LEAF_PRODUCT = Row(_C, "VCEK.product_name", "the product of the roots")
    LEAF_NOT_YET_VALID = Row(_C, "VCEK.not_before", "not after now")
    LEAF_EXPIRED = Row(_C, "VCEK.not_after", "not before now")
    CRL_MISSING = Row(_C, "CRL", "a revocation list, since one is demanded")
    CRL_ISSUER = Row(_C, "CRL.issuer", "the ARK's subject")
    CRL_SIGNATURE = Row(_C, "CRL.signature", "the ARK's, over all of it")
    CRL_NOT_YET_VALID = Row(_C, "CRL.this_update", "not after now")
    CRL_EXPIRED = Row(_C, "CRL.next_update", "not before now")
    ASK_REVOKED = Row(_C, "ASK.serial", "not on the list")
    LEAF_REVOKED = Row(_C, "VCEK.serial", "not on the list")

    CHIP_KEY_MASKED = Row(_B, "report.key_info", "a signing key, not a masked one")
    SIGNING_KEY = Row(_B, "report.key_info", "the kind of key that the certificate has")
    VLEK_REFUSED = Row(_B, "report.key_info", "a VCEK, since no VLEK is allowed")
    CSP_ID = Row(_B, "VLEK.csp_id", "the cloud provider expected")
    PRODUCT_MISMATCH = Row(_B, "report.cpuid", "a processor of the certificate's product")
    PRODUCT_UNEXPECTED = Row(_B, "report.cpuid", "the product expected")
    REPORTED_TCB_MISMATCH = Row(_B, "report.reported_tcb", "the certificate's TCB")
    CHIP_ID_MASKED = Row(_B, "report.chip_id", "a chip id, not a masked one")
    CHIP_ID_MISMATCH = Row(_B, "report.chip_id", "the certificate's hwID")

    REPORT_SIGNATURE = Row(_S, "report.signature", "the certificate's key's, over the first 672 bytes")

    POLICY_DEBUG = Row(_O, "report.policy", "no debugging")
    POLICY_MIGRATION = Row(_O, "report.policy", "no migration agent")
    MIGRATION_AGENT_UNPROVED = Row(_O, "agent's report", "one that is believed, for a guest that may be moved")
    MIGRATION_AGENT_UNLISTED = Row(_O, "report.report_id_ma", "an agent of the list, for a guest that may be moved")
    POLICY_BIT_MISSING = Row(_O, "report.policy", "the bits demanded")
    POLICY_BIT_FORBIDDEN = Row(_O, "report.policy", "none of the bits forbidden")
    POLICY_UNEXPECTED = Row(_O, "report.policy", "the policy expected")
    PLATFORM_BIT_MISSING = Row(_O, "report.platform_info", "the bits demanded")
    PLATFORM_BIT_FORBIDDEN = Row(_O, "report.platform_info", "none of the bits forbidden")
    VMPL_UNEXPECTED = Row(_O, "report.vmpl", "the VMPL expected")
    MEASUREMENT_UNEXPECTED = Row(_O, "report.measurement", "that of the image")
    HOST_DATA_UNEXPECTED = Row(_O, "report.host_data", "the host data expected")
    FAMILY_ID_UNEXPECTED = Row(_O, "report.family_id", "the family id expected")
    IMAGE_ID_UNEXPECTED = Row(_O, "report.image_id", "the image id expected")
    GUEST_SVN_LOW = Row(_O, "report.guest_svn", "at least the one expected")
    CHIP_UNLISTED = Row(_O, "report.chip_id", "a chip of the list")

    TCB_REPORTED_ABOVE_COMMITTED = Row(_T, "report.reported_tcb", "no component above the committed TCB's")
    TCB_COMMITTED_ABOVE_CURRENT = Row(_T, "report.committed_tcb", "no component above the current TCB's")
    TCB_LAUNCH_ABOVE_CURRENT = Row(_T, "report.launch_tcb", "no component above the current TCB's")
    FIRMWARE_COMMITTED_ABOVE_CURRENT = Row(_T, "report.committed_version", "not above the current version")
    FIRMWARE_PROVISIONAL = Row(_T, "report.committed_tcb", "the current TCB and version, nothing provisional")
    TCB_LOW = Row(_T, "report.reported_tcb", "no component below the floor's")
    TCB_UNEXPECTED = Row(_T, "report.reported_tcb", "the levels pinned")
    LAUNCH_TCB_LOW = Row(_T, "report.launch_tcb", "no component below the floor's")
    FIRMWARE_LOW = Row(_T, "report.committed_version", "at least the version expected")
    MITIGATION_MISSING = Row(_T, "report.current_mitigations", "the bits demanded")

    REPORT_DATA_UNEXPECTED = Row(_F, "report.report_data", "the 64 bytes asked for")
    NONCE_UNEXPECTED = Row(_F, "report.report_data", "the nonce in its first 32 bytes")
    CHANNEL_UNEXPECTED = Row(_F, "report.report_data", "SHA-256 of the channel's key in its last 32 bytes")
    NONCE_EXPIRED = Row(_F, "nonce", "an answer in time")

    AUTHOR_KEY_FLAG = Row(_I, "report.key_info", "bit 0 set exactly if there is an author key digest")
    ID_KEY_MISSING = Row(_I, "report.id_key_digest", "an ID block signed by a key")
    ID_KEY_UNTRUSTED = Row(_I, "report.id_key_digest", "a trusted key's digest")
    AUTHOR_KEY_MISSING = Row(_I, "report.author_key_digest", "an ID key signed by an author's key")
    AUTHOR_KEY_UNTRUSTED = Row(_I, "report.author_key_digest", "a trusted key's digest")

    @property
    def stage(self) -> Stage:
        """The stage that looks for it."""
        return self.value.stage

    @property
    def field(self) -> str:
        """What it is about."""
        return self.value.field

    @property
    def demand(self) -> str:
        """What the field should have been."""
        return self.value.demand


class Rejected(Exception):
    """The one reason why a report is not believed.

    ``passed`` are the checks before it, ``left_out`` those that nobody asked for.
    """

    def __init__(
        self, reason: Reason, found: str = "", passed: tuple[Reason, ...] = (), left_out: tuple[Reason, ...] = ()
    ) -> None:
        super().__init__(reason, found)
        self.reason = reason
        self.found = found
        self.passed = passed
        self.left_out = left_out

    def __str__(self) -> str:
        """One line: code, stage, field, what was expected, what was there."""
        reason = self.reason
        got = f", got {printable(self.found)}" if self.found else ""
        return f"{reason.name} ({reason.stage.value}): {reason.field}: expected {reason.demand}{got}"


def printable(found: str) -> str:
    """What may have come from anybody, so that nothing in it moves a terminal or begins a line."""
    return "".join([one if one.isprintable() else ascii(one)[1:-1] for one in found])


class Trail:
    """The checks made so far."""

    def __init__(self) -> None:
        self.passed: list[Reason] = []
        self.left_out: list[Reason] = []

    def demand(self, reason: Reason, holds: object, found: object = "") -> None:
        """Note a check; raises Rejected unless it holds."""
        if not holds:
            raise Rejected(reason, str(found), tuple(self.passed), tuple(self.left_out))
        self.passed.append(reason)

    def leave_out(self, reason: Reason) -> None:
        """Note a check that nobody asked for."""
        self.left_out.append(reason)

    def compare(self, reason: Reason, expected: object, found: object) -> None:
        """Demand what is expected, if anything is."""
        if expected is None:
            self.leave_out(reason)
        else:
            self.demand(reason, found == expected, found.hex() if isinstance(found, bytes) else found)
