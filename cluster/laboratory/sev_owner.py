"""The owner of a SEV or SEV-ES guest: opens a session with a platform, and sends a secret for the right measurement.

It trusts the laboratory's roots, and gets certificates of CEKs from whoever has those: for the
chips there are, and no others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes

from cluster.laboratory.key_service import KeyService
from cluster.laboratory.owner_habits import OwnerHabits
from cluster.laboratory.owner_secret import SECRET
from cluster.oracle.transcript import Transcript
from node.operations import Answer
from psp import elliptic, guest_owner, sev_certificate
from psp.amd_certificate import AmdCertificate
from psp.command_buffers import ATTESTATION_SIGNED_BYTES, AttestationReport
from psp.guest_owner import Expected, OwnerSession, WrongMeasurementError
from psp.policy import LegacyPolicy
from psp.secret_packet import pack_secret
from psp.sev_certificate import CertificateError, KeyUsage
from psp.sev_chain import PlatformChain, check_chain
from psp.sev_session import NONCE_BYTES
from psp.system_bus import PAGE_BYTES
from workloads.attacks.owner_operations import OpenSession, ShowAttestation, ShowMeasurement
from workloads.attacks.small_codes import VICTIMS_CODE
from workloads.attacks.small_sev_guest import minimum_api


@dataclass(slots=True)
class SevOwner:
    """One owner, with one session at a time. ``firmware`` is what its product has today."""

    transcript: Transcript
    victim: str
    habits: OwnerHabits
    firmware: tuple[int, int, int]
    encrypted_registers: bool
    keys: Callable[[], KeyService]
    _open: OwnerSession | None = field(default=None, init=False)
    _sessions: int = field(default=0, init=False)

    @property
    def policy(self) -> int:
        """What it demands of firmware and platform."""
        policy = int(LegacyPolicy.NOKS | LegacyPolicy.NOSEND)
        if not self.habits.debuggable:
            policy |= LegacyPolicy.NODBG
        if self.encrypted_registers:
            policy |= LegacyPolicy.ES
        return minimum_api(policy, self.firmware[:2]) if self.habits.min_api else policy

    @property
    def digest(self) -> bytes:
        """Of its own image."""
        return hashlib.sha256(VICTIMS_CODE.ljust(PAGE_BYTES, b"\0")).digest()

    def open_session(self, one: OpenSession) -> Answer:
        """Certificate, session block and policy, or None for a platform whose chain does not lead to AMD."""
        self._open = None
        self._sessions += 1
        ark, ask = self._roots()
        try:
            chain = self.keys().certified(PlatformChain.parse(one.pdh, one.chain))
            self._open = guest_owner.open_session(chain, ark, ask, self.policy, self._random)
        except CertificateError as error:
            self.transcript.complain(self.victim, str(error))
            return None
        return self._open.certificate.pack() + self._open.session.pack() + self.policy.to_bytes(4, "little")

    def answer_measurement(self, one: ShowMeasurement) -> Answer:
        """Header and packet of the secret, or None."""
        session = self._open
        if session is None:
            return None
        expected = Expected(one.firmware, self.policy, self.digest)
        iv = self._random("secret IV", NONCE_BYTES)
        if self.habits.measurement:
            try:
                header, packet = guest_owner.secret_for(session.keys, expected, one.measurement, SECRET, iv)
            except WrongMeasurementError as error:
                self.transcript.complain(self.victim, str(error))
                return None
        else:
            measure = one.measurement[: guest_owner.MEASURE_BYTES]
            header, packet = pack_secret(session.keys, SECRET, measure, iv, one.firmware[:2])
        return header.pack() + packet

    def challenge(self) -> bytes:
        """A fresh nonce for ATTESTATION."""
        self._sessions += 1
        return self._random("nonce", NONCE_BYTES)

    def answer_attestation(self, one: ShowAttestation) -> Answer:
        """The secret, to whoever shows the guest's report: nothing in one binds it to a channel. Or None."""
        try:
            chain = self.keys().certified(PlatformChain.parse(one.pdh, one.chain))
            check_chain(chain, *self._roots())
            self._check_report(chain, one.report)
        except (CertificateError, WrongMeasurementError) as error:
            self.transcript.complain(self.victim, str(error))
            return None
        return SECRET

    def _check_report(self, chain: PlatformChain, data: bytes) -> None:
        if len(data) != AttestationReport.SIZE:
            raise WrongMeasurementError(f"report: expected {AttestationReport.SIZE} bytes, got {len(data)}")
        report = AttestationReport.parse(data)
        signature = report.signature.ljust(elliptic.SIGNATURE_BYTES, b"\0")
        key = sev_certificate.public_key(chain.pek)
        if not elliptic.verifies(key, signature, data[:ATTESTATION_SIGNED_BYTES], hashes.SHA256()):
            raise WrongMeasurementError("report: expected the platform's signature")
        if self.habits.nonce and report.mnonce != self._random("nonce", NONCE_BYTES):
            raise WrongMeasurementError("report: expected the nonce")
        if self.habits.measurement and report.digest != self.digest:
            raise WrongMeasurementError("report: expected the digest of the image")
        if report.policy != self.policy:
            raise WrongMeasurementError("report: expected the policy")

    def _roots(self) -> tuple[AmdCertificate, AmdCertificate]:
        keys = self.keys()
        return keys.amd(KeyUsage.ARK), keys.amd(KeyUsage.ASK)

    def _random(self, purpose: str, length: int) -> bytes:
        return hashlib.shake_128(f"{self.victim}'s owner {self._sessions} {purpose}".encode()).digest(length)
